"""Scores of continuations: those of the model's own logits, in any mode, whatever else runs."""

from __future__ import annotations

import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import schedules
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from adapter.errors import (
    ContextTooLongError,
    InferenceError,
    ModelNotLoadedError,
    QueueFullError,
    RequestTimeoutError,
)
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.scheduler import Scheduler
from adapter.generation.scoring import MAX_BRANCHES, ScoringRequest, n_trie_tokens, trie_groups

CONTEXT_LENGTH = 512
ENDS = (2, 4)


def scheduler_of(model, **changes):
    settings = {
        "context_length": CONTEXT_LENGTH,
        "n_threads": 1,
        "n_cells": 2 * CONTEXT_LENGTH,
        "max_sequences": 4,
        "max_queued": 64,
        "cache_bytes": 2**24,
        "reproducible": True,
        **changes,
    }
    return Scheduler(model, **settings)


def isolated_of(model):
    return schedules.isolated_of(model, context_length=CONTEXT_LENGTH)


@pytest.fixture
def scheduler(tiny):
    made = scheduler_of(tiny)
    yield made
    made.close()


@pytest.fixture
def isolated(tiny):
    made = isolated_of(tiny)
    yield made
    made.close()


def request_of(model, *, n_prompt=150, n_continuations=40, seed=0, ends=ENDS):
    """A random prompt, and different continuations of 0 to 3 tokens that share beginnings."""
    random = np.random.default_rng(seed)
    prompt = tuple(random.integers(5, model.vocab.n_tokens, n_prompt).tolist())
    continuations = [
        tuple(random.integers(5, 12, random.integers(0, 4)).tolist())
        for _ in range(n_continuations)
    ]
    return ScoringRequest(prompt, tuple(dict.fromkeys(continuations)), ends)


def expected_scores(model, request):
    """Each continuation's log-probabilities by itself, from raw logits, in numpy."""
    told = []
    with pyllama.Context(
        model, n_ctx=CONTEXT_LENGTH, n_batch=64, n_threads=1, flash_attn="disabled"
    ) as context:
        for continuation in request.continuations:
            context.memory.clear()
            for begin in range(0, len(request.prompt), 64):
                block = request.prompt[begin : begin + 64]
                context.decode(pyllama.Batch.from_tokens(block, pos=begin))
            numbers = []
            for index, token in enumerate(continuation):
                numbers.append(log_softmax(context.logits())[token])
                context.decode_token(token, len(request.prompt) + index)
            last = np.exp(log_softmax(context.logits()))
            told.append((numbers, np.log(last[list(request.ends)].sum())))
    return told


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen2vl", "mamba", "jamba"])
@pytest.mark.parametrize("execution", [scheduler_of, isolated_of])
def test_scores_are_those_of_the_raw_logits(write_tiny_model, architecture, execution):
    """Also of a sliding window, and of states that cannot go back to an earlier token."""
    with pyllama.Model(write_tiny_model(architecture=architecture)) as model:
        generator = execution(model)
        request = request_of(model)
        result = generator.score(request)
        for score, (tokens, end) in zip(
            result.scores, expected_scores(model, request), strict=True
        ):
            # What is computed together differs from one by one in the last bits.
            assert score.tokens == pytest.approx(tokens, abs=5e-3)
            assert score.end == pytest.approx(end, abs=5e-3)
            assert score.total() == pytest.approx(sum(tokens) + end, abs=2e-2)
            assert score.total(1) == sum(score.tokens[1:]) + score.end
        generator.close()


def test_both_modes_give_the_same_bytes(tiny, scheduler, isolated):
    request = request_of(tiny)
    assert scheduler.score(request).scores == isolated.score(request).scores


def test_all_that_can_follow_adds_up_to_one(tiny, scheduler):
    """Every single token, or the end at once: together they are certain."""
    everything = tuple((token,) for token in range(tiny.vocab.n_tokens))
    request = ScoringRequest((5, 6, 7), everything, ENDS)
    scores = scheduler.score(request).scores
    assert sum(np.exp(score.tokens[0]) for score in scores) == pytest.approx(1, abs=1e-9)


