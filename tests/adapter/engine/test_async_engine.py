"""Cancelling: whoever waits no longer has nothing computed any further."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import os
import threading
import traceback

import pytest
from dspy import lm15
from engines import engine_of, lm_of, request_to
from fake_generator import fake_model

from adapter.engine import async_steps
from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.errors import ResourceError
from adapter.generation.outcomes import Outcomes
from adapter.generation.pending import NOT_YET, Pending
from adapter.models.pool import ModelPool


def test_closing_a_stream_stops_the_computation():
    model = fake_model("x" * 1000)
    engine = engine_of(model)
    events = engine.stream(request_to(engine, max_tokens=1000))
    for _ in range(3):
        next(events)
    events.close()
    assert model.generator.closed.is_set()
    assert model.generator.tokens_computed == 2


class Gate:
    """A place in a computation: the test waits until it is reached, and then lets it go on."""

    def __init__(self, model, after):
        self.reached, self.opened = threading.Event(), threading.Event()
        self._generator, self._after = model.generator, after
        model.generator.before_token = self._wait

    def _wait(self):
        if self._generator.tokens_computed == self._after:
            self.reached.set()
            assert self.opened.wait(30)


def call_of(lm, twin, request):
    return {
        "acall": lambda: lm.acall("Hello", max_tokens=1000),
        "complete": lambda: twin.complete(request),
        "stream": lambda: consume(twin.stream(request)),
    }


async def consume(events):
    async with contextlib.aclosing(events) as source:
        return [event async for event in source]


@pytest.mark.parametrize("way", ["acall", "complete", "stream"])
def test_cancelling_stops_the_computation_within_a_step(way):
    model = fake_model("x" * 1000)
    gate = Gate(model, after=2)
    lm = lm_of(model)
    twin = lm._async_engine_spec
    start = call_of(lm, twin, request_to(lm.engine, max_tokens=1000))[way]

    async def main():
        task = asyncio.ensure_future(start())
        assert await asyncio.to_thread(gate.reached.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()

    asyncio.run(main())
    assert model.generator.closed.wait(30)
    assert model.generator.tokens_computed <= 3


# Python says of any asynchronous generator that it could not be closed then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_whose_loop_was_closed_is_computed_no_further():
    """Nobody can read it any more, and the end of the program waits for its thread."""
    model = fake_model("x" * 1000)
    gate = Gate(model, after=2)
    engine = engine_of(model)
    events = AsyncLlamaCppEngine(engine).stream(request_to(engine, max_tokens=1000))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(events))
    assert gate.reached.wait(30)
    loop.close()
    gate.opened.set()
    assert model.generator.closed.wait(30)
    assert model.generator.tokens_computed <= 4


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), None])
@pytest.mark.parametrize("way", ["complete", "stream"])
def test_what_got_no_thread_is_not_computed_later(way, error, monkeypatch):
    """The executor keeps what it found no thread for, and gives it to the next one that starts."""
    model = fake_model("xy")
    engine = engine_of(model)
    twin = AsyncLlamaCppEngine(engine)
    call = call_of(None, twin, request_to(engine))[way]

    def fail(*_args, **_options):
        raise error or OSError("no room")

    async def main():
        with pytest.MonkeyPatch.context() as patch:
            if error is not None:
                patch.setattr(threading.Thread, "start", fail)
            else:
                patch.setattr(mmap, "mmap", fail)
            with pytest.raises(lm15.ServerError, match="thread"):
                await call()
        return await twin.complete(request_to(engine))

    assert asyncio.run(main()).text == "xy"
    asyncio.run(twin.aclose())
    assert model.generator.tokens_computed == 2


def test_the_event_loop_stays_free_while_an_answer_is_computed():
    """The computation goes on only when the loop lets it."""
    model = fake_model("xy")
    gate = Gate(model, after=1)
    engine = engine_of(model)
    twin = AsyncLlamaCppEngine(engine)

    async def main():
        task = asyncio.create_task(twin.complete(request_to(engine)))
        while not gate.reached.is_set():
            await asyncio.sleep(0)
        gate.opened.set()
        return await task

    assert asyncio.run(main()).text == "xy"


def test_a_model_answers_as_before_after_a_stream_was_left(tiny_loaded):
    engine = engine_of(tiny_loaded, seed=1)
    request = request_to(engine, max_tokens=12)
    engine.complete(request)  # its prompt is cached from here on, which the usage tells
    before = engine.complete(request)
    events = engine.stream(request)
    next(events), next(events)
    events.close()
    assert engine.complete(request) == before


# Calls that wait without a thread


class Silent(Pending):
    """A request that nothing is heard of. It fails when it is looked at for the second time."""

    def __init__(self):
        self.listens, self.closed = threading.Event(), threading.Event()
        self._looks, self._ready = 0, []

    def take(self, *, wait=False):
        assert not wait, "no thread is to wait"
        self._looks += 1
        if self._looks == 1:
            return NOT_YET
        raise ResourceError("the device is gone")

    def listen(self, ready):
        self._ready.append(ready)
        self.listens.set()

    def wake(self):
        while self._ready:
            self._ready.pop()()

    def stop(self):
        self.closed.set()


@pytest.fixture
def silent():
    """An engine whose requests are silent ones, and the next of them."""
    model, pending = fake_model("x"), Silent()
    model.generator.submit = lambda _request, _cancelled: pending
    return engine_of(model, token_budget_limit=1000), pending


@pytest.mark.parametrize("way", ["complete", "stream"])
def test_a_call_that_hears_nothing_looks_for_itself(way, silent, monkeypatch):
    monkeypatch.setattr(async_steps, "LOOK_SECONDS", 0.01)
    engine, pending = silent
    call = call_of(None, AsyncLlamaCppEngine(engine), request_to(engine))[way]
    with pytest.raises(lm15.ProviderError, match="the device is gone"):
        asyncio.run(call())
    assert pending.closed.is_set()
    assert engine.budget.used == 0


@pytest.mark.parametrize("way", ["complete", "stream"])
def test_a_call_that_is_cancelled_while_it_waits_ends_its_request(way, silent):
    engine, pending = silent
    call = call_of(None, AsyncLlamaCppEngine(engine), request_to(engine))[way]

    async def main():
        task = asyncio.ensure_future(call())
        assert await asyncio.to_thread(pending.listens.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert pending.closed.wait(60)


class Held(Silent):
    """A request whose caller is not called back before the test lets it be."""

    def __init__(self):
        super().__init__()
        self.opened = threading.Event()
        self._outcomes = Outcomes(None, threading.Event())

    def listen(self, ready):
        self.listens.set()
        assert self.opened.wait(60)
        self._outcomes.listen(ready)

    def wake(self):
        self._outcomes.wake()


def test_a_call_that_is_cancelled_as_the_twin_closes_ends_its_request():
    """Its threads stay until its last step, though the caller is gone."""
    model, pending = fake_model("x"), Held()
    model.generator.submit = lambda _request, _cancelled: pending
    engine = engine_of(model)
    twin = AsyncLlamaCppEngine(engine)

    async def main():
        task = asyncio.ensure_future(twin.complete(request_to(engine)))
        assert await asyncio.to_thread(pending.listens.wait, 60)
        await twin.aclose()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    pending.opened.set()
    assert pending.closed.wait(60)


# asyncio says of a queue that it cannot tell its loop of a task that is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_call_whose_loop_was_closed_ends_its_request(silent):
    engine, pending = silent
    loop = asyncio.new_event_loop()
    task = loop.create_task(AsyncLlamaCppEngine(engine).complete(request_to(engine)))
    loop.run_until_complete(asyncio.to_thread(pending.listens.wait, 60))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    pending.wake()
    assert pending.closed.wait(60)
    task._log_destroy_pending = False
    del task, loop
    gc.collect()  # within this test, whose warning it is


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_step_that_could_not_be_taken_is_taken_at_the_next_look(tiny_loaded, error, monkeypatch):
    monkeypatch.setattr(async_steps, "LOOK_SECONDS", 0.01)
    engine = engine_of(tiny_loaded, seed=1)
    twin = AsyncLlamaCppEngine(engine)
    request = request_to(engine, max_tokens=12)
    expected = engine.complete(request).text
    submit, failures = twin._threads._later.submit, [error] * 3

    def submit_or_fail(work):
        if failures and work is not int:
            raise failures.pop()
        return submit(work)

    monkeypatch.setattr(twin._threads._later, "submit", submit_or_fail)

    async def main():
        return await asyncio.wait_for(twin.complete(request), 60)

    assert asyncio.run(main()).text == expected
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_fork_is_refused(tiny_loaded):
    """It does not have the threads that took steps in its parent."""
    engine = engine_of(tiny_loaded, seed=1)
    twin = AsyncLlamaCppEngine(engine)
    request = request_to(engine, max_tokens=4)
    asyncio.run(twin.complete(request))
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(lm15.LM15Error, match="forked"):
                asyncio.run(asyncio.wait_for(twin.complete(request), 60))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert asyncio.run(twin.complete(request)).text


def test_many_calls_take_few_threads(tiny_loaded):
    engine = engine_of(tiny_loaded, seed=1)
    twin = AsyncLlamaCppEngine(engine)
    requests = [request_to(engine, f"Hello {number}", max_tokens=4) for number in range(70)]
    before = set(threading.enumerate())

    async def main():
        answers = await asyncio.gather(*map(twin.complete, requests))
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        await twin.aclose()
        return answers, sum(name.startswith("llamacpp-async") for name in names)

    answers, n_threads = asyncio.run(main())
    assert n_threads <= async_steps.PREPARING + 1
    assert [answer.text for answer in answers] == [engine.complete(it).text for it in requests]


def test_a_stream_gives_the_events_of_its_sync_twin(tiny_loaded):
    engine = engine_of(tiny_loaded, seed=1)
    request = request_to(engine, max_tokens=12)
    engine.complete(request)
    assert asyncio.run(consume(AsyncLlamaCppEngine(engine).stream(request))) == list(
        engine.stream(request)
    )


@pytest.mark.parametrize("way", ["complete", "stream"])
def test_the_error_of_a_computation_reaches_the_task(way, tiny_loaded):
    engine = engine_of(tiny_loaded, timeout_secs=1e-6)
    call = call_of(None, AsyncLlamaCppEngine(engine), request_to(engine, max_tokens=100))[way]
    with pytest.raises(lm15.TimeoutError):
        asyncio.run(call())


def test_closing_the_pool_in_the_loop_waits_for_the_loops_own_calls(tiny_model_path):
    """The loop cannot run meanwhile, and they need no loop to come to their end."""
    pool = ModelPool(tiny_model_path.parent, context_length=256)
    engine = engine_of(pool.load_model(tiny_model_path.stem), seed=1)
    twin = AsyncLlamaCppEngine(engine)

    async def main():
        events = twin.stream(request_to(engine, max_tokens=20))
        first = await anext(events)
        pool.close()
        return [first, *[event async for event in events]]

    events = asyncio.run(main())
    assert events[-1].usage.output_tokens > 0


def test_an_async_call_does_not_let_the_next_one_into_a_model_that_is_unloaded(tiny_loaded):
    """Its threads are not its own: a lease belongs to the call."""
    callers = []
    engine = engine_of(tiny_loaded, seed=1)
    twin = AsyncLlamaCppEngine(engine)
    lease = tiny_loaded.lease

    def lease_of_the_call():
        made = lease()
        callers.append(made.thread)
        return made

    async def main():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny_loaded, "lease", lease_of_the_call)
            for _ in range(2):
                await twin.complete(request_to(engine, max_tokens=2))

    asyncio.run(main())
    assert len(set(map(id, callers))) == 2
