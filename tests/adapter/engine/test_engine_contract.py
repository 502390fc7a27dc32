"""What DSPy asks of an engine, stated once and asked of each of ours.

An engine is one attempt at one candidate. It is asked in four ways: whole or as a stream, by a
thread or on an event loop. Whatever the way and whatever computes, the same rules hold. The
cache, retries, n, rollouts and errors are DSPy's, seen through the real dspy.LM.
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy import lm15
from dspy.clients.engines.stream_guard import achecked_stream, checked_stream
from dspy.lm15 import Message
from dspy.utils import exceptions as public
from engines import engine_of, lm_of, request_to
from fake_generator import fake_model

from adapter import errors
from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.engine.engine import LlamaCppEngine


async def async_events(engine, request):
    """The events of the async twin, through DSPy's guard."""
    twin = AsyncLlamaCppEngine(engine)
    try:
        return [event async for event in achecked_stream(twin.stream(request))]
    finally:
        await twin.aclose()


async def async_response(engine, request):
    twin = AsyncLlamaCppEngine(engine)
    try:
        return await twin.complete(request)
    finally:
        await twin.aclose()


STREAMS = {
    "stream": lambda engine, request: list(checked_stream(engine.stream(request))),
    "async stream": lambda engine, request: asyncio.run(async_events(engine, request)),
}
WAYS = {
    "complete": lambda engine, request: engine.complete(request),
    "async complete": lambda engine, request: asyncio.run(async_response(engine, request)),
    **{
        name: lambda engine, request, events=events: lm15.materialize_response(
            iter(events(engine, request)), request
        )
        for name, events in STREAMS.items()
    },
}


@pytest.fixture(params=WAYS)
def ask(request):
    """One of the four ways to have a request answered."""
    return WAYS[request.param]


@pytest.fixture(params=STREAMS)
def events_of(request):
    """One of the two ways to have a request answered as a stream."""
    return STREAMS[request.param]


@pytest.fixture(params=["scripted", "computed"])
def model(request, tiny_loaded):
    """What the engine runs: an answer known beforehand, or a model that computes one."""
    return fake_model("Zürich 🏔, then Paris") if request.param == "scripted" else tiny_loaded


def failing(error):
    def script(prompt, request):
        raise error

    return fake_model(script)


# Responses and events


def test_each_way_gives_the_same_response(model, ask):
    engine = engine_of(model, seed=3, max_tokens=24)
    request = request_to(engine, max_tokens=16)
    engine.complete(request)  # from here on, as much of the prompt is in memory for each
    response = ask(engine, request)
    assert response == engine.complete(request)
    assert response.model == request.model
    assert response.message.role == "assistant"
    assert response.usage.total_tokens == (
        response.usage.input_tokens + response.usage.output_tokens
    )
    assert response.usage.output_tokens <= 16
    assert response.finish_reason in ("stop", "length")


def test_a_stream_is_a_start_then_deltas_then_one_end(model, events_of):
    engine = engine_of(model, seed=3)
    events = events_of(engine, request_to(engine, max_tokens=16))
    kinds = [event.type for event in events]
    assert kinds == ["start", *["delta"] * (len(kinds) - 2), "end"]
    assert len(kinds) > 3
    assert events[0].model == engine.model
    assert events[-1].usage.output_tokens > 0
    assert events[-1].finish_reason in ("stop", "length")
    assert all(event.delta.text for event in events[1:-1])


def test_an_empty_answer_is_a_message_with_an_empty_text(ask):
    engine = engine_of(fake_model(""))
    assert ask(engine, request_to(engine)).message == Message.assistant("")


def test_a_request_without_a_seed_draws_one_and_reports_it(model, ask):
    engine = engine_of(model)
    seeds = {ask(engine, request_to(engine, max_tokens=1)).provider_data["seed"] for _ in range(4)}
    assert len(seeds) == 4


def test_the_first_events_come_before_the_second_token():
    model = fake_model("Paris")
    engine = engine_of(model)
    events = engine.stream(request_to(engine))
    assert next(events).type == "start"
    assert model.generator.tokens_computed == 0
    assert next(events).delta.text == "P"
    assert model.generator.tokens_computed == 1
    events.close()


def test_capability_hints_are_of_dspys_types(model):
    engine = engine_of(model)
    for hint in ("supports_function_calling", "supports_reasoning", "supports_response_schema"):
        assert isinstance(getattr(engine, hint), bool)
    assert {"temperature", "max_tokens", "top_k", "seed", "stop"} <= set(engine.supported_params)
    assert lm_of(model).supported_params == set(engine.supported_params)


# Errors, and what DSPy makes of them


def call(lm):
    return lm("Hello")