def test_longer_continuations_than_a_batch(tiny, scheduler):
    random = np.random.default_rng(1)
    long = tuple(random.integers(5, tiny.vocab.n_tokens, 150).tolist())
    request = ScoringRequest((5, 6, 7), (long, long[:70], ()), ENDS)
    result = scheduler.score(request)
    assert result.n_computed == 150
    for score, (tokens, end) in zip(result.scores, expected_scores(tiny, request), strict=True):
        assert score.tokens == pytest.approx(tokens, abs=5e-3)
        assert score.end == pytest.approx(end, abs=5e-3)


def test_scores_do_not_depend_on_what_else_runs(tiny, scheduler):
    requests = [request_of(tiny, seed=seed, n_prompt=100 + 30 * seed) for seed in range(6)]
    alone = []
    for request in requests:
        fresh = scheduler_of(tiny)
        alone.append(fresh.score(request).scores)
        fresh.close()
    writing = GenerationRequest(requests[0].prompt, 200, Sampling(temperature=0.0), seed=1)
    written = scheduler.generate(writing)
    with ThreadPoolExecutor(9) as threads:
        texts = [threads.submit(scheduler.generate, writing) for _ in range(3)]
        together = list(threads.map(scheduler.score, requests * 2))
    assert [result.scores for result in together] == alone * 2
    assert {text.result().token_ids for text in texts} == {written.token_ids}


def test_a_prompt_that_begins_like_the_last_one_is_not_computed_anew(tiny, scheduler):
    first = request_of(tiny, n_prompt=240)
    cold = scheduler.score(first)
    again = scheduler.score(first)
    longer = ScoringRequest((*first.prompt, 7, 8), first.continuations, ENDS)
    other = ScoringRequest(first.prompt[:130] + (9,) * 40, first.continuations, ENDS)
    assert (cold.cache_read_tokens, again.cache_read_tokens) == (0, 192)
    assert again.scores == cold.scores
    assert scheduler.score(longer).cache_read_tokens == 192
    assert scheduler.score(other).cache_read_tokens == 128
    assert scheduler.metrics.snapshot().cached_tokens == 192 + 192 + 128


def test_where_there_is_little_room_fewer_are_computed_together(tiny, scheduler):
    """Each fits behind the prompt, all of them together do not."""
    random = np.random.default_rng(2)
    prompt = tuple(random.integers(5, tiny.vocab.n_tokens, CONTEXT_LENGTH - 4).tolist())
    continuations = tuple((a, b, a, b) for a in range(5, 11) for b in range(5, 8))
    request = ScoringRequest(prompt, continuations, ENDS)
    result = scheduler.score(request)
    for score, (tokens, end) in zip(result.scores, expected_scores(tiny, request), strict=True):
        assert score.tokens == pytest.approx(tokens, abs=5e-3)
        assert score.end == pytest.approx(end, abs=5e-3)


def test_a_continuation_beyond_the_context_is_refused(scheduler, isolated):
    request = ScoringRequest((5,) * (CONTEXT_LENGTH - 1), ((6,), (6, 7)), ENDS)
    for generator in (scheduler, isolated):
        with pytest.raises(ContextTooLongError, match=str(CONTEXT_LENGTH + 1)):
            generator.score(request)


def test_cancelling(tiny, scheduler, isolated):
    cancelled = threading.Event()
    cancelled.set()
    for generator in (scheduler, isolated):
        assert generator.score(request_of(tiny), cancelled) is None
    assert scheduler.score(request_of(tiny)) is not None


@pytest.mark.parametrize("execution", [scheduler_of, isolated_of])
def test_its_time_is_over_while_it_waits_or_is_computed(tiny, execution, monkeypatch):
    scheduler = execution(tiny)
    request = request_of(tiny)
    expected = scheduler.score(request).scores
    steps, decode = [], pyllama.Context.decode

    def slow(context, batch):
        steps.append(len(batch))
        time.sleep(0.02)
        return decode(context, batch)

    monkeypatch.setattr(pyllama.Context, "decode", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(scheduler.score, replace(request_of(tiny, seed=1), timeout=60))
        while not steps:
            time.sleep(0.001)
        with pytest.raises(RequestTimeoutError, match=r"timeout_secs=0\.01"):
            scheduler.score(replace(request, timeout=0.01))  # it waits behind the other
        assert first.result().scores
    steps.clear()
    with pytest.raises(RequestTimeoutError):
        scheduler.score(replace(request_of(tiny, n_prompt=300, seed=2), timeout=0.03))
    assert 0 < len(steps) < 5
    assert scheduler.score(request).scores == expected
    scheduler.close()


def test_a_full_queue_refuses(tiny):
    scheduler = scheduler_of(tiny, max_queued=0)
    with pytest.raises(QueueFullError):
        scheduler.score(request_of(tiny))
    scheduler.close()


def test_a_closed_scheduler_refuses_and_fails_those_that_wait(tiny):
    scheduler = scheduler_of(tiny)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(scheduler.score, request_of(tiny, seed=n)) for n in range(8)]
        waiting[0].result()
        scheduler.close()
        errors = [future.exception() for future in waiting]
    assert all(error is None or isinstance(error, ModelNotLoadedError) for error in errors)
    with pytest.raises(ModelNotLoadedError):
        scheduler.score(request_of(tiny))


