"""Requests computed together: each gets what it would get alone, and nothing is left behind."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedules import (
    alone,
    isolated_of,
    request_of,
    same,
    scheduler_of,
    tokens,
)

from adapter.generation.memory.blocks import CHUNK
from adapter.generation.request import Delta
from adapter.generation.sampling import Constraint

GRAMMARS = [
    Constraint('root ::= "answer: " [a-z]+ "\\nsure: " ("yes" | "no") "."'),
    Constraint('root ::= [a-z]+ (" and so on " [a-z]+)*'),
]
"""Of an answer that begins with a forced text, and of one in which some may come."""


def test_the_stream_adds_up_to_the_result(scheduler):
    *deltas, result = scheduler.stream(request_of(tokens(0, 100), max_tokens=20))
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas) == result.text
    assert sum((delta.token_ids for delta in deltas), ()) == result.token_ids
    assert result.prompt_tokens == 100


@pytest.mark.parametrize("name", ["llama", "mamba", "jamba", "gemma2"])
def test_it_is_what_a_context_of_its_own_gives(models, name):
    model = models[name]
    isolated = isolated_of(model)
    for length in (1, 2, CHUNK, CHUNK + 1, 3 * CHUNK - 1):
        for constraint in (None, *GRAMMARS):
            request = request_of(tokens(length, length), constraint=constraint)
            assert same(alone(model, request), isolated.generate(request))
    isolated.close()


@pytest.mark.parametrize("name", ["llama", "mamba", "jamba", "gemma2"])
def test_the_same_bytes_alone_and_among_others_cold_and_warm(models, name):
    model, chosen = models[name], random.Random(1)
    shared = tokens(2, 5 * CHUNK)
    requests = [
        request_of(
            shared[: chosen.choice([0, 20, CHUNK, 150, 5 * CHUNK])]
            + tokens(seed, chosen.randrange(1, 150)),
            max_tokens=chosen.randrange(1, 30),
            seed=seed,
            constraint=chosen.choice([None, *GRAMMARS]),
        )
        for seed in range(24)
    ]
    expected = [alone(model, request) for request in requests]
    scheduler = scheduler_of(model)
    try:
        for _ in range(2):
            with ThreadPoolExecutor(12) as threads:
                found = list(threads.map(scheduler.generate, requests))
            assert all(map(same, found, expected))
        assert sum(result.cache_read_tokens for result in found) > 20 * CHUNK
    finally:
        scheduler.close()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    schedule=st.lists(
        st.tuples(
            st.integers(0, 2),  # which beginning
            st.integers(0, 200),  # how much of it
            st.integers(1, 70),  # tokens of its own
            st.integers(1, 12),  # tokens to sample
            st.integers(0, 3),  # seed
            st.booleans(),  # given up halfway
            st.sampled_from([None, *GRAMMARS]),
        ),
        min_size=1,
        max_size=12,
    ),
    n_cells=st.sampled_from([2048, 4096, 16384]),
    cache_bytes=st.sampled_from([0, 2**18, 2**24]),
)
def test_any_schedule_gives_the_same_bytes(model, schedule, n_cells, cache_bytes):
    """Small budgets make slots, contexts and saved states change hands."""
    scheduler = scheduler_of(model, n_cells=n_cells, cache_bytes=cache_bytes)

    def run(drawn):
        which, shared, own, max_tokens, seed, gives_up, constraint = drawn
        prompt = tokens(which, 200)[:shared] + tokens(own * 7 + seed, own)
        request = request_of(prompt, max_tokens=max_tokens, seed=seed, constraint=constraint)
        if gives_up:
            stream = scheduler.stream(request)
            next(stream)
            stream.close()
            return None
        return request, scheduler.generate(request)

    try:
        with ThreadPoolExecutor(6) as threads:
            answered = [answer for answer in threads.map(run, schedule) if answer]
    finally:
        scheduler.close()
    for request, result in answered:
        assert same(result, alone(model, request))


def test_a_grammar_stop_texts_and_logprobs_hold_among_others(scheduler, model):
    plain = [request_of(tokens(seed, 80), seed=seed, max_tokens=30) for seed in range(6)]
    bound = request_of(tokens(9, 30), constraint=Constraint('root ::= "yes" | "no"'), logprobs=2)
    with ThreadPoolExecutor(7) as threads:
        running = [threads.submit(scheduler.generate, request) for request in [*plain, bound]]
        result = running[-1].result()
    assert result.text in ("yes", "no")
    assert result.finish_reason == "stop"
    assert len(result.logprobs) == result.completion_tokens
    assert same(result, alone(model, bound))