def acall(lm):
    async def main():
        return await lm.acall("Hello")

    return asyncio.run(main())


def call_streamed(lm):
    """Call it as dspy.streamify does."""

    class Program(dspy.Module):
        def forward(self):
            return dspy.Prediction(outputs=lm("Hello"))

    async def main():
        *_, prediction = [value async for value in dspy.streamify(Program())()]
        return prediction.outputs

    return asyncio.run(main())


@pytest.fixture(params=[call, acall, call_streamed])
def call_lm(request):
    """One of the ways to call a dspy.LM."""
    return request.param


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.ContextTooLongError(50, 40), public.ContextWindowExceededError),
        (errors.InvalidParameterError("x", 1, "2"), public.LMInvalidRequestError),
        (errors.PromptError("no"), public.LMInvalidRequestError),
        (errors.ConfigurationError("no"), public.LMConfigurationError),
        (errors.ModelNotLoadedError("m", "load it"), public.LMConfigurationError),
        (errors.InferenceError("no"), public.LMProviderError),
        (errors.ResourceError("no"), public.LMProviderError),
        (ZeroDivisionError("a bug"), public.LMProviderError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_request_that_would_fail_again_is_not_repeated(error, expected, call_lm):
    model = failing(error)
    with pytest.raises(public.LMError) as caught:
        call_lm(lm_of(model))
    assert type(caught.value) is expected
    assert str(error) in str(caught.value)
    assert len(model.generator.requests) == 1


def test_an_unsupported_feature_keeps_its_name(call_lm):
    lm = lm_of(fake_model("x")).copy(logit_bias={}, best_of=2)
    with pytest.raises(public.LMUnsupportedFeatureError) as caught:
        call_lm(lm)
    assert "best_of" in str(caught.value)


def test_a_prompt_longer_than_the_context_is_refused_before_any_work(call_lm):
    model = fake_model("x", context_length=20)
    with pytest.raises(public.ContextWindowExceededError, match=r"22 tokens.*holds 20"):
        call_lm(lm_of(model))
    assert model.generator.requests == []


def test_adaptations_reach_the_history(call_lm):
    lm = lm_of(fake_model("x"))
    lm.kwargs["reasoning_effort"] = "low"
    call_lm(lm)
    assert [adaptation.field for adaptation in lm.history[-1]["adaptations"]]


# Threads


def test_threads_get_the_answers_that_they_get_alone(model):
    engine = engine_of(model, seed=5)
    requests = [request_to(engine, f"Hello {n}", max_tokens=8) for n in range(24)]
    alone = [engine.complete(request) for request in requests]
    ways = list(WAYS.values())
    with ThreadPoolExecutor(12) as threads:
        together = list(
            threads.map(lambda n: ways[n % len(ways)](engine, requests[n]), range(len(requests)))
        )
    assert together == alone


# Copies, saving and closing


def test_engines_are_shared_by_copies_and_refuse_pickling():
    engine = engine_of(fake_model("x"))
    twin = AsyncLlamaCppEngine(engine)
    for one in (engine, twin):
        assert copy.deepcopy(one) is one
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(one)


def test_a_saved_engine_is_found_again_while_it_lives():
    engine = engine_of(fake_model("x"), seed=8)
    state = json.loads(json.dumps(engine.dump_state()))
    assert LlamaCppEngine.load_state(state) is engine
    assert AsyncLlamaCppEngine.load_state(AsyncLlamaCppEngine(engine).dump_state()).engine is engine
    engine.close()
    elsewhere = engine_of(fake_model("x", computation=("NVIDIA H100",)), seed=8)
    assert elsewhere.model != engine.model
    assert LlamaCppEngine.load_state(state) is elsewhere
    elsewhere.close()
    other = engine_of(fake_model("x"), seed=9)  # other settings, other answers
    assert other.model != engine.model
    with pytest.raises(errors.ModelNotLoadedError, match=engine.model):
        LlamaCppEngine.load_state(state)


def test_a_closed_engine_refuses_calls(ask):
    engine = engine_of(fake_model("x"))
    engine.close()
    engine.close()
    with pytest.raises(lm15.ConfigurationError, match="closed"):
        ask(engine, request_to(engine))


def test_closing_the_lm_leaves_a_borrowed_engine_open():
    lm = lm_of(fake_model("x"))
    lm.close()
    assert lm("Hello") == ["x"]


def test_a_closed_twin_refuses_calls_and_its_engine_answers():
    engine = engine_of(fake_model("x"))
    twin = AsyncLlamaCppEngine(engine)

    async def main():
        await twin.aclose()
        await twin.complete(request_to(engine))

    with pytest.raises(lm15.ConfigurationError, match="closed"):
        asyncio.run(main())
    assert engine.complete(request_to(engine)).text == "x"
