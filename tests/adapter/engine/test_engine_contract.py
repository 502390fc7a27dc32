"""What DSPy asks of an engine, stated once and asked of each of ours.

An engine is one attempt at one candidate. It is asked in four ways: whole or as a stream, by a
thread or on an event loop. Whatever the way and whatever computes, the same rules hold. The
cache, retries, n, rollouts and errors are DSPy's, seen through the real dspy.LM.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from dspy import lm15
from dspy.clients.engines.stream_guard import achecked_stream, checked_stream
from dspy.lm15 import Config, Message, Request
from dspy.utils import exceptions as public
from fake_generator import fake_model

from adapter import errors
from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.language_model import language_model
from adapter.generation import thread_start
from adapter.models.pool import ModelPool
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter


def engine_of(model, **settings):
    return LlamaCppEngine(model, LlamaCppConfig(model.name, **settings))


def lm_of(model, **settings):
    return language_model(model, LlamaCppConfig(model.name, **settings))


def request_to(engine, text="Hello", **config):
    return Request(model=engine.model, messages=(Message.user(text),), config=Config(**config))


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


@pytest.fixture(scope="module")
def tiny_loaded(tiny_model_path):
    """Real tokens, of random weights."""
    with ModelPool(tiny_model_path.parent, context_length=256) as pool:
        yield pool.load_model(tiny_model_path.stem)


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


def test_a_request_without_a_seed_draws_one_and_tells(model, ask):
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
        (errors.TokenizationError("no"), public.LMInvalidRequestError),
        (errors.ConfigurationError("no"), public.LMConfigurationError),
        (errors.ModelNotLoadedError("m", "load it"), public.LMConfigurationError),
        (errors.InferenceError("no"), public.LMProviderError),
        (errors.BackendError("no"), public.LMProviderError),
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


# DSPy's cache, candidates and rollouts


def test_a_repeated_call_is_answered_by_the_cache_and_another_rollout_is_not():
    model = fake_model(lambda _, request: str(request.seed))
    lm = lm_of(model)
    first = lm("Hello")
    assert lm("Hello") == first
    second = lm("Hello", rollout_id=1)
    assert second != first
    assert lm("Hello", rollout_id=1) == second
    assert len(model.generator.requests) == 2


def test_no_two_models_or_configs_answer_for_each_other():
    def named(answer, **changes):
        return fake_model(answer, **changes)

    lms = [
        lm_of(named("base")),
        lm_of(named("other weights", fingerprint="ff00")),
        lm_of(named("other name", name="other")),
        lm_of(named("loaded shorter", context_length=2048)),
        lm_of(named("computed elsewhere", computation=("NVIDIA H100", "threads=1"))),
        lm_of(named("not reproducible", computation=("threads=1", "reproducible=False"))),
        *(
            lm_of(named(" ".join(setting)), **setting)
            for setting in (
                {"context_length": 2048},
                {"max_tokens": 33},
                {"temperature": 0.1},
                {"top_p": 0.5},
                {"top_k": 3},
                {"min_p": 0.3},
                {"repeat_penalty": 1.5},
                {"seed": 1},
                {"stop": ("x y z",)},
                {"token_budget_limit": 10_000},
                {"execution": "isolated"},
            )
        ),
    ]
    for _ in range(2):
        answers = [lm("Hello", temperature=0.5, max_tokens=50)[0] for lm in lms]
        assert answers == [lm.engine.loaded.generator.script("", None) for lm in lms]
    assert all(len(lm.engine.loaded.generator.requests) == 1 for lm in lms)
    assert len({lm.model for lm in lms}) == len(lms)


@pytest.mark.parametrize("name", ["o1", "o3-mini", "gpt-5-nano", "openai"])
def test_a_models_name_is_never_taken_for_openais(name):
    lm = lm_of(fake_model("x", name=name), max_tokens=10, temperature=0.5)
    assert lm.kwargs["max_tokens"] == 10
    assert type(lm.provider) is dspy.Provider


def seeds_of(call, lm, **settings):
    """The seeds that the candidates of a call were sampled with."""
    if call == "acall":
        return asyncio.run(lm.acall("Hello", **settings))
    return lm("Hello", **settings)


@pytest.mark.parametrize("call", ["call", "acall"])
def test_candidates_and_rollouts_have_seeds_of_their_own_that_stay(call):
    """Without a seed they are drawn; from a seed they follow."""
    model = fake_model(lambda _, request: str(request.seed))

    def asked(**settings):
        lm = lm_of(model, enable_cache=False, seed=settings.pop("seed", 7))
        return seeds_of(call, lm, **settings)

    assert asked() == ["7"]
    assert len({*asked(seed=None, n=5), *asked(seed=None, n=5)}) == 10
    candidates = asked(n=5)
    assert candidates[0] == "7"
    rollouts = [asked(rollout_id=rollout)[0] for rollout in range(5)]
    both = [seed for rollout in range(5) for seed in asked(n=3, rollout_id=rollout)]
    assert len({*candidates, *both}) == 5 + 15
    assert both[::3] == rollouts
    assert asked(n=5) == candidates
    assert [asked(rollout_id=rollout)[0] for rollout in range(5)] == rollouts
    assert asked(seed=8, n=5) != candidates
    # Each is reproduced by the seed that its response tells.
    assert [asked(seed=int(seed))[0] for seed in both] == both


def test_a_candidate_that_is_tried_again_keeps_its_seed(monkeypatch):
    failures = iter(
        [None, errors.QueueFullError(1, 0.0), errors.QueueFullError(1, 0.0), None, None]
    )

    def script(_, request):
        if error := next(failures):
            raise error
        return str(request.seed)

    monkeypatch.setattr("time.sleep", lambda _: None)
    tried_again = lm_of(fake_model(script), seed=7)("Hello", n=3)
    assert tried_again == lm_of(fake_model(lambda _, request: str(request.seed)), seed=7)(
        "Hello", n=3
    )


def test_streamed_candidates_have_seeds_of_their_own():
    model = fake_model(lambda _, request: f"[[ ## answer ## ]]\n{request.seed}")
    lm = lm_of(model, seed=7, enable_cache=False)
    program = dspy.streamify(dspy.Predict("question -> answer", n=3))

    async def main():
        with dspy.context(lm=lm):
            return [chunk async for chunk in program(question="Hello")]

    asyncio.run(main())
    assert len({request.seed for request in model.generator.requests}) == 3


def test_best_of_n_has_different_candidates_with_a_fixed_seed():
    model = fake_model(lambda _, request: f"answer: {request.seed}")
    adapter = LlamaCppAdapter.from_loaded_model(model, LlamaCppConfig(model.name, seed=1))
    runs = []
    for _ in range(2):
        seen = []
        best = dspy.BestOfN(
            module=dspy.Predict("question -> answer"),
            N=4,
            reward_fn=lambda _, prediction, seen=seen: seen.append(prediction.answer) or 0.0,
            threshold=1.0,
        )
        with dspy.context(lm=adapter.lm, adapter=adapter):
            best(question="Hello")
        runs.append(seen)
    assert len(set(runs[0])) == 4
    assert runs[0] == runs[1]


def test_the_tokens_of_all_candidates_are_counted():
    lm = lm_of(fake_model("four"))
    lm("Hello", n=3)
    assert lm.history[-1]["usage"]["completion_tokens"] == 3 * len("four")


# Cancelling


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
    before = engine.complete(request)
    events = engine.stream(request)
    next(events), next(events)
    events.close()
    assert engine.complete(request) == before


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
