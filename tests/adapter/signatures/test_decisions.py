"""Choice, Score, Noul, and plain fields with few values, measured by LlamaCppAdapter."""

from __future__ import annotations

import asyncio
import enum
from typing import Annotated, Literal

import dspy
import pytest
from dspy.experimental import Choice, Noul, Score
from fake_generator import adapter_of, fake_model

from adapter import ConfigurationError, LlamaCppDecisions
from adapter.signatures.decisions import confidence

Kind = Choice[("bill", "about money"), ("bug", "about a fault")]
Anger = Score["calm", "cross", "furious"]


class Triage(dspy.Signature):
    """Sort the ticket."""

    ticket: str = dspy.InputField()
    kind: Kind = dspy.OutputField(desc="What it is about")
    urgent: Noul = dspy.OutputField(desc="Must it be done today?")
    anger: Anger = dspy.OutputField(desc="How angry the writer is")


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Plain(dspy.Signature):
    """Sort the ticket."""

    ticket: str = dspy.InputField()
    kind: Literal["bill", "bug"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    mood: Mood = dspy.OutputField()
    level: Literal[1, 2] = dspy.OutputField()


def judging(answer="never asked", **shares):
    """A model that finds keys as likely as it is told."""
    model = fake_model(answer)
    model.generator.likelihood = lambda text: shares[text.rpartition(":")[2].strip()]
    return model


SHARES = {
    "bill": 0.1, "bug": 0.3, "True": 0.2, "False": 0.6, "0": 0.1, "1": 0.2, "2": 0.1,
    "good": 0.2, "bad": 0.1,
}  # fmt: skip


def test_decisions_are_measured(configured):
    model = judging(**SHARES)
    configured(model)
    found = dspy.Predict(Triage)(ticket="It burns")
    assert found.kind.value == "bug"
    assert found.kind.probabilities == pytest.approx({"bill": 0.25, "bug": 0.75})
    assert found.kind.confidence == pytest.approx(0.5)
    assert found.urgent.value is False
    assert found.urgent.probability == pytest.approx(0.25)
    assert found.urgent.confidence == pytest.approx(0.5)  # DSPy's own
    assert found.anger.value == pytest.approx(1.0)
    assert found.anger.probabilities == pytest.approx({0: 0.25, 1: 0.5, 2: 0.25})
    assert found.anger.confidence == pytest.approx(0.25)
    assert model.generator.requests == []  # nothing was generated
    assert len(model.generator.scored) == 1


def test_the_model_is_shown_questions_and_criteria_and_no_numbers(configured):
    model = judging(**SHARES)
    configured(model)
    dspy.Predict(Triage)(ticket="It burns")
    [system, user, _] = model.rendered[-1]
    assert (
        "kind: <What it is about (bill: about money; bug: about a fault); one of: bill, bug>"
        in (system["content"])
    )
    assert "urgent: <Must it be done today?; True or False>" in system["content"]
    assert "(0: calm; 1: cross; 2: furious); one of: 0, 1, 2>" in system["content"]
    assert "robabilit" not in system["content"]
    assert user["content"] == "ticket: It burns"


def test_other_fields_are_generated_first_and_the_decisions_see_them(configured):
    model = judging("reasoning: it is hot", **SHARES)
    configured(model)
    found = dspy.ChainOfThought(Triage)(ticket="It burns")
    assert found.reasoning == "it is hot"
    assert found.kind.value == "bug"
    assert list(found.keys()) == ["reasoning", "kind", "urgent", "anger"]
    [generated] = model.generator.requests
    assert "urgent" not in "".join(map(chr, generated.prompt))
    [scored] = model.generator.scored
    assert "".join(map(chr, scored.prompt)).endswith("Assistant: reasoning: it is hot\n")


def test_each_candidate_is_judged_by_its_own_fields(configured):
    answers = iter(["reasoning: one", "reasoning: two"])
    model = judging(lambda *_: next(answers), **SHARES)
    configured(model)
    found = dspy.ChainOfThought(Triage)(ticket="It burns", config={"n": 2})
    assert found.completions.reasoning == ["one", "two"]
    assert len(model.generator.scored) == 2


def test_candidates_that_only_decide_are_one_and_the_same(configured):
    model = judging(**SHARES)
    configured(model)
    found = dspy.Predict(Triage)(ticket="It burns", config={"n": 3})
    assert [kind.value for kind in found.completions.kind] == ["bug"] * 3
    assert len(model.generator.scored) == 1  # the others came out of DSPy's cache


def test_a_native_type_with_criteria_is_decided_too(configured):
    class Native(dspy.Signature):
        ticket: str = dspy.InputField()
        kind: Annotated[Literal["bill", "bug"], Kind] = dspy.OutputField(desc="What it is about")
        urgent: Annotated[bool, Noul[(True, "burning")]] = dspy.OutputField(desc="Today?")

    model = judging(**SHARES)
    configured(model)
    found = dspy.Predict(Native)(ticket="It burns")
    assert (found.kind, found.urgent) == ("bug", False)
    assert "urgent: <Today? (True: burning); True or False>" in model.rendered[-1][0]["content"]


def test_examples_are_turns_of_the_conversation(configured):
    model = judging(**SHARES)
    configured(model)
    predict = dspy.Predict(Triage)
    predict.demos = [
        {"ticket": "It is dear", "kind": "bill", "urgent": False, "anger": 1},
        {"ticket": "It smokes", **predict(ticket="It smokes").toDict()},
    ]
    predict(ticket="It burns")
    assert [message["content"] for message in model.rendered[-1]][1:-1] == [
        "ticket: It is dear",
        "kind: bill\nurgent: False\nanger: 1",
        "ticket: It smokes",
        "kind: bug\nurgent: False\nanger: 1",
        "ticket: It burns",
    ]
    assert "Task examples" not in model.rendered[-1][0]["content"]


def test_async(configured):
    model = judging("reasoning: hot", **SHARES)
    configured(model)
    found = asyncio.run(dspy.ChainOfThought(Triage).acall(ticket="It burns"))
    assert (found.kind.value, found.reasoning) == ("bug", "hot")


# DSPy's own adapters, by decision requests


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()])
def test_decisions_are_measured_under_any_adapter(configured, adapter):
    model = judging(**SHARES)
    ours = configured(model)
    with dspy.context(adapter=adapter):
        found = dspy.Predict(Triage)(lm=LlamaCppDecisions(ours.lm), ticket="It burns")
    assert found.kind.probabilities == pytest.approx({"bill": 0.25, "bug": 0.75})
    assert found.urgent.probability == pytest.approx(0.25)
    assert found.anger.probabilities == pytest.approx({0: 0.25, 1: 0.5, 2: 0.25})
    assert model.generator.requests == []


