"""Requests computed together: each gets what it would get alone, and nothing is left behind."""

from __future__ import annotations

import atexit
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedules import (
    CONTEXT_LENGTH,
    alone,
    endless,
    isolated_of,
    raising,
    request_of,
    same,
    scheduler_of,
    sizes_of_calls,
    tokens,
)

import pyllama
from adapter.errors import (
    BackendError,
    ContextTooLongError,
    InferenceError,
    ModelNotLoadedError,
    QueueFullError,
    RequestTimeoutError,
)
from adapter.generation import exactness, outcomes, shutdown
from adapter.generation.memory.blocks import BLOCK, CHUNK, DEVICE_CHUNK, last_border
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.sampling import Constraint, Sampling
from adapter.generation.scoring import ScoringRequest
from adapter.generation.token_count import TokenCount

GRAMMARS = [
    Constraint('root ::= "answer: " [a-z]+ "\\nsure: " ("yes" | "no") "."'),
    Constraint('root ::= [a-z]+ (" and so on " [a-z]+)*'),
]
"""Of an answer that begins with a forced text, and of one in which some may come."""


@pytest.fixture(scope="module")
def models(write_tiny_model, tmp_path_factory):
    """A model whose batches keep the bytes, and those whose memory cannot go back."""
    folder = tmp_path_factory.mktemp("quantized")
    wide = write_tiny_model(n_embd=256, n_ff=256, n_ctx_train=4096)
    pyllama.quantize(wide, folder / "q8.gguf", "Q8_0")
    paths = {"llama": folder / "q8.gguf"}
    for name in ("mamba", "jamba", "gemma2"):
        paths[name] = write_tiny_model(architecture=name, n_ctx_train=4096)
    made = {name: pyllama.Model(path) for name, path in paths.items()}
    yield made
    for model in made.values():
        model.close()


@pytest.fixture(scope="module")
def model(models):
    return models["llama"]


@pytest.fixture
def scheduler(model):
    made = scheduler_of(model)
    yield made
    made.close()


# What a request gets


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
    """Small budgets make slots, lanes and saved states change hands."""
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


# The prefix cache


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
    answer = scheduler.generate(request_of(prompt, max_tokens=60)).token_ids
    assert len(answer) > 20
    turn = request_of(prompt + answer + tokens(1, 30))
    result = scheduler.generate(turn)
    n_held = len(prompt + answer) - 1 if name == "llama" else last_border(len(prompt))
    assert result.cache_read_tokens == n_held - n_held % BLOCK
    assert result.completion_tokens > 0
    scheduler.close()


# Limits, errors and endings


@pytest.mark.parametrize("execution", [scheduler_of, isolated_of])
def test_a_request_ends_when_its_time_is_over(model, execution):
    generator = execution(model)
    never = replace(endless(1), timeout=0.05)
    with pytest.raises(RequestTimeoutError, match=r"within timeout_secs=0\.05") as raised:
        generator.generate(never)
    assert raised.value.n_tokens < 1900
    assert generator.generate(replace(never, timeout=60.0, max_tokens=3)).completion_tokens == 3
    generator.close()


def test_a_request_that_waits_has_its_time_too(model):
    scheduler = scheduler_of(model, max_sequences=1, n_cells=CONTEXT_LENGTH)
    running = scheduler.stream(endless(1))
    next(running)
    with pytest.raises(RequestTimeoutError) as raised:
        scheduler.generate(replace(request_of(tokens(1, 10)), timeout=0.02))
    assert raised.value.n_tokens == 0
    running.close()
    scheduler.close()


@pytest.fixture
def hanging(monkeypatch):
    """Computations hang, as on a device that does not answer, once the first event is set."""
    hangs, is_hanging, goes_on = (threading.Event() for _ in range(3))
    decode = pyllama.Context.decode

    def hang(self, batch):
        if hangs.is_set():
            is_hanging.set()
            assert goes_on.wait(60)
        decode(self, batch)

    monkeypatch.setattr(pyllama.Context, "decode", hang)
    monkeypatch.setattr(outcomes, "LATE_SECONDS", 0.05)
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.01)
    yield hangs, is_hanging, goes_on
    goes_on.set()


@pytest.mark.parametrize("execution", [scheduler_of, isolated_of])
def test_a_caller_does_not_wait_for_a_computation_that_hangs(model, execution, hanging):
    hangs, is_hanging, goes_on = hanging
    scheduler = execution(model)
    stream = scheduler.stream(endless(1))
    next(stream)
    hangs.set()
    assert is_hanging.wait(60)
    brief = replace(request_of(tokens(1, 10)), timeout=0.02)
    with pytest.raises(RequestTimeoutError, match=r"within timeout_secs=0\.02"):
        scheduler.generate(brief)
    scoring = ScoringRequest(tokens(1, 10), ((7,), (8,)), ends=(), timeout=0.02)
    with pytest.raises(RequestTimeoutError, match=r"within timeout_secs=0\.02"):
        scheduler.score(scoring)
    cancelled = threading.Event()
    cancelled.set()
    assert list(scheduler.stream(endless(2), cancelled)) == []
    assert scheduler.score(replace(scoring, timeout=None), cancelled) is None
    stream.close()
    goes_on.set()
    assert scheduler.generate(request_of(tokens(1, 10))).completion_tokens > 0
    scheduler.close()


