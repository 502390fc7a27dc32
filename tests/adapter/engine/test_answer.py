"""Reasoning and tool calls in answers, whole and streamed: a real format, a scripted model."""

from __future__ import annotations

import json

import pytest
from chats import TOOLS_AND_THINKING
from dspy.clients.engines.stream_guard import checked_stream
from dspy.lm15 import Config, FunctionTool, Message, Request, TextPart, ThinkingPart, ToolCallPart
from fake_generator import fake_model
from templated import templates

from adapter.engine.call_text import CallText, read_arguments
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine

ADD = FunctionTool(
    "add",
    "Adds.",
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
)
THOUGHT = "<think>\nTwo and two.</think>\n\n"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'


def both(answer, *, tools=(), **config):
    """The response to a request, whole and put together from its stream."""
    model = fake_model(answer, source=TOOLS_AND_THINKING)
    engine = LlamaCppEngine(model, LlamaCppConfig(model.name, seed=1))
    request = Request(engine.model, (Message.user("2 + 2?"),), tools=tools, config=Config(**config))
    return engine.complete(request), list(checked_stream(engine.stream(request)))


def deltas(events, kind):
    return [e.delta for e in events if e.type == "delta" and e.delta.type == kind]


def test_reasoning_is_a_part_of_its_own():
    response, events = both(THOUGHT + "Four.")
    assert response.message.parts == (ThinkingPart("Two and two."), TextPart("Four."))
    assert response.finish_reason == "stop"
    assert "".join(delta.text for delta in deltas(events, "thinking")) == "Two and two."
    assert "".join(delta.text for delta in deltas(events, "text")) == "Four."
    assert {delta.part_index for delta in deltas(events, "thinking")} == {0}
    assert {delta.part_index for delta in deltas(events, "text")} == {1}
    assert len(deltas(events, "text")) > 2


def test_tokens_of_reasoning_are_counted():
    """The fake model has a token for each character."""
    response, events = both(THOUGHT + "Four.")
    assert response.usage.reasoning_tokens == len(THOUGHT)
    assert response.usage.output_tokens == len(THOUGHT) + 5
    assert events[-1].usage == response.usage


def test_an_answer_without_reasoning_has_no_such_tokens():
    response, _ = both("Four.")
    assert response.message.parts == (TextPart("Four."),)
    assert response.usage.reasoning_tokens is None


def test_reasoning_that_was_cut_off_is_no_text():
    response, events = both(THOUGHT + "Four.", max_tokens=15)
    assert response.finish_reason == events[-1].finish_reason == "length"
    assert response.message.parts[0] == ThinkingPart("Two and")
    assert response.text == ""


def test_a_call():
    response, events = both(CALL, tools=(ADD,))
    [part] = response.message.parts
    assert isinstance(part, ToolCallPart)
    assert (part.name, part.input) == ("add", {"a": 2, "b": 2})
    assert part.id
    assert response.finish_reason == events[-1].finish_reason == "tool_call"
    first, *others = deltas(events, "tool_call")
    assert first.name == "add"
    assert first.id
    assert all(other.name is None for other in others)
    assert "".join(d.input for d in [first, *others]).replace(" ", "") == '{"a":2,"b":2}'


def test_text_before_a_call_and_two_calls():
    response, events = both("I add.\n" + CALL + "\n" + CALL, tools=(ADD,), tool_choice=None)
    assert [part.type for part in response.message.parts] == ["text", "tool_call", "tool_call"]
    assert response.message.parts[0].text.strip() == "I add."
    assert len({part.id for part in response.message.parts[1:]}) == 2
    assert {delta.part_index for delta in deltas(events, "tool_call")} == {1, 2}


def test_a_call_that_was_cut_off_is_no_call():
    response, events = both(CALL, tools=(ADD,), max_tokens=40)
    assert response.finish_reason == events[-1].finish_reason == "length"
    assert not any(isinstance(part, ToolCallPart) for part in response.message.parts)


def test_calls_before_the_one_that_was_cut_off_are_calls():
    response, events = both(CALL + "\n" + CALL, tools=(ADD,), max_tokens=len(CALL) + 40)
    assert response.finish_reason == events[-1].finish_reason == "length"
    [call] = response.message.parts_of(ToolCallPart)
    assert call.input == {"a": 2, "b": 2}


def test_an_empty_answer_with_tools_is_an_empty_text():
    response, _ = both("", tools=(ADD,))
    assert response.message.parts == (TextPart(""),)


@pytest.mark.parametrize("answer", ["Four.", THOUGHT + "Four.", CALL, "I add.\n" + CALL])
def test_the_stream_adds_up_to_the_answer(answer):
    response, events = both(answer, tools=(ADD,))
    for kind in ("text", "thinking"):
        whole = "".join(part.text for part in response.message.parts if part.type == kind)
        assert "".join(delta.text for delta in deltas(events, kind)) == whole
    assert events[-1].finish_reason == response.finish_reason
    assert events[-1].usage == response.usage


@pytest.mark.download
@pytest.mark.parametrize("name", ["LFM2-8B-A1B", "LFM2.5-8B-A1B"])
def test_arguments_may_hold_control_characters(name):
    tool = FunctionTool("note", "Notes.", {"type": "object", "properties": {"a": {}, "b": {}}})
    answer = '<|tool_call_start|>[note(a="x\n\x01y", b="\\\\\t\'")]<|tool_call_end|>'
    model = fake_model(answer, source=templates()[name])
    engine = LlamaCppEngine(model, LlamaCppConfig(model.name, seed=1))
    request = Request(engine.model, (Message.user("Hi"),), tools=(tool,), config=Config())
    wanted = {"a": "x\n\x01y", "b": "\\\t'"}
    [call] = engine.complete(request).message.parts_of(ToolCallPart)
    assert call.input == wanted
    events = list(checked_stream(engine.stream(request)))
    assert json.loads("".join(one.input for one in deltas(events, "tool_call"))) == wanted


def test_white_space_between_arguments_stays_in_a_stream():
    text = '{\n\t"a": "x\\"\n",\r\n"b\\\\": 1}'
    for size in range(len(text)):
        written = CallText()
        assert written.push(text[:size]) + written.push(text[size:]) == text.replace(
            '\\"\n"', '\\"\\n"'
        )


@pytest.mark.parametrize("number", ["1e999", "-2e400", "NaN", "-Infinity"])
def test_arguments_with_numbers_that_no_float_holds_are_the_models_fault(number):
    with pytest.raises(ValueError, match="number"):
        read_arguments(f'{{"a": [{number}]}}')
    assert read_arguments('{"a": 1e300}') == {"a": 1e300}
