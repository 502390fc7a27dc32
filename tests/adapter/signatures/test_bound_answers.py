"""Adapters whose answers follow a grammar: what is asked of which lm, and what becomes of cuts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Literal

import dspy
import pytest
from chats import TOOLS_AND_THINKING
from dspy.clients._deprecation import adapter_message_call
from dspy.utils.dummies import DummyLM
from dspy.utils.exceptions import AdapterParseError
from fake_generator import adapter_of, fake_model
from grammars import matches

import pyllama
from adapter import CutAnswerError, LlamaCppAdapter, constrained

RATED = "question -> answer, score: int"


def grammars(model):
    """The grammars of the requests so far."""
    return [request.constraint and request.constraint.gbnf for request in model.generator.requests]


def test_an_answer_is_bound_to_the_signature(configured):
    model = fake_model("answer: yes\nscore: 3")
    adapter = configured(model)
    assert dspy.Predict(RATED)(question="q").score == 3
    [gbnf] = grammars(model)
    assert '"answer:"' in gbnf
    assert '"score:"' in gbnf
    assert pyllama.Grammar(gbnf)
    assert adapter.lm.history[0]["kwargs"]["metadata"]["llamacpp"] == {
        "grammar": gbnf,
        "end_repetitions": True,
    }


def test_a_repeated_question_comes_from_dspys_cache(configured):
    model = fake_model("answer: yes\nscore: 3")
    configured(model)
    for _ in range(2):
        dspy.Predict(RATED)(question="q")
    assert len(model.generator.requests) == 1


def test_every_candidate_and_acall_are_bound(configured):
    model = fake_model("answer: yes\nscore: 3")
    configured(model)
    dspy.Predict(RATED, n=2)(question="q")
    asyncio.run(dspy.Predict(RATED).acall(question="r"))
    assert len(grammars(model)) == 3
    assert None not in grammars(model)


@pytest.mark.parametrize(
    "config",
    [
        {"metadata": {"llamacpp": {"grammar": 'root ::= "answer: x"'}}},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_the_caller_asked_for_goes_first(configured, config):
    model = fake_model('{"answer": "x"}')
    configured(model)
    assert dspy.Predict("question -> answer", **config)(question="q").answer
    assert '"answer:"' not in grammars(model)[0].partition("\n")[0]


def test_other_settings_of_llama_cpp_stay(configured):
    model = fake_model("answer: x")
    configured(model)
    dspy.Predict("question -> answer", metadata={"llamacpp": {"min_p": 0.2}})(question="q")
    [request] = model.generator.requests
    assert request.sampling.min_p == 0.2
    assert request.constraint is not None


@pytest.mark.parametrize("adapter", [LlamaCppAdapter(), constrained(dspy.ChatAdapter())])
def test_another_lm_is_asked_as_ever(adapter):
    lm = DummyLM([{"answer": "Paris"}])
    with dspy.context(lm=lm, adapter=adapter):
        assert "Paris" in dspy.Predict("question -> answer")(question="q").answer
    assert "metadata" not in lm.history[0]["kwargs"]


@pytest.mark.parametrize("kind", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_dspys_adapters_are_bound_by_choice(kind):
    texts = {
        dspy.ChatAdapter: "[[ ## answer ## ]]\n4\n\n[[ ## completed ## ]]",
        dspy.JSONAdapter: '{"answer": 4}',
        dspy.XMLAdapter: "<answer>\n4\n</answer>",
    }
    model = fake_model(texts[kind])
    lm = adapter_of(model).lm
    with dspy.context(lm=lm, adapter=constrained(kind())):
        assert dspy.Predict("question -> answer: int")(question="q").answer == 4
        assert asyncio.run(dspy.Predict("question -> answer: int").acall(question="r")).answer == 4
    for gbnf in grammars(model):
        assert pyllama.Grammar(gbnf)
    assert len(lm.history) == 2


# What max_tokens cuts off


@pytest.mark.parametrize("history", [True, False])
def test_half_a_number_is_reported_and_not_parsed(configured, history):
    text = "answer: yes\nscore: 12345"
    adapter = configured(fake_model(text), max_tokens=len(text) - 2)
    told = pytest.raises(CutAnswerError, match=f"max_tokens={len(text) - 2}")
    with dspy.context(disable_history=not history), told as caught:
        dspy.Predict(RATED)(question="q")
    assert isinstance(caught.value, AdapterParseError)
    assert caught.value.lm_response == text[:-2]
    assert len(adapter.lm.history) == history


def test_a_cut_answer_is_reported_out_of_the_cache_too(configured):
    model = fake_model("answer: yes\nscore: 12345")
    configured(model, max_tokens=20)
    for _ in range(2):
        with pytest.raises(CutAnswerError):
            dspy.Predict(RATED)(question="q")
    assert len(model.generator.requests) == 1  # nor is another form tried


def test_one_cut_candidate_of_several(configured):
    texts = iter(["answer: yes\nscore: 1", "answer: yes\nscore: 12345"])
    configured(fake_model(lambda *_: next(texts)), max_tokens=21)
    with pytest.raises(CutAnswerError):
        dspy.Predict(RATED, n=2)(question="q")


def test_a_text_at_the_end_is_delivered_as_far_as_it_goes(configured):
    configured(fake_model("score: 3\nanswer: a long one"), max_tokens=22)
    prediction = dspy.Predict("question -> score: int, answer")(question="q")
    assert (prediction.score, prediction.answer) == (3, "a lon")


def test_a_cut_before_a_field_with_a_default(configured):
    configured(fake_model("reasoning: on and on\nanswer: x"), max_tokens=15)
    signature = dspy.Signature("question -> reasoning, answer: str | None")
    with pytest.raises(CutAnswerError):
        dspy.Predict(signature)(question="q")


# Tools where the template has no form of calls


def add(first: int, second: Literal["two", "three"]) -> str:
    return f"{first} {second}"


def everything(**more) -> str:
    return str(more)


@pytest.mark.parametrize("annotation", [dspy.ToolCalls, dspy.ToolCalls | None])
@pytest.mark.parametrize("kind", [None, dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_calls_that_are_a_field_are_of_the_known_tools(tiny, kind, annotation):
    inputs = {
        name: (each, dspy.InputField())
        for name, each in (("question", str), ("tools", list[dspy.Tool]))
    }
    act = dspy.Predict(dspy.Signature({**inputs, "calls": (annotation, dspy.OutputField())}))

    texts = {
        None: "calls: {}",
        dspy.ChatAdapter: "[[ ## calls ## ]]\n{}\n\n[[ ## completed ## ]]",
        dspy.JSONAdapter: '{{"calls": {}}}',
        dspy.XMLAdapter: "<calls>\n{}\n</calls>",
    }

    def text(*calls):
        written = [{"name": name, "args": args} for name, args in calls]
        return texts[kind].format(json.dumps({"tool_calls": written} if kind else written))

    good = ("add", {"first": 1, "second": "two"}), ("everything", {"a": [1]})
    model = fake_model(text(*good))
    ours = adapter_of(model)
    adapter = constrained(kind()) if kind else ours
    with dspy.context(lm=ours.lm, adapter=adapter):
        tools = [dspy.Tool(add), dspy.Tool(everything)]
        if kind is dspy.XMLAdapter:  # DSPy's reads no JSON where it expects tags
            with contextlib.suppress(AdapterParseError):
                act(question="q", tools=tools)
        else:
            calls = act(question="q", tools=tools).calls
            assert [(call.name, call.args) for call in calls.tool_calls] == [*good]
    gbnf = grammars(model)[0]
    assert matches(tiny.vocab, pyllama.Grammar(gbnf), text(*good))
    assert matches(tiny.vocab, pyllama.Grammar(gbnf), text())
    for bad in (
        ("sub", {}),
        ("add", {}),
        ("add", {"first": "1", "second": "two"}),
        ("add", {"first": 1, "second": "four"}),
        ("add", {"first": 1, "second": "two", "third": 3}),
    ):
        assert not matches(tiny.vocab, pyllama.Grammar(gbnf), text(bad)), bad
    nothing = texts[kind].format("null")
    assert matches(tiny.vocab, pyllama.Grammar(gbnf), nothing) == (annotation != dspy.ToolCalls)


@pytest.mark.parametrize("kind", [None, dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_perhaps_there_are_no_calls(kind):
    texts = {
        None: "calls: null",
        dspy.ChatAdapter: "[[ ## calls ## ]]\nnull\n\n[[ ## completed ## ]]",
        dspy.JSONAdapter: '{"calls": null}',
        dspy.XMLAdapter: "<calls>\nnull\n</calls>",
    }
    ours = adapter_of(fake_model(texts[kind]))
    act = dspy.Predict("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls | None")
    with dspy.context(lm=ours.lm, adapter=constrained(kind()) if kind else ours):
        assert act(question="q", tools=[dspy.Tool(add)]).calls is None


@pytest.mark.parametrize("tools", [[dspy.Tool(add), dspy.Tool(everything)], []])
def test_a_call_without_demonstrations_is_one_object_and_no_list(tiny, configured, tools):
    """A small model that has begun a list goes on with calls that nobody asked for."""
    text = 'calls: {"name": "add", "args": {"first": 1, "second": "two"}}'
    model = fake_model(text)
    configured(model)
    act = dspy.Predict("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
    [call] = act(question="q", tools=tools).calls.tool_calls
    assert (call.name, call.args) == ("add", {"first": 1, "second": "two"})
    [gbnf] = grammars(model)
    assert matches(tiny.vocab, pyllama.Grammar(gbnf), text)
    earlier = 'calls: {"tool_calls": [{"name": "add", "args": {"first": 1, "second": "two"}}]}'
    assert matches(tiny.vocab, pyllama.Grammar(gbnf), earlier)  # as turns before it may show


def test_calls_after_demonstrations_have_the_form_of_those(tiny, configured):
    written = '{"tool_calls": [{"name": "add", "args": {"first": 1, "second": "two"}}]}'
    model = fake_model(f"calls: {written}")
    configured(model)
    act = dspy.Predict("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls")
    tools = [dspy.Tool(add)]
    shown = dspy.ToolCalls.from_dict_list([{"name": "add", "args": {"first": 1, "second": "two"}}])
    act.demos = [dspy.Example(question="p", tools=tools, calls=shown)]
    assert len(act(question="q", tools=tools).calls.tool_calls) == 1
    [gbnf] = grammars(model)
    assert not matches(tiny.vocab, pyllama.Grammar(gbnf), 'calls: {"name": "add", "args": {}}')


# Models that reason


def test_thoughts_stay_free(configured):
    model = fake_model(
        "<think>\nscore: x\n</think>\n\nanswer: y\nscore: 3", source=TOOLS_AND_THINKING
    )
    configured(model)
    assert dspy.Predict(RATED)(question="q").score == 3
    [gbnf] = grammars(model)
    assert "think" in gbnf
    assert "answer-itself ::=" in gbnf
    assert pyllama.Grammar(gbnf)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (None, "answer: y\nscore: 3"),
        (
            dspy.ChatAdapter,
            "[[ ## answer ## ]]\ny\n\n[[ ## score ## ]]\n3\n\n[[ ## completed ## ]]",
        ),
        (dspy.JSONAdapter, '{"answer": "y", "score": 3}'),
        (dspy.XMLAdapter, "<answer>\ny\n</answer>\n\n<score>\n3\n</score>"),
    ],
)
def test_space_between_thoughts_and_answer_changes_nothing(kind, answer):
    model = fake_model(f"<think>\nhm\n</think>\n\n\t {answer}", source=TOOLS_AND_THINKING)
    ours = adapter_of(model)
    with dspy.context(lm=ours.lm, adapter=constrained(kind()) if kind else ours):
        found = dspy.Predict(RATED)(question="q")
    assert (found.answer, found.score) == ("y", 3)


def test_an_answer_that_was_all_thoughts_is_reported_as_that(configured):
    text = "<think>\n" + "hm, " * 50
    adapter = configured(fake_model(text, source=TOOLS_AND_THINKING), max_tokens=60)
    with pytest.raises(CutAnswerError, match=r"thought until.*=60.*reasoning_budget_tokens"):
        dspy.Predict(RATED)(question="q")
    assert len(adapter.lm.history) == 1
    # What the error proposes is taken.
    for settings in (
        {"metadata": {"llamacpp": {"reasoning_budget_tokens": 5}}},
        {"reasoning_effort": "off"},
    ):
        with pytest.raises(CutAnswerError):
            dspy.Predict(RATED, **settings)(question="q")


@pytest.mark.parametrize("answer", ["I would rather talk.", "<think>\nI think.\n</think>\n\n", ""])
@pytest.mark.parametrize("kind", [None, dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_text_where_calls_alone_were_asked_for_is_no_call_and_no_error(kind, answer):
    class Act(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    model = fake_model(answer, source=TOOLS_AND_THINKING)
    ours = adapter_of(model)
    adapter = constrained(kind(use_native_function_calling=True)) if kind else ours
    with dspy.context(lm=ours.lm, adapter=adapter):
        assert dspy.Predict(Act)(question="q", tools=[dspy.Tool(add)]).calls is None
    assert len(model.generator.requests) == 1


# The real model


@pytest.mark.model
def test_smollm2_answers_in_form(smollm2_adapter):
    smollm2_adapter(max_tokens=120, temperature=1.0, seed=3)

    class Triage(dspy.Signature):
        ticket: str = dspy.InputField()
        urgency: Literal["low", "high"] = dspy.OutputField()
        tags: list[Literal["fire", "paper", "network"]] = dspy.OutputField(max_length=3)
        score: float = dspy.OutputField(ge=0, le=1)

    for ticket in ("The printer is on fire", "No paper", "Wifi is slow"):
        triage = dspy.Predict(Triage)(ticket=ticket)
        assert triage.urgency in ("low", "high")
        assert set(triage.tags) <= {"fire", "paper", "network"}
        assert 0 <= triage.score <= 1


@pytest.mark.model
def test_chain_of_thought_without_an_example(smollm2_adapter):
    """What SmolLM2 makes of it by itself, and bound: greedy, so the same each time."""
    ours = smollm2_adapter(max_tokens=60)
    think = dspy.ChainOfThought("question -> answer: int")
    questions = [f"What is {n} + {n + 1}?" for n in range(6)]
    parsed = {"unbound": 0, "bound": 0}
    for question in questions:
        messages = ours.format(think.predict.signature, [], {"question": question})
        with adapter_message_call(ours.lm, messages):
            [text] = ours.lm(messages=messages)
        with contextlib.suppress(AdapterParseError):
            ours.parse(think.predict.signature, text)
            parsed["unbound"] += 1
        with contextlib.suppress(CutAnswerError):
            assert isinstance(think(question=question).answer, int)
            parsed["bound"] += 1
    assert parsed["bound"] == len(questions)
    assert parsed["unbound"] < parsed["bound"]


@pytest.mark.model
def test_whatever_smollm2_completes_parses(smollm2_loaded):
    """Two random cases in each form, at temperature 1.5; structured_outputs.py runs thousands."""
    from structured_outputs import Trial, cases

    trial = Trial(smollm2_loaded, max_tokens=48)

    @cases(2 * len(trial.forms))
    def run(signature, schema, number):
        trial.run(signature, schema, number)

    run()
    assert trial.done >= 2 * len(trial.forms)
    assert any("completed" in kind for kind in trial.counts)