def test_a_decision_request_shows_what_the_adapter_shows(configured):
    model = judging(**SHARES)
    ours = configured(model)
    predict = dspy.Predict(Triage)
    predict.demos = [
        {"ticket": "It is dear", "kind": "bill", "urgent": False, "anger": 1},
        {"ticket": "It smokes", **predict(ticket="It smokes").toDict()},
    ]
    predict(ticket="It burns")
    shown = [message["content"] for message in model.rendered[-1]]
    predict(lm=LlamaCppDecisions(ours.lm), ticket="It burns")
    [system, *turns] = [message["content"] for message in model.rendered[-1]]
    assert turns == shown[1:]
    for line in shown[0].splitlines():
        assert line in system


def test_decision_requests_async_and_of_plain_types(configured):
    class Native(dspy.Signature):
        ticket: str = dspy.InputField()
        kind: Literal["bill", "bug"] = dspy.OutputField(desc="What it is about")
        urgent: bool = dspy.OutputField(desc="Today?")

    ours = configured(judging(**SHARES))
    lm = LlamaCppDecisions(ours.lm)
    found = asyncio.run(dspy.Predict(Native).acall(lm=lm, ticket="It burns"))
    assert (found.kind, found.urgent) == ("bug", False)


def test_an_lm_that_measures_nothing_answers_no_decision_requests():
    with pytest.raises(ConfigurationError, match="LlamaCppAdapter"):
        LlamaCppDecisions(dspy.LM("openai/gpt-4o-mini"))


