"""What of a prompt is not computed again: it is in a slot, or was saved."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from schedules import (
    alone,
    endless,
    request_of,
    same,
    scheduler_of,
    sizes_of_calls,
    tokens,
)

from adapter.generation import exactness
from adapter.generation.memory.blocks import BLOCK, CHUNK, DEVICE_CHUNK, last_border


def test_what_prompts_have_in_common_is_computed_once(scheduler):
    shared = tokens(0, 4 * CHUNK)
    first = scheduler.generate(request_of(shared + tokens(1, 10)))
    second = scheduler.generate(request_of(shared + tokens(2, 10)))
    assert first.cache_read_tokens == 0
    assert second.cache_read_tokens == 4 * CHUNK
    assert scheduler.metrics.snapshot().prompt_tokens == 4 * CHUNK + 20


def test_requests_with_one_new_beginning_wait_for_one_computation(model):
    scheduler = scheduler_of(model)
    requests = [request_of(tokens(0, 4 * CHUNK) + tokens(seed, 10)) for seed in range(1, 9)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(scheduler.generate, requests))
    assert scheduler.metrics.snapshot().prompt_tokens == 4 * CHUNK + 8 * 10
    scheduler.close()


def test_a_prompt_that_comes_again_computes_its_last_tokens_only(scheduler):
    request = request_of(tokens(0, 3 * CHUNK))
    scheduler.generate(request)
    assert scheduler.generate(request).cache_read_tokens == 3 * CHUNK - BLOCK


@pytest.mark.parametrize("length", [CHUNK + 1, CHUNK + BLOCK, CHUNK + BLOCK + 1, 2 * CHUNK + 1])
def test_what_was_reused_leaves_enough_to_compute(scheduler, model, length):
    """Few tokens are computed in another way than many."""
    request = request_of(tokens(3, length))
    expected = alone(model, request)
    for beginning in (length, length - 1, length - BLOCK):
        scheduler.generate(request_of(request.prompt[:beginning] + tokens(4, 3)))
    result = scheduler.generate(request)
    assert result.cache_read_tokens >= length - 3 * BLOCK
    assert same(result, expected)


def test_prompts_are_cut_at_whole_chunks_where_other_cuts_change_them(model, monkeypatch):
    monkeypatch.setattr(exactness, "exact_cuts", lambda _: False)
    scheduler = scheduler_of(model)
    scheduler.generate(request_of(tokens(0, 3 * CHUNK)))
    assert scheduler.generate(request_of(tokens(0, 3 * CHUNK))).cache_read_tokens == 2 * CHUNK
    scheduler.close()


@pytest.mark.parametrize("n_last", [1, 2, CHUNK // 2, CHUNK // 2 + 1])
def test_a_short_last_piece_is_computed_with_the_chunk_before_it(scheduler, n_last, monkeypatch):
    sizes = sizes_of_calls(monkeypatch)
    scheduler.generate(request_of(tokens(2, 2 * CHUNK + n_last), max_tokens=1))
    joined = n_last <= CHUNK // 2
    assert sizes == ([CHUNK, CHUNK + n_last] if joined else [CHUNK, CHUNK, n_last])


def test_the_next_turn_reuses_the_turn_before(scheduler, model):
    """But for the answer, which was computed token by token."""
    prompt = tokens(0, 3 * CHUNK + 5)
    answer = scheduler.generate(request_of(prompt, max_tokens=20)).token_ids
    turn = request_of(prompt + answer + tokens(1, 30))
    result = scheduler.generate(turn)
    assert result.cache_read_tokens == 3 * CHUNK
    assert same(result, alone(model, turn))


def test_what_left_the_context_is_set_from_memory(model):
    """One sequence in all, and two prompts in turn."""
    scheduler = scheduler_of(model, max_sequences=1)
    one, other = (request_of(tokens(seed, 4 * CHUNK + 2)) for seed in (1, 2))
    for request in (one, other):
        assert scheduler.generate(request).cache_read_tokens == 0
    for request in (one, other):
        assert scheduler.generate(request).cache_read_tokens == 4 * CHUNK - BLOCK
    scheduler.close()


def test_where_bytes_need_not_stay_prompts_are_computed_in_larger_calls(model):
    scheduler = scheduler_of(model, reproducible=False, chunk=DEVICE_CHUNK)
    shared = tokens(0, 700)
    for seed in (1, 2):
        result = scheduler.generate(request_of(shared + tokens(seed, 30)))
        assert result.prompt_tokens == 730
    assert result.cache_read_tokens == 700 - 700 % BLOCK
    scheduler.close()


@pytest.mark.parametrize("name", ["llama", "mamba", "gemma2"])
def test_where_bytes_need_not_stay_answers_are_reused(models, name):
    scheduler = scheduler_of(models[name], reproducible=False)
    prompt = tokens(0, 3 * CHUNK + 5)
    answered = scheduler.generate(request_of(prompt, max_tokens=60))
    answer = answered.token_ids
    assert len(answer) > 20
    turn = request_of(prompt + answer + tokens(1, 30))
    result = scheduler.generate(turn)
    n_held = last_border(len(prompt))
    if name == "llama":  # an answer that was cut off ends with a token that was not computed
        n_held = len(prompt + answer) - (answered.finish_reason == "length")
    assert result.cache_read_tokens == n_held
    assert result.completion_tokens > 0
    scheduler.close()


@pytest.mark.parametrize("max_tokens", range(8, 17))
@pytest.mark.parametrize("n_changed", [0, 3])
def test_an_answer_that_stays_is_reused_to_its_last_token(tiny, max_tokens, n_changed):
    """Not only in whole blocks, where bytes need not stay. Its last token was not computed."""
    scheduler, fresh = (scheduler_of(tiny, reproducible=False) for _ in range(2))
    first = replace(endless(1), prompt=tokens(1, 45), max_tokens=max_tokens)
    known = (*first.prompt, *scheduler.generate(first).token_ids)
    known = known[: len(known) - n_changed]
    n_known = len(known) - (not n_changed)
    request = replace(first, prompt=(*known, 3, *tokens(2, 20)), logprobs=1)
    result = scheduler.generate(request)
    if n_changed and len(known) // BLOCK < (45 + max_tokens - 1) // BLOCK:
        assert result.cache_read_tokens == len(known) - len(known) % BLOCK
    else:
        assert result.cache_read_tokens == n_known
    likeliest = [each.logprobs[0].top_logprobs[0] for each in (result, fresh.generate(request))]
    assert likeliest[0] == pytest.approx(likeliest[1], abs=0.01)
    scheduler.close()
    fresh.close()