def test_an_error_fails_its_request_alone(tiny, scheduler):
    beyond = ScoringRequest((5, 6), ((tiny.vocab.n_tokens + 7,),), ENDS)
    with pytest.raises((InferenceError, IndexError)):
        scheduler.score(beyond)
    assert len(scheduler.score(request_of(tiny)).scores) > 1


def test_groups_hold_what_fits():
    continuations = [(1, 2), (1, 3), (1, 2, 4), (5,), ()]
    assert n_trie_tokens(continuations) == 5
    assert trie_groups(continuations, room=9, max_branches=9) == [continuations]
    assert trie_groups(continuations, room=9, max_branches=2) == [
        [(1, 2), (1, 3)],
        [(1, 2, 4), (5,)],
        [()],
    ]
    assert trie_groups(continuations, room=4, max_branches=9) == [
        [(1, 2), (1, 3), (1, 2, 4)],
        [(5,), ()],
    ]
    many = [(token,) for token in range(MAX_BRANCHES * 2 + 1)]
    assert [len(group) for group in trie_groups(many, room=999, max_branches=MAX_BRANCHES)] == [
        MAX_BRANCHES,
        MAX_BRANCHES,
        1,
    ]


@pytest.mark.parametrize("form", ["tree", "chain"])
def test_one_group_of_long_continuations_can_be_given_up(form, tiny, tiny_mamba, monkeypatch):
    model = tiny if form == "tree" else tiny_mamba
    prompt = schedules.tokens(0, 200)
    long = ScoringRequest(prompt, (schedules.tokens(1, 300),), ENDS)
    short = ScoringRequest(prompt, (schedules.tokens(2, 5), schedules.tokens(3, 5)), ENDS)
    scheduler, fresh = scheduler_of(model), scheduler_of(model)
    scheduler.score(long)
    with monkeypatch.context() as patch:
        sizes = schedules.sizes_of_calls(patch)
        scheduler.score(long)
        n_calls = len(sizes)
        sizes.clear()
        cancelled = threading.Event()
        decode = pyllama.Context.decode

        def cancelling(context, batch):
            decode(context, batch)
            if len(sizes) == n_calls - 2:
                cancelled.set()

        patch.setattr(pyllama.Context, "decode", cancelling)
        assert scheduler.score(long, cancelled) is None
        assert len(sizes) < n_calls
    assert scheduler.score(short).scores == fresh.score(short).scores
    assert scheduler.score(long).scores == fresh.score(long).scores
    scheduler.close()
    fresh.close()


def test_the_memory_of_counting_grows_with_the_tokens_alone():
    long = tuple(range(10_000))
    tracemalloc.start()
    try:
        assert n_trie_tokens([long, (*long[:500], 1)]) == 10_001
        assert len(trie_groups([long, long], room=10_000, max_branches=2)) == 1
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


@given(st.lists(st.lists(st.integers(0, 2), max_size=5).map(tuple), min_size=1, max_size=8))
def test_a_token_that_several_begin_with_is_counted_once(continuations):
    paths = {one[:end] for one in continuations for end in range(1, len(one) + 1)}
    assert n_trie_tokens(continuations) == len(paths)
    groups = trie_groups(continuations, room=6, max_branches=3)
    assert [one for group in groups for one in group] == continuations
    assert all(len(group) == 1 or n_trie_tokens(group) <= 6 for group in groups)
