"""The steps of a dspy.ReAct: arguments follow the tool that was named."""

from __future__ import annotations

import json

import dspy
import pytest
from fake_generator import fake_model
from grammars import matches

import pyllama
from adapter.signatures.llama_cpp_adapter import MAX_THOUGHT


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is sunny in {city}."


def step(name, arguments, thought="I think."):
    return (
        f"next_thought: {thought}\nnext_tool_name: {name}\nnext_tool_args: {json.dumps(arguments)}"
    )


def test_a_steps_arguments_are_those_of_its_tool(tiny, configured):
    texts = iter([step("add", {"a": 2, "b": 3}), step("finish", {}), "reasoning: r\nanswer: 5"])
    model = fake_model(lambda _prompt, _request: next(texts))
    configured(model)
    answered = dspy.ReAct("question -> answer", tools=[add, weather])(question="What is 2 + 3?")
    assert (answered.answer, answered.trajectory["observation_0"]) == ("5", 5)
    first, _, last = (request.constraint.gbnf for request in model.generator.requests)

    def takes(text):
        return matches(tiny.vocab, pyllama.Grammar(first), text)

    assert takes(step("weather", {"city": "Oslo"}))
    assert takes(step("finish", {}))
    for name, arguments in [
        ("weather", {"a": 2, "b": 3}), ("add", {"a": 2}), ("add", {"a": "2", "b": 3}),
        ("add", {"a": 2, "b": 3, "c": 4}), ("finish", {"answer": "5"}), ("sub", {}),
    ]:  # fmt: skip
        assert not takes(step(name, arguments)), (name, arguments)
    assert takes(step("finish", {}, thought="x" * MAX_THOUGHT))
    for thought in ("I think.\nAnd I think.", "x" * (MAX_THOUGHT + 1)):
        assert not takes(step("finish", {}, thought=thought))
    assert "next_tool" not in last
    for reasoning, is_taken in [("It is 5.", True), ("It is 5.\nthought_2: It is 5.", False)]:
        text = f"reasoning: {reasoning}\nanswer: 5"
        assert matches(tiny.vocab, pyllama.Grammar(last), text) == is_taken


def test_a_thought_has_more_lines_where_a_demonstration_shows_them(tiny, configured):
    model = fake_model(step("finish", {}))
    configured(model)
    agent = dspy.ReAct("question -> answer", tools=[add])
    shown = {"next_thought": "a\nb", "next_tool_name": "finish", "next_tool_args": {}}
    agent.react.demos = [dspy.Example(question="q", trajectory="", **shown)]
    agent.react(question="q", trajectory="")
    with dspy.context(caller_modules=[agent]):
        agent.react(question="another", trajectory="")
    free, of_the_agent = (request.constraint.gbnf for request in model.generator.requests)
    text = step("finish", {}, thought="a\nb")
    assert matches(tiny.vocab, pyllama.Grammar(of_the_agent), text)
    assert matches(tiny.vocab, pyllama.Grammar(free), step("add", {"c": 1}))


def test_fields_of_these_names_elsewhere_are_fields_like_others(configured):
    model = fake_model("next_tool_name: add\nnext_tool_args: {}")
    configured(model)
    signature = dspy.Signature("question -> next_tool_name, next_tool_args: dict[str, int]")
    assert dspy.Predict(signature)(question="q").next_tool_args == {}


@pytest.mark.model
def test_react_ends_with_an_answer_without_an_example(smollm2_adapter):
    smollm2_adapter(max_tokens=100)
    answered = dspy.ReAct("question -> answer", tools=[add, weather], max_iters=2)(
        question="What is 2 plus 3?"
    )
    assert isinstance(answered.answer, str)
