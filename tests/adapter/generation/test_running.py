"""How requests end: with a result, an error, a timeout or a cancel; the others go on."""

from __future__ import annotations

import atexit
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from schedules import (
    CONTEXT_LENGTH,
    any_batch_is_fast,
    endless,
    isolated_of,
    raising,
    request_of,
    scheduler_of,
    tokens,
)

import pyllama
from adapter.errors import (
    ContextTooLongError,
    InferenceError,
    ModelNotLoadedError,
    QueueFullError,
    RequestTimeoutError,
    ResourceError,
)
from adapter.generation import outcomes, shutdown
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.generation.sampling import Sampling
from adapter.generation.scoring import ScoringRequest
from adapter.generation.token_count import TokenCount


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
    piece, same_result = scheduler.stream(replace(request, streamed=False))
    assert len(pieces) > 1
    assert replace(result, cache_read_tokens=0) == replace(same_result, cache_read_tokens=0)
    assert piece.text == "".join(each.text for each in pieces)
    assert piece.token_ids == sum((each.token_ids for each in pieces), ())
    assert piece.logprobs == sum((each.logprobs for each in pieces), ())


def test_a_whole_answer_that_is_cancelled_says_what_it_took(scheduler):
    """Its tokens count for whoever pays for them."""
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    (piece,) = scheduler.stream(replace(endless(0), streamed=False), cancelled)
    assert len(piece.token_ids) > 0


def test_each_request_is_one_line_of_the_log(scheduler, caplog):
    with caplog.at_level("DEBUG", "adapter.generation.sequence"):
        scheduler.generate(request_of(tokens(0, 30), max_tokens=5))
    (line,) = (record.message for record in caplog.records if "request:" in record.message)
    assert "30 tokens of prompt" in line
    assert "5 of answer" in line


def test_a_long_request_runs_beside_short_ones(model, monkeypatch):
    """No equal parts: memory for two long sequences, and eight short ones run at once."""
    any_batch_is_fast(monkeypatch)
    scheduler = scheduler_of(model, n_cells=2 * 8 * 1024, context_length=8192)
    go_on, step = threading.Event(), scheduler._core.step
    monkeypatch.setattr(scheduler._core, "step", lambda: go_on.wait(60) and step())
    requests = [request_of(tokens(seed, 50), max_tokens=40) for seed in range(24)]
    requests.insert(4, request_of(tokens(99, 3000), max_tokens=500))
    with ThreadPoolExecutor(9) as threads:
        asked = [threads.submit(scheduler.generate, request) for request in requests]
        while scheduler.n_queued < 9:
            time.sleep(0.001)
        go_on.set()
        results = [each.result() for each in asked]
    assert results[4].completion_tokens == 500 or results[4].finish_reason == "stop"
    assert scheduler.metrics.snapshot().histograms["batch_size"].counts[3] > 0
    scheduler.close()


def test_a_prompt_longer_than_the_context_is_refused_at_once(scheduler):
    with pytest.raises(ContextTooLongError) as caught:
        next(scheduler.stream(request_of(tokens(0, CONTEXT_LENGTH))))
    assert (caught.value.actual, caught.value.max) == (CONTEXT_LENGTH, CONTEXT_LENGTH)


def test_a_full_queue_is_an_error(model, monkeypatch):
    scheduler = scheduler_of(model, max_queued=1)
    go_on, step = threading.Event(), scheduler._core.step
    monkeypatch.setattr(scheduler._core, "step", lambda: go_on.wait() and step())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(scheduler.generate, request_of(tokens(1, 10)))
        while not scheduler.n_queued and not waiting.done():
            pass
        with pytest.raises(QueueFullError, match="requests that wait: 1") as caught:
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
    memory, make = scheduler._core.memory, scheduler._contexts.make
    with monkeypatch.context() as patched:
        patched.setattr(memory, "_make", lambda *_: pyllama.Context(model, n_ctx=-1))
        with pytest.raises(ValueError, match="n_ctx"):
            scheduler.generate(request_of(tokens(0, 10)))
        patched.setattr(memory, "_make", make)
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
    with pytest.raises(ResourceError, match=r"nothing left.*load the model again") as caught:
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