def test_what_a_step_takes_whose_caller_has_gone_is_counted(model, hanging):
    hangs, is_hanging, goes_on = hanging
    scheduler = scheduler_of(model)
    taken, cancelled = TokenCount(), threading.Event()
    hangs.set()
    with ThreadPoolExecutor(1) as callers:
        request = replace(request_of(tokens(1, 10)), taken=taken)
        call = callers.submit(lambda: list(scheduler.stream(request, cancelled)))
        assert is_hanging.wait(60)
        cancelled.set()
        assert call.result() == []
    assert taken.pending
    assert taken.total == 0
    goes_on.set()
    assert scheduler.generate(request_of(tokens(1, 10))).completion_tokens > 0
    assert not taken.pending
    assert taken.prompt == 10
    scheduler.close()


def test_the_end_of_the_program_does_not_wait_for_a_computation_that_hangs(
    model, hanging, monkeypatch, caplog
):
    hangs, is_hanging, goes_on = hanging
    monkeypatch.setattr(shutdown, "EXIT_SECONDS", 0.05)
    threads = shutdown._Threads()
    schedulers = [scheduler_of(model) for _ in range(2)]
    hangs.set()
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(scheduler.generate, endless(1)) for scheduler in schedulers]
        for scheduler in schedulers:
            threads.add(scheduler)
        assert is_hanging.wait(60)
        threads._end()
        atexit.unregister(threads._end)
        assert "a computation hangs" in caplog.text
        goes_on.set()
        for call in calls:
            with pytest.raises(ModelNotLoadedError):
                call.result()
    for scheduler in schedulers:
        scheduler.close()


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_whole_answer_is_one_piece(scheduler, logprobs):
    request = replace(request_of(tokens(0, 30), max_tokens=20), logprobs=logprobs)
    *pieces, result = scheduler.stream(request)
    piece, same_result = scheduler.stream(replace(request, whole=True))
    assert len(pieces) > 1
    assert replace(result, cache_read_tokens=0) == replace(same_result, cache_read_tokens=0)
    assert piece.text == "".join(each.text for each in pieces)
    assert piece.token_ids == sum((each.token_ids for each in pieces), ())
    assert piece.logprobs == sum((each.logprobs for each in pieces), ())


def test_a_whole_answer_that_is_cancelled_says_what_it_took(scheduler):
    """Its tokens count for whoever pays for them."""
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    (piece,) = scheduler.stream(replace(endless(0), whole=True), cancelled)
    assert len(piece.token_ids) > 0


def test_each_request_is_one_line_of_the_log(scheduler, caplog):
    with caplog.at_level("DEBUG", "adapter.generation.sequence"):
        scheduler.generate(request_of(tokens(0, 30), max_tokens=5))
    (line,) = (record.message for record in caplog.records if "request:" in record.message)
    assert "30 tokens of prompt" in line
    assert "5 of answer" in line


def test_a_long_request_runs_beside_short_ones(model):
    """No equal parts: memory for two long sequences, and eight short ones run at once."""
    scheduler = scheduler_of(model, n_cells=2 * 8 * 1024, context_length=8192)
    requests = [request_of(tokens(seed, 50), max_tokens=40) for seed in range(24)]
    requests.insert(4, request_of(tokens(99, 3000), max_tokens=500))
    with ThreadPoolExecutor(9) as threads:
        results = list(threads.map(scheduler.generate, requests))
    assert results[4].completion_tokens == 500 or results[4].finish_reason == "stop"
    assert scheduler.metrics.snapshot().histograms["batch_size"].counts[3] > 0
    scheduler.close()


def test_a_prompt_longer_than_the_context_is_refused_at_once(scheduler):
    with pytest.raises(ContextTooLongError) as caught:
        scheduler.stream(request_of(tokens(0, CONTEXT_LENGTH)))
    assert (caught.value.actual, caught.value.max) == (CONTEXT_LENGTH, CONTEXT_LENGTH)


def test_a_full_queue_is_an_error(model, monkeypatch):
    scheduler = scheduler_of(model, max_queued=1)
    go_on, step = threading.Event(), scheduler._step
    monkeypatch.setattr(scheduler, "_step", lambda: go_on.wait() and step())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(scheduler.generate, request_of(tokens(1, 10)))
        while not scheduler.n_queued and not waiting.done():
            pass
        with pytest.raises(QueueFullError, match="1 requests wait") as caught:
            scheduler.generate(request_of(tokens(2, 10)))
        assert caught.value.retry_after > 0
        go_on.set()
        assert waiting.result().completion_tokens > 0
    scheduler.close()


