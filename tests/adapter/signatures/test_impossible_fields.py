"""Output fields that no value fits are refused before a model is asked."""

from __future__ import annotations

import datetime
import enum
import json
from decimal import Decimal
from functools import partial
from typing import Annotated, Literal

import dspy
import pydantic
import pytest
from fake_generator import fake_model

from adapter import constrained
from adapter.engine.tool_arguments import closed_schema, impossible
from adapter.errors import ConfigurationError
from adapter.grammar.schema.annotations import annotation_schema
from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.signatures.answer_grammar import CHAT, answer_grammar
from adapter.signatures.impossible_fields import require_possible
from adapter.signatures.shapes import shape_of

DAY = datetime.date(2024, 1, 1)
LATER = datetime.date(2024, 2, 1)
MOMENT = datetime.datetime(2024, 1, 1)  # noqa: DTZ001 - a naive one is meant
Stripped = partial(pydantic.StringConstraints, strip_whitespace=True)
Rank = enum.IntEnum("Rank", {"FIRST": 1, "SECOND": 2})


class Person(pydantic.BaseModel):
    age: int = pydantic.Field(ge=5, le=3)


class Nowhere(pydantic.BaseModel):
    name: str = pydantic.Field(pattern=r"a[^\s\S]")


class Perhaps(pydantic.BaseModel):
    age: int | None = pydantic.Field(default=None, ge=5, le=3)


@pytest.mark.parametrize(
    ("annotation", "constraints", "said"),
    [
        (int, {"ge": 5, "le": 3}, "ge 5 and le 3"),
        (float, {"gt": 1, "lt": 1}, "gt 1 and lt 1"),
        (int, {"gt": 1, "lt": 2}, "gt 1 and lt 2"),
        (Decimal, {"ge": 5, "le": 3}, "ge 5.0 and le 3.0"),
        (Decimal, {"max_digits": 2, "ge": 100}, "max_digits"),
        (Decimal, {"decimal_places": 1, "gt": Decimal("0.1"), "lt": Decimal("0.2")}, "gt 0.1"),
        (int, {"ge": 1, "le": 9, "multiple_of": 10}, "multiple_of 10"),
        (float, {"gt": 0, "lt": 0.5, "multiple_of": 0.5}, "multiple_of 0.5"),
        (str, {"min_length": 5, "max_length": 3}, "min_length 5 and max_length 3"),
        (str, {"pattern": "^a{5}$", "max_length": 3}, "pattern '^a{5}$'"),
        (str, {"pattern": r"[^\s\S]"}, "matches no text; change it"),
        (Annotated[str, Stripped(pattern=r"^\s+x$")], {}, "x$' and strip_whitespace contradict"),
        (list[Nowhere], {}, "pattern 'a[^\\\\s\\\\S]' of Nowhere.name matches no text"),
        (list[int], {"min_length": 5, "max_length": 3}, "min_length 5 and max_length 3"),
        (dict[str, int], {"min_length": 5, "max_length": 3}, "min_length 5 and max_length 3"),
        (set[Literal["a", "b"]], {"min_length": 3}, "min_length 3 and no item twice"),
        (datetime.date, {"ge": LATER, "le": DAY}, "at least '2024-02-01' and at most '2024-01-01'"),
        (datetime.datetime, {"gt": MOMENT, "lt": MOMENT}, "at least '2024-01-01T00:00:00.000001'"),
        (datetime.time, {"ge": datetime.time(5), "le": datetime.time(3)}, "at least '05:00:00'"),
        (
            datetime.timedelta,
            {"ge": datetime.timedelta(5), "le": datetime.timedelta(3)},
            "at most 'PT259200.000000S'",
        ),
        (Literal[1, 2], {"ge": 5}, "the values 1, 2 and Ge(ge=5)"),
        (Literal["a", "bb"], {"min_length": 5}, "the values 'a', 'bb'"),
        (Rank, {"ge": 5}, "the values 1, 2 and Ge(ge=5)"),
        (bool, {"ge": 5}, "the values True, False"),
        (list[int], {"gt": 0}, "list[int] and Gt(gt=0)"),
        (list[int] | str, {"gt": 0}, "list[int] and Gt(gt=0)"),
        (Person, {}, "ge 5 and le 3 of age"),
        (list[Person], {}, "ge 5 and le 3 of Person.age"),
        (Perhaps, {}, "ge 5 and le 3 of age"),
        (int | None, {"ge": 5, "le": 3}, "ge 5 and le 3"),
        (int | float, {"ge": 5, "le": 3}, "ge 5 and le 3"),
        (Annotated[int, pydantic.Field(ge=5)], {"le": 3}, "ge 5 and le 3"),
        (tuple[Annotated[int, pydantic.Field(ge=5, le=3)], int], {}, "ge 5 and le 3"),
    ],
)
def test_contradictions_are_named_by_field_and_value(annotation, constraints, said):
    field = dspy.OutputField(**constraints)
    signature = dspy.Signature({"question": (str, dspy.InputField()), "v": (annotation, field)})
    made = signature.output_fields["v"]
    with pytest.raises(ConfigurationError) as raised:
        require_possible("v", made.annotation, tuple(made.metadata))
    assert str(raised.value).startswith("no value can fit the output field 'v': ")
    assert said in str(raised.value)


