"""What a request is charged for, whichever way it ends: the tokens that it took, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import Config, Message, Request
from fake_generator import fake_model

from adapter import errors
from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.models.pool import ModelPool

PROMPT = len("User: Hello\nAssistant:")
MOOD = {
    "type": "json_schema",
    "schema": {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}},
}


def engine_of(model, **settings):
    settings = {"token_budget_limit": 1000, "max_tokens": 100, **settings}
    return LlamaCppEngine(model, LlamaCppConfig(model.name, **settings))


def request_to(engine, text="Hello", **config):
    return Request(model=engine.model, messages=(Message.user(text),), config=Config(**config))


def judgment_of(engine, **config):
    return request_to(engine, response_format=MOOD, probabilities="required", **config)


async def acomplete(engine, request):
    twin = AsyncLlamaCppEngine(engine)
    try:
        return await twin.complete(request)
    finally:
        await twin.aclose()


async def astream(engine, request):
    twin = AsyncLlamaCppEngine(engine)
    try:
        return [event async for event in twin.stream(request)]
    finally:
        await twin.aclose()


WAYS = {
    "complete": lambda engine, request: engine.complete(request),
    "stream": lambda engine, request: list(engine.stream(request)),
    "acomplete": lambda engine, request: asyncio.run(acomplete(engine, request)),
    "astream": lambda engine, request: asyncio.run(astream(engine, request)),
}


def refusing(model, error):
    """A model whose generator refuses every request before it computes anything."""

    def refuse(request, cancelled=None):
        raise error

    model.generator.stream = model.generator.score = refuse
    return model


REFUSALS = {
    "queue": errors.QueueFullError(9, 1.0),
    "context": errors.ContextTooLongError(9, 8),
    "grammar": errors.InferenceError("no token fits the grammar"),
    "pool": errors.PoolFullError(
        "a", needed=9, held=1, limit=2, unit="bytes", memory="m", holders="h"
    ),
    "unloaded": errors.ModelNotLoadedError("a", "load it"),
    "timeout": errors.RequestTimeoutError(1.0, 0),
    "memory": MemoryError(),
    "ctrl-c": KeyboardInterrupt(),
}


@pytest.mark.parametrize(
    ("way", "why"),
    [
        *((way, why) for way in WAYS for why in REFUSALS if why != "ctrl-c"),
        ("complete", "ctrl-c"),  # it reaches the main thread only
        ("stream", "ctrl-c"),
    ],
)
def test_a_request_refused_before_any_work_costs_nothing(way, why):
    engine = engine_of(refusing(fake_model("x"), REFUSALS[why]), requests_per_minute=2)
    for _ in range(3):  # more often than the rate allows of those that begin
        with pytest.raises((lm15.LM15Error, KeyboardInterrupt)) as caught:
            WAYS[way](engine, request_to(engine))
        assert "requests_per_minute" not in str(caught.value)
        assert engine.budget.used == 0


@pytest.mark.parametrize("way", ["complete", "acomplete"])
@pytest.mark.parametrize("why", REFUSALS.keys() - {"ctrl-c"})
def test_a_judgment_refused_before_any_work_costs_nothing(way, why):
    engine = engine_of(refusing(fake_model("x"), REFUSALS[why]), requests_per_minute=2)
    for _ in range(3):
        with pytest.raises(lm15.LM15Error) as caught:
            WAYS[way](engine, judgment_of(engine))
        assert "requests_per_minute" not in str(caught.value)
        assert engine.budget.used == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_the_budget_or_the_rate_refuses_costs_nothing(way):
    engine = engine_of(fake_model("x"), requests_per_minute=1)
    with pytest.raises(lm15.ProviderError, match="token budget"):
        WAYS[way](engine, request_to(engine, "Hello" * 400))
    WAYS[way](engine, request_to(engine))
    assert engine.budget.used == PROMPT + 1
    with pytest.raises(lm15.RateLimitError):
        WAYS[way](engine, request_to(engine))
    assert engine.budget.used == PROMPT + 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", [0, 5])
def test_a_request_that_fails_midway_costs_what_it_took(way, after):
    model = fake_model("x" * 40)

    def fail():
        if model.generator.tokens_computed == after:
            raise errors.ResourceError("the device is gone")

    model.generator.before_token = fail
    engine = engine_of(model)
    with pytest.raises(lm15.ProviderError, match="the device is gone"):
        WAYS[way](engine, request_to(engine))
    assert engine.budget.used == PROMPT + after


def test_a_stream_that_is_closed_early_costs_what_it_took():
    model = fake_model("x" * 40)
    engine = engine_of(model)
    engine.stream(request_to(engine)).close()  # never begun
    assert engine.budget.used == 0
    for end in ("close", "drop"):
        before = engine.budget.used
        events = engine.stream(request_to(engine))
        for _ in range(4):
            next(events)
        if end == "close":
            events.close()
        del events
        assert engine.budget.used - before == PROMPT + 3


@pytest.mark.parametrize("way", ["acomplete", "astream", "judgment"])
def test_a_task_cancelled_while_its_request_waits_costs_nothing(way):
    model = fake_model("x" * 40)
    waits = threading.Event()

    def wait_for_turn(request, cancelled):
        waits.set()
        assert cancelled.wait(30)
        return None if way == "judgment" else iter(())

    model.generator.stream = model.generator.score = wait_for_turn
    engine = engine_of(model)
    twin = AsyncLlamaCppEngine(engine)
    request = judgment_of(engine) if way == "judgment" else request_to(engine)

    async def consume():
        async with contextlib.aclosing(twin.stream(request)) as events:
            return [event async for event in events]

    async def main():
        start = consume() if way == "astream" else twin.complete(request)
        task = asyncio.ensure_future(start)
        assert await asyncio.to_thread(waits.wait, 30)
        assert engine.budget.used > 0  # it is held until the request has ended
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await twin.aclose()

    asyncio.run(main())
    until(lambda: engine.budget.used == 0)


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_call_cancelled_before_its_thread_was_free_does_nothing():
    model = fake_model("x")
    engine = engine_of(model)
    cancelled = threading.Event()
    cancelled.set()
    assert engine.complete_unless(cancelled, request_to(engine)) is None
    assert list(engine.stream(request_to(engine), cancelled)) == []
    assert (model.rendered, engine.budget.used) == ([], 0)


# What computes, counted


@pytest.fixture(scope="module")
def loaded(tiny_model_path):
    with ModelPool(tiny_model_path.parent, context_length=256) as pool:
        yield pool.load_model(tiny_model_path.stem)


@pytest.fixture(params=["batched", "isolated"])
def computed(request, loaded):
    return engine_of(loaded, execution=request.param, seed=1, token_budget_limit=10_000)


@pytest.mark.parametrize("way", ["complete", "stream"])
def test_a_computed_answer_costs_its_tokens(computed, way):
    for schema in (None, {"type": "object", "properties": {"a_long_name": {"type": "integer"}}}):
        form = schema and {"type": "json_schema", "schema": schema}
        before = computed.budget.used
        request = request_to(computed, max_tokens=20, response_format=form)
        if way == "complete":
            usage = computed.complete(request).usage
        else:
            *_, end = computed.stream(request)
            usage = end.usage
        assert computed.budget.used - before == usage.input_tokens + usage.output_tokens


def test_a_computed_judgment_costs_its_tokens(computed):
    usage = computed.complete(judgment_of(computed)).usage
    assert computed.budget.used == usage.total_tokens


def test_a_computed_stream_that_is_closed_costs_what_was_computed(computed):
    prompt = computed.complete(request_to(computed, max_tokens=1)).usage.input_tokens
    before = computed.budget.used
    request = request_to(computed, max_tokens=100, logprobs=0)
    events = computed.stream(request)
    for _ in range(6):
        next(events)
    events.close()
    # A step may be under way when its caller goes.
    assert prompt + 5 <= computed.budget.used - before < prompt + 100


def test_a_computed_request_whose_time_is_over_costs_what_was_computed(loaded):
    engine = engine_of(loaded, seed=1, timeout_secs=1e-6)
    with pytest.raises(lm15.TimeoutError):
        engine.complete(request_to(engine, max_tokens=100))
    assert engine.budget.used < 100


def test_a_refused_call_of_dspys_leaves_the_budget_to_the_next():
    model = fake_model("x" * 40)
    stream = model.generator.stream
    engine = engine_of(model, token_budget_limit=PROMPT + 40)
    lm = dspy.LM(engine.model, engine=engine, num_retries=0)
    refusing(model, REFUSALS["queue"])
    for _ in range(3):
        with pytest.raises(dspy.LMRateLimitError):
            lm("Hello", max_tokens=40)
    model.generator.stream = stream
    assert lm("Hello", max_tokens=40) == ["x" * 40]