@pytest.mark.parametrize(
    ("sampling", "error"),
    [
        (Sampling(), InferenceError),  # the context refuses the token
        (Sampling(repeat_penalty=1.5), ValueError),  # a sampler does
        (Sampling(logit_bias={10**6: 1.0}), ValueError),  # making the samplers fails
    ],
)
def test_an_error_fails_one_request_alone(scheduler, sampling, error):
    good = [request_of(tokens(seed, 40), max_tokens=30) for seed in range(4)]
    bad = GenerationRequest((1, 10**6), 10, sampling, 0)
    with ThreadPoolExecutor(5) as threads:
        running = [threads.submit(scheduler.generate, request) for request in [*good, bad]]
        assert isinstance(running[-1].exception(), error)
        assert all(isinstance(one.result(), GenerationResult) for one in running[:-1])


def test_an_assertion_in_a_sampler_leaves_the_others_their_context(scheduler, monkeypatch):
    sample_each = pyllama.sample_each

    def asserting(context, chains, *, n_threads):
        sampled = sample_each(context, chains, n_threads=n_threads)
        failed = pyllama.NativeAssertionError("GGML_ASSERT(false) failed")
        return {
            output: failed if "logit-bias" in chains[output].names else token
            for output, token in sampled.items()
        }

    monkeypatch.setattr(pyllama, "sample_each", asserting)
    good = [request_of(tokens(seed, 40), max_tokens=30) for seed in range(4)]
    bad = endless(9)
    with ThreadPoolExecutor(5) as threads:
        running = [threads.submit(scheduler.generate, request) for request in [*good, bad]]
        assert isinstance(running[-1].exception(), InferenceError)
        assert all(isinstance(one.result(), GenerationResult) for one in running[:-1])


def test_a_context_that_cannot_be_made_fails_its_request_alone(model, monkeypatch):
    scheduler = scheduler_of(model)
    make = scheduler._make_context
    with monkeypatch.context() as patched:
        patched.setattr(scheduler._lanes, "_make", lambda *_: pyllama.Context(model, n_ctx=-1))
        with pytest.raises(ValueError, match="n_ctx"):
            scheduler.generate(request_of(tokens(0, 10)))
        patched.setattr(scheduler._lanes, "_make", make)
        assert scheduler.generate(request_of(tokens(0, 10))).completion_tokens > 0
    scheduler.close()


def test_a_closed_stream_frees_its_sequence(model):
    scheduler = scheduler_of(model, max_sequences=1)
    for _ in range(3):
        stream = scheduler.stream(endless(0))
        next(stream)
        stream.close()
    assert scheduler.generate(request_of(tokens(1, 10))).completion_tokens > 0
    assert scheduler.metrics.snapshot().requests == 1
    scheduler.close()


@pytest.mark.parametrize("when", ["before", "while running"])
def test_a_cancelled_request_ends_without_a_result(scheduler, when):
    cancelled = threading.Event()
    if when == "before":
        cancelled.set()
    pieces = []
    for piece in scheduler.stream(endless(0), cancelled):
        pieces.append(piece)
        cancelled.set()
    assert not any(isinstance(piece, GenerationResult) for piece in pieces)
    assert len(pieces) < 1000


def test_closing_fails_what_is_left(model):
    scheduler = scheduler_of(model)
    stream = scheduler.stream(endless(0))
    next(stream)
    scheduler.close()
    with pytest.raises(ModelNotLoadedError):
        list(stream)
    with pytest.raises(ModelNotLoadedError):
        scheduler.generate(request_of(tokens(0, 10)))
    scheduler.close()


def test_a_scheduler_whose_thread_ended_says_why(model, monkeypatch):
    scheduler = scheduler_of(model)
    assert scheduler.failed is None
    error = RuntimeError("nothing left")
    with monkeypatch.context() as patched:
        patched.setattr(scheduler, "_wait_for_work", raising(error))
        with pytest.raises(RuntimeError, match="nothing left"):
            scheduler.generate(request_of(tokens(0, 10)))
        scheduler._thread.join()
    assert scheduler.failed is error
    with pytest.raises(BackendError, match=r"nothing left.*load the model again") as caught:
        scheduler.generate(request_of(tokens(0, 10)))
    assert caught.value.__cause__ is error
    scheduler.close()


def test_what_it_did_can_be_read(scheduler):
    results = [scheduler.generate(request_of(tokens(seed, 30))) for seed in range(3)]
    snapshot = scheduler.metrics.snapshot()
    assert snapshot.requests == 3
    assert snapshot.prompt_tokens == 90
    assert snapshot.output_tokens == sum(result.completion_tokens for result in results)
    for name in ("queue_seconds", "first_token_seconds", "request_seconds", "tokens_per_second"):
        assert snapshot.histograms[name].count == 3
