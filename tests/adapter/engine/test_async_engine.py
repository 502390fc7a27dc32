"""Cancelling: whoever waits no longer has nothing computed any further."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from dspy import lm15
from engines import engine_of, lm_of, request_to
from fake_generator import fake_model

from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.generation import thread_start


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
                patch.setattr(thread_start.mmap, "mmap", fail)
            with pytest.raises(lm15.ServerError, match="thread"):
                await call()
        return await twin.complete(request_to(engine))

    assert asyncio.run(main()).text == "xy"
    twin._threads.shutdown()
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