def test_a_part_whose_constraints_no_value_can_pass_is_refused():
    nothing = Annotated[bool | float, pydantic.Field(min_length=1)]
    signature = dspy.Signature(
        {"question": (str, dspy.InputField()), "v": (tuple[nothing], dspy.OutputField())}
    )
    with pytest.raises(ConfigurationError, match="output field 'v'"):
        answer_grammar(signature, CHAT)


@pytest.mark.parametrize(
    ("annotation", "constraints"),
    [
        (int, {"ge": 3, "le": 3}),
        (datetime.timedelta, {"ge": datetime.timedelta(0, 0.1), "le": datetime.timedelta(0, 0.2)}),
        (datetime.time, {"ge": datetime.time(5, 0, 0, 5), "le": datetime.time(5, 0, 0, 7)}),
        (datetime.date, {"le": datetime.date(5, 1, 1)}),
        (float, {"ge": 1e-20, "le": 2e-20}),
        (Decimal, {"gt": Decimal("0.1"), "lt": Decimal("0.10000000000000000001")}),
        (int, {"ge": 10**30}),
        (Literal[1, 7], {"ge": 5}),
        (str | list[int], {"min_length": 2}),
        (pydantic.Json, {}),
        (object, {}),
    ],
)
def test_what_some_value_fits_is_not_refused(annotation, constraints):
    field = dspy.OutputField(**constraints)
    signature = dspy.Signature({"question": (str, dspy.InputField()), "v": (annotation, field)})
    made = signature.output_fields["v"]
    require_possible("v", made.annotation, tuple(made.metadata))


class Impossible(dspy.Signature):
    """Count."""

    question: str = dspy.InputField()
    count: int = dspy.OutputField(ge=5, le=3)


@pytest.mark.parametrize("kind", [None, dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_no_adapter_asks_the_model(configured, kind):
    model = fake_model("count: 4")
    adapter = configured(model)
    chosen = adapter if kind is None else constrained(kind())
    with (
        dspy.context(lm=adapter.lm, adapter=chosen),
        pytest.raises(ConfigurationError, match="'count': ge 5 and le 3 contradict each other"),
    ):
        dspy.Predict(Impossible)(question="How many?")
    assert model.generator.requests == []


def test_a_tool_that_can_never_be_called_is_refused(configured):
    def grow(age: int) -> str:
        return str(age)

    class Calls(dspy.Signature):
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    age = {"type": "integer", "minimum": 5, "maximum": 3}
    model = fake_model("calls: {}")
    configured(model)
    with pytest.raises(ConfigurationError, match=r"'grow' can never be called: .*minimum 5"):
        dspy.Predict(Calls)(tools=[dspy.Tool(grow, args={"age": age})])
    assert model.generator.requests == []


def _from_yes(text):
    return {"yes": True, "no": False}[text]


@pytest.mark.parametrize(
    ("annotation", "constraints"),
    [
        (dict[bool, int], {"min_length": 2, "max_length": 2}),
        (dict[Annotated[int, pydantic.Field(ge=1, le=3)], str], {"min_length": 1, "max_length": 3}),
        (float, {"ge": 0.06751155038327215, "le": 0.06751155038327215}),
        (float, {"ge": 0.99903, "le": 0.99903, "multiple_of": 0.19980599999999998}),
        (str, {"pattern": "^\x7f\u2028$", "max_length": 2}),
        (Annotated[bool, pydantic.BeforeValidator(_from_yes)], {}),
        (Annotated[bool, pydantic.AfterValidator(_from_yes)], {}),
    ],
)
def test_a_value_that_a_grammar_cannot_write_is_no_contradiction(annotation, constraints):
    field = dspy.Signature("q -> z").append("x", dspy.OutputField(**constraints), annotation)
    made = field.output_fields["x"]
    require_possible("x", made.annotation, tuple(made.metadata))


def test_keys_that_are_no_strings_are_written():
    schema = json.dumps(annotation_schema(dict[bool, int], ()))
    assert "true" in json_schema_grammar(schema).gbnf


def test_a_value_of_zero_is_shown_as_itself():
    item = {
        "type": "object",
        "properties": {
            "zero": {"const": 0, "type": "integer"},
            "bit": {"enum": [0, 1], "type": "integer"},
            "count": {"type": "integer"},
        },
        "required": ["zero", "bit", "count"],
    }
    shape = shape_of({"type": "array", "items": item})
    assert '"zero": 0,' in shape
    assert '"bit": 0 or 1,' in shape
    assert '"count": <a number>' in shape


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"at": {"type": "string", "format": "email", "maxLength": 5}}},
        {"properties": {"at": {"type": "string", "format": "ipv6", "pattern": "^::1$"}}},
        {"properties": {"at": {"type": "string", "pattern": "^\x7f$"}}},
        {"properties": {"other": {}}},  # closing it leaves "at" out
    ],
)
def test_a_function_whose_arguments_a_grammar_cannot_express_is_not_refused(schema):
    whole = {"type": "object", "required": ["at"], **schema}
    assert impossible(json.dumps(closed_schema(whole))) is None
