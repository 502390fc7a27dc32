"""Prompts of signatures and demonstrations that came before are as those that are made anew."""

from __future__ import annotations

import copy
import enum
from typing import Any, Literal

import dspy
import pydantic
import pytest

from adapter import LlamaCppAdapter
from adapter.signatures.formatting import shortened_lists
from adapter.signatures.repeated_calls import RepeatedCall


class Anew(LlamaCppAdapter):
    """Keeps no messages: its methods might be another's."""


class Ticket(dspy.Signature):
    """Read a ticket."""

    ticket: str = dspy.InputField(desc="what was written")
    thing: str = dspy.OutputField(desc="what is broken")
    count: int = dspy.OutputField(ge=0)
    urgency: Literal["low", "high"] = dspy.OutputField()


class Colour(enum.Enum):
    RED = "red"


class Owner(pydantic.BaseModel):
    name: str


DEMOS: list[dict[str, Any]] = [
    {"ticket": "The lift hums.", "thing": "lift", "count": 1, "urgency": "low"},
    {"ticket": "Fire!", "thing": "kitchen", "count": 2, "urgency": "high"},
]


def same(signature: type[dspy.Signature], demos: list[Any]) -> list[dict[str, Any]]:
    """The messages of a call, after checking that they are those that are made anew."""
    inputs = {"ticket": "Rain.\nticket: forged"}
    messages = LlamaCppAdapter().format(signature, demos, inputs)
    assert messages == Anew().format(signature, demos, inputs)
    assert LlamaCppAdapter().format(signature, demos, inputs) == messages
    return messages


def known(signature: type[dspy.Signature], demos: list[Any]) -> Any:
    return LlamaCppAdapter()._known_of_fields(signature, demos)


def test_a_repeated_call_has_the_same_messages():
    assert RepeatedCall.of(Ticket, DEMOS) is not None
    for demos in ([], DEMOS[:1], DEMOS, [dspy.Example(**demo) for demo in DEMOS], DEMOS[::-1]):
        same(Ticket, demos)
    same(Ticket, [{"ticket": "Half.", "thing": "door"}, *DEMOS])  # an incomplete one


def test_a_demonstration_that_was_changed_is_shown_as_it_is_now():
    demos = [dspy.Example(**demo) for demo in DEMOS]
    before = same(Ticket, demos)
    demos[0].thing = "\n\nthe lift"
    known_before = known(Ticket, demos)
    assert same(Ticket, demos) != before
    demos[0].thing = ""
    same(Ticket, demos)
    assert known(Ticket, demos) != known_before  # it may be empty now
    del demos[1]
    assert len(same(Ticket, demos)) == len(before) - 2


def test_equal_values_of_other_types_are_written_as_themselves():
    plain = dspy.Signature("ticket -> thing, count")
    texts = {
        same(plain, [{"ticket": "a", "thing": "b", "count": value}])[2]["content"]
        for value in (1, True, 1.0, "1", None)
    }
    assert len(texts) >= 3  # "1" and 1 are written alike
    assert RepeatedCall.of(plain, [{"count": 0.0}]) is None  # which equals -0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Literal["a", "b"], Literal["b", "a"]),
        (int | str, str | int),
        (list[Literal["a", "b"]], list[Literal["b", "a"]]),
    ],
    ids=str,
)
def test_types_that_typing_holds_to_be_equal_are_described_as_themselves(one, other):
    assert one == other
    for annotation in (one, other):
        fields = {"ticket": (str, dspy.InputField()), "thing": (annotation, dspy.OutputField())}
        same(dspy.Signature(fields), [])


def test_a_signature_that_was_changed_in_place_is_described_as_it_is_now():
    signature = Ticket.with_instructions("Read.")
    before = same(signature, DEMOS)[0]
    signature.output_fields["thing"].json_schema_extra["desc"] = "optional, what is broken"
    try:
        after = same(signature, DEMOS)[0]
        assert after != before
        assert "optional" in after["content"]
        assert not known(signature, DEMOS)["thing"]["required"]
        assert same(signature.with_instructions("Think."), DEMOS)[0] != after
    finally:
        signature.output_fields["thing"].json_schema_extra["desc"] = "what is broken"
    assert same(signature, DEMOS)[0] == before


def test_messages_belong_to_the_call_that_got_them():
    messages = same(Ticket, DEMOS)
    expected = copy.deepcopy(messages)
    for message in messages:
        message["content"] = "changed"
    assert same(Ticket, DEMOS) == expected


def test_a_long_list_is_shortened_only_where_that_is_asked_for():
    labels = Literal[tuple(f"label {n}" for n in range(200))]  # type: ignore[misc]
    signature = dspy.Signature(
        {"ticket": (str, dspy.InputField()), "label": (labels, dspy.OutputField())}
    )
    whole = same(signature, [])
    with shortened_lists():
        assert len(same(signature, [])[0]["content"]) < len(whole[0]["content"])
    assert same(signature, []) == whole


@pytest.mark.parametrize(
    "annotation", [Colour, Owner, list[Owner], dspy.Code, dspy.ToolCalls, dspy.History]
)
def test_types_that_describe_themselves_are_not_kept(annotation):
    signature = dspy.Signature(
        {"ticket": (str, dspy.InputField()), "made": (annotation, dspy.OutputField())}
    )
    assert RepeatedCall.of(signature, []) is None


@pytest.mark.parametrize("value", [["a"], {"a": 1}, Owner(name="Ada"), Colour.RED, 0.5])
def test_demonstrations_with_other_values_are_not_kept(value):
    assert RepeatedCall.of(Ticket, [{**DEMOS[0], "thing": value}]) is None


def test_each_setting_of_paragraphs_has_its_own():
    texts = dspy.Signature("ticket -> thing, reason")
    one, other = (LlamaCppAdapter(end_texts_at_blank_line=ends) for ends in (True, False))
    for _ in range(2):
        assert "paragraph" in one._known_of_fields(texts, [])["thing"]
        assert "paragraph" not in other._known_of_fields(texts, [])["thing"]