def test_words_that_look_like_examples_are_left_alone(configured):
    model = judging(**SHARES)
    configured(model)
    asked = Triage.with_instructions('Sort it, as in\n\nthis list:\n["bill", "bug"]')
    dspy.Predict(asked)(ticket="It burns")
    assert '["bill", "bug"]' in model.rendered[-1][0]["content"]


# Plain fields, on demand


def test_plain_fields_are_picked_by_likelihood_on_demand(configured):
    model = judging(**SHARES)
    configured(model, pick_by_likelihood=True)
    found = dspy.Predict(Plain)(ticket="It burns")
    assert (found.kind, found.urgent, found.mood, found.level) == ("bug", False, Mood.GOOD, 1)
    assert model.generator.requests == []


def test_what_a_field_does_not_allow_is_not_picked(configured):
    class Sized(dspy.Signature):
        ticket: str = dspy.InputField()
        kind: Literal["bill", "bug"] = dspy.OutputField(min_length=4)

    model = judging(**SHARES)
    configured(model, pick_by_likelihood=True)
    assert dspy.Predict(Sized)(ticket="It burns").kind == "bill"
    assert len(model.generator.scored) == 1


def test_plain_fields_are_generated_otherwise(configured):
    model = judging("kind: bill\nurgent: True\nmood: bad\nlevel: 2", **SHARES)
    configured(model)
    found = dspy.Predict(Plain)(ticket="It burns")
    assert (found.kind, found.urgent, found.mood, found.level) == ("bill", True, Mood.BAD, 2)
    assert model.generator.scored == []


def test_demos_show_picked_fields_as_any_other(configured):
    model = judging(**SHARES)
    configured(model, pick_by_likelihood=True)
    predict = dspy.Predict("ticket -> kind: Literal['bill', 'bug']")
    predict.demos = [{"ticket": "It is dear", "kind": "bill"}]
    predict(ticket="It burns")
    assert [message["content"] for message in model.rendered[-1][1:]] == [
        "ticket: It is dear",
        "kind: bill",
        "ticket: It burns",
        "kind:",
    ]


def test_values_that_are_written_alike_are_generated(configured):
    model = judging("kind: 1", **SHARES)
    configured(model, pick_by_likelihood=True)
    assert dspy.Predict("ticket -> kind: Literal[1, '1']")(ticket="x").kind in (1, "1")
    assert model.generator.scored == []


def test_an_lm_of_another_kind_writes_its_own_numbers():
    """An optimizer's teacher, say: it has no logits to measure."""
    model = judging(**SHARES)
    adapter = adapter_of(model, route_other_lms=False)
    answer = {"kind": {"probabilities": {"bill": 0.9, "bug": 0.1}, "confidence": 0.7}}
    teacher = dspy.utils.DummyLM([answer], adapter=dspy.JSONAdapter())
    with dspy.context(lm=teacher, adapter=adapter):
        found = dspy.Predict(Triage.delete("urgent").delete("anger"))(ticket="x")
    assert (found.kind.value, found.kind.confidence) == ("bill", 0.7)
    assert model.generator.scored == []


def test_confidence_is_the_margin_of_the_first_two():
    assert confidence({"a": 0.7, "b": 0.2, "c": 0.1}) == pytest.approx(0.5)
    assert confidence({"a": 0.5, "b": 0.5}) == 0.0
    assert confidence({"a": 1.0}) == 1.0


# A real model


@pytest.mark.model
def test_a_real_model_decides(smollm2_adapter):
    smollm2_adapter()
    with dspy.context(adapter=dspy.settings.adapter):
        fire = dspy.Predict(Triage)(ticket="The printer is on fire!")
        again = dspy.Predict(Triage)(ticket="The printer is on fire!", config={"rollout_id": 2})
    assert sum(fire.kind.probabilities.values()) == pytest.approx(1)
    assert sum(fire.anger.probabilities.values()) == pytest.approx(1)
    assert 0 < fire.urgent.probability < 1
    assert again.toDict() == fire.toDict()
