"""Agents with a real model: two tools in a row, natively and as fields; and conversations."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import dspy
import pytest
from chats import TOOLS
from dspy.adapters.types.tool import ToolCallResults
from dspy.lm15 import Config, FunctionTool, Message, Request, ToolCallPart, ToolChoice

from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.generation.memory.blocks import CHUNK
from adapter.models.hardware import HardwareManager
from adapter.models.pool import ModelPool
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter

pytestmark = pytest.mark.model

CITIES = {"Ann": "Paris", "Bob": "Rome", "Eve": "Oslo"}
WEATHER = {"Paris": "rain", "Rome": "sun", "Oslo": "snow", "London": "fog", "Berlin": "snow"}


@pytest.fixture(scope="module")
def calling(smollm2_path, tmp_path_factory):
    """SmolLM2 with a chat template that has tools; it was not trained with one.

    On the CPU: which tool so small a model calls can turn on the rounding of a backend.
    """
    path = tmp_path_factory.mktemp("calling") / "calling.gguf"
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", TOOLS]
    subprocess.run([*command, smollm2_path, path], check=True, capture_output=True)
    hardware = HardwareManager(backend="cpu")
    with ModelPool(path.parent, context_length=2048, hardware=hardware) as pool:
        yield pool.load_model(path.stem)


@pytest.fixture
def called():
    return []


@pytest.fixture
def tools(called):
    def city_of(person: str) -> str:
        """Tell the city where a person lives."""
        called.append(("city_of", person))
        return CITIES[person]

    def weather_in(city: str) -> str:
        """Tell the weather in a city."""
        called.append(("weather_in", city))
        return WEATHER[city]

    return [city_of, weather_in]


def question(person):
    return f"What is the weather where {person} lives?"


def turn(call_id, name, arguments, result, **inputs):
    """A turn of a conversation in which a tool was called."""
    calls = dspy.ToolCalls.from_dict_list([{"id": call_id, "name": name, "args": arguments}])
    results = ToolCallResults.from_tool_calls_and_values(calls, [result], [False])
    return {**inputs, "tool_calls": calls.model_copy(update={"tool_call_results": results})}


def shown_how(*people):
    """A conversation in which such questions were answered by calling tools."""
    turns = []
    for person in people:
        city = CITIES[person]
        weather = WEATHER[city]
        turns += [
            turn(f"{person}1", "city_of", {"person": person}, city, question=question(person)),
            turn(f"{person}2", "weather_in", {"city": city}, weather),
            turn(f"{person}3", "submit", {"answer": weather}, {"answer": weather}),
        ]
    return dspy.History(messages=turns)


@pytest.mark.parametrize("make_adapter", [None, dspy.JSONAdapter])
def test_react_v2_calls_two_tools_natively(calling, tools, called, make_adapter):
    config = LlamaCppConfig(calling.name, temperature=0.0, max_tokens=80)
    adapter = LlamaCppAdapter.from_loaded_model(calling, config)
    assert adapter.lm.supports_function_calling
    agent = dspy.ReActV2("question -> answer", tools=tools, max_iters=4)
    with dspy.context(lm=adapter.lm, adapter=make_adapter() if make_adapter else adapter):
        found = agent(question=question("Eve"), history=shown_how("Ann", "Bob"))
    assert called == [("city_of", "Eve"), ("weather_in", "Oslo")]
    assert (found.answer, found.termination_reason) == ("snow", "submit")
    if make_adapter is not None:  # dspy's own show each question in another way once it is history
        return
    # Each turn goes on from what the one before it left in memory.
    usages = [entry["usage"] for entry in adapter.lm.history]
    for before, after in itertools.pairwise(usages):
        whole = (before["prompt_tokens"] - 1) // CHUNK * CHUNK
        assert after["prompt_tokens_details"]["cached_tokens"] >= whole


def test_react_v2_ends_with_a_forced_submit(calling, tools):
    """Without examples this model calls nothing; the grammar makes it submit all the same."""
    config = LlamaCppConfig(calling.name, temperature=0.0, max_tokens=80)
    adapter = LlamaCppAdapter.from_loaded_model(calling, config)
    agent = dspy.ReActV2("question -> answer: int", tools=tools, max_iters=1)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        found = agent(question="How many people live in Eve's house?")
    assert isinstance(found.answer, int)
    assert found.termination_reason == "forced_submit"


def test_react_calls_two_tools_as_fields(calling, tools, called, monkeypatch):
    monkeypatch.setitem(CITIES, "Bob", "London")  # names that this model copies without a slip
    monkeypatch.setitem(CITIES, "Eve", "Berlin")
    config = LlamaCppConfig(calling.name, temperature=0.0, max_tokens=40)
    adapter = LlamaCppAdapter.from_loaded_model(calling, config)
    agent = dspy.ReAct("question -> answer", tools=tools, max_iters=3)
    agent.react.demos = [step for person in ("Ann", "Bob") for step in trajectory(person)]
    agent.extract.predict.demos = [
        dspy.Example(
            question=question(person),
            trajectory=shown,
            reasoning=f"The tool says {weather}.",
            answer=weather,
        )
        for person, weather, shown in [
            ("Ann", "rain", "rain"),
            ("Bob", "fog", f"{trajectory('Bob')[-1]['trajectory']}\n{DONE}"),
        ]
    ]
    with dspy.context(lm=adapter.lm, adapter=adapter):
        found = agent(question=question("Eve"))
    assert called == [("city_of", "Eve"), ("weather_in", "Berlin")]
    assert found.answer == "snow"


DONE = "thought_2: All is known.\ntool_name_2: finish\ntool_args_2: {}\nobservation_2: Completed."


def trajectory(person):
    """The steps of a ReAct agent, as demonstrations."""
    city = CITIES[person]
    steps = [
        ("Find the city.", "city_of", {"person": person}, city),
        ("Find the weather.", "weather_in", {"city": city}, WEATHER[city]),
        ("All is known.", "finish", {}, "Completed."),
    ]
    demos, lines = [], []
    for index, (thought, name, arguments, observation) in enumerate(steps):
        demos.append(
            dspy.Example(
                question=question(person),
                trajectory="\n".join(lines),
                next_thought=thought,
                next_tool_name=name,
                next_tool_args=arguments,
            )
        )
        lines += [
            f"thought_{index}: {thought}",
            f"tool_name_{index}: {name}",
            f"tool_args_{index}: {json.dumps(arguments)}",
            f"observation_{index}: {observation}",
        ]
    return demos


# What tool_choice says, against a model that would do anything

ADD = FunctionTool(
    "add",
    "Adds.",
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}},
        "required": ["a"],
    },
)
STOP = FunctionTool("stop", "Stops.", {"type": "object", "properties": {}})


@pytest.fixture(scope="module")
def engine(calling):
    config = LlamaCppConfig(calling.name, temperature=1.5, max_tokens=60)
    return LlamaCppEngine(calling, config)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("choice", "allowed"),
    [
        (ToolChoice("required"), {"add", "stop"}),
        (ToolChoice("required", allowed=("stop",)), {"stop"}),
        (ToolChoice("none"), set()),
    ],
)
def test_tool_choice_is_enforced(engine, choice, allowed, seed):
    config = Config(tool_choice=choice, seed=seed)
    request = Request(
        engine.model, (Message.user("Tell me a story."),), tools=(ADD, STOP), config=config
    )
    response = engine.complete(request)
    calls = response.message.parts_of(ToolCallPart)
    assert {call.name for call in calls} <= allowed
    if allowed and response.finish_reason != "length":
        assert calls
        assert response.finish_reason == "tool_call"
        assert all(isinstance(call.input.get("a", 0), int) for call in calls)
    streamed = {
        event.delta.name
        for event in engine.stream(request)
        if event.type == "delta" and event.delta.type == "tool_call" and event.delta.name
    }
    assert streamed <= allowed
    assert bool(streamed) == bool(allowed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", [None, ToolChoice("auto")])
def test_a_model_that_may_call_calls_well_or_answers(engine, choice, seed):
    config = Config(tool_choice=choice, seed=seed)
    example = (
        'To add 1, I write:\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    )
    messages = (Message.user("Add 1."), Message.assistant(example), Message.user("Add 2."))
    response = engine.complete(Request(engine.model, messages, tools=(ADD, STOP), config=config))
    calls = response.message.parts_of(ToolCallPart)
    assert {call.name for call in calls} <= {"add", "stop"}
    assert (response.finish_reason == "tool_call") == bool(calls) or (
        response.finish_reason == "length"
    )
    assert calls or response.text
    if response.finish_reason == "tool_call":
        assert all(call.input.get("a", 0) <= 99 for call in calls)


# Conversations


def test_a_turn_of_a_conversation_builds_on_the_one_before(smollm2_adapter):
    adapter = smollm2_adapter(max_tokens=40)

    class Talk(dspy.Signature):
        """Answer in a sentence."""

        question: str = dspy.InputField()
        history: dspy.History = dspy.InputField()
        answer: str = dspy.OutputField()

    talk, turns = dspy.Predict(Talk), []
    for asked in (
        "What is the capital of France? Tell me something about the city and its history, please.",
        "And the capital of Spain? What do people there like to eat and to drink?",
        "Which one of the two is larger, and which one is older?",
        "Thank you. Where should I go first?",
    ):
        found = talk(question=asked, history=dspy.History(messages=turns))
        turns.append({"question": asked, "answer": found.answer})
    usages = [entry["usage"] for entry in adapter.lm.history]
    for before, after in itertools.pairwise(usages):
        whole = (before["prompt_tokens"] - 1) // CHUNK * CHUNK
        assert after["prompt_tokens_details"]["cached_tokens"] >= whole
    assert usages[-1]["prompt_tokens_details"]["cached_tokens"] >= CHUNK
