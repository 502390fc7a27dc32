"""Numbers that are read as doubles: what the grammar allowed is still allowed after rounding."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Annotated

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from texts import expression_fits

from adapter.grammar.gbnf.automata import automaton_of
from adapter.grammar.gbnf.digits import kept_by_doubles
from adapter.grammar.gbnf.rules import Rules
from adapter.grammar.schema.annotations import annotation_schema
from adapter.grammar.schema.json_schema import SchemaText
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.number_texts import number_text

STEP = Decimal("1.2")


def grammar_of(schema):
    rules = Rules()
    text = SchemaText(JsonText(rules), schema)
    return rules, text.root(), text.unchecked


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            Decimal,
            ["1234567890123456", "123456789012345e-9", "-0.123456789012345", "12345678901234.5"],
            ["2117111111531102.4", "1234567890123456e5", "0.1234567890123456", "100000000000000.0"],
        ),
        (
            Annotated[Decimal, Field(multiple_of=STEP)],
            ["6000000000000006", "12000000000001.2", "-1.2"],
            ["2117111111531102.4", "1.3"],
        ),
        (Annotated[Decimal, Field(lt=100)], ["99.9999999999999"], ["99.999999999999999", "100"]),
        (Annotated[Decimal, Field(gt=10**16)], ["10000000000000001"], ["10000000000000000.5"]),
        (
            Annotated[Decimal, Field(max_digits=20, decimal_places=2)],
            ["1234567890123456", "1234567890123.45"],
            ["12345678901234.56"],
        ),
        (Annotated[float, Field(lt=100)], ["99.99999999999999", "-5"], ["99.999999999999999"]),
        (Annotated[float, Field(lt=10)], ["9.999999999999998"], ["9.9999999999999995", "10"]),
        (Annotated[float, Field(gt=1000.5)], ["1000.5000000000002"], ["1000.500000000000001"]),
        (Annotated[float, Field(gt=1e15)], ["1000000000000000.2"], ["1000000000000000.01"]),
        (Annotated[float, Field(gt=-100, lt=-99)], ["-99.5"], ["-99.999999999999999"]),
        (Annotated[float, Field(gt=0, le=1)], ["0.000001", "1"], ["0", "0.0"]),
    ],
)
def test_numbers_are_in_their_type_as_read(tiny, kind, good, bad):
    takes = pydantic.TypeAdapter(kind)
    rules, expression, unchecked = grammar_of(annotation_schema(kind))
    assert not unchecked
    for text in good:
        assert expression_fits(tiny, expression, text, rules), text
        value = takes.validate_python(json.loads(text))
        assert value == takes.validate_json(text)
        if isinstance(value, Decimal):
            assert value == Decimal(text)
    for text in bad:
        assert not expression_fits(tiny, expression, text, rules), text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "multipleOf": 1.2},
        pydantic.TypeAdapter(Annotated[Decimal, Field(multiple_of=STEP)]).json_schema(),
        annotation_schema(list[Annotated[Decimal, Field(multiple_of=STEP)] | None]),
        annotation_schema(dict[Annotated[Decimal, Field(multiple_of=STEP)], bool]),
    ],
    ids=["a schema", "of pydantic", "a list", "keys"],
)
def test_multiples_of_fractions_are_multiples_as_read(tiny, schema):
    rules, expression, _ = grammar_of(schema)
    begin, end = {"array": ("[", "]"), "object": ('{"', '":true}')}.get(
        schema.get("type"), ("", "")
    )
    for text, fitting in {"12000000000001.2": True, "2117111111531102.4": False}.items():
        assert expression_fits(tiny, expression, f"{begin}{text}{end}", rules) == fitting, text


def test_a_decimal_of_which_a_double_keeps_nothing_is_reported(tiny):
    kind = Annotated[Decimal, Field(gt=Decimal("1234567890123456.5"), lt=Decimal(1234567890123457))]
    rules, expression, unchecked = grammar_of(annotation_schema(kind))
    assert unchecked == ("numbers of more than 15 digits",)
    assert expression_fits(tiny, expression, "1234567890123456.75", rules)


@settings(deadline=None, max_examples=80)
@given(
    st.floats(-1e17, 1e17, allow_nan=False) | st.integers(-(10**4), 10**4).map(float),
    st.booleans(),
    st.integers(0, 10**4),
    st.integers(0, 18),
)
def test_no_number_becomes_a_bound_that_is_left_out(bound, is_low, count, places):
    schema = {"type": "number", "exclusiveMinimum" if is_low else "exclusiveMaximum": bound}
    automaton = automaton_of(number_text(Rules(), schema, lambda _: None))
    by = Decimal(count).scaleb(-places) * (1 if is_low else -1)
    text = f"{Decimal(repr(bound)) + by:f}"
    if automaton.takes(text):
        assert float(text) > bound if is_low else float(text) < bound, text


@settings(deadline=None, max_examples=80)
@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)
)
def test_what_doubles_keep_is_read_as_it_is_written(text):
    digits = text.lower().partition("e")[0].lstrip("-").replace(".", "", 1)
    is_short = len(digits.removeprefix("0") if digits != "0" else digits) <= 15
    is_whole = text.lstrip("-").isdigit()
    assert kept_by_doubles().takes(text) == (is_short or is_whole)
    if is_short or is_whole:
        assert Decimal(str(json.loads(text))) == Decimal(text)


@pytest.mark.parametrize("step", [0.1, 0.05, 1.2, 0.7, 2.363, 0.25, 2.5, 3, 2**-6])
@pytest.mark.parametrize("most", [None, 100, 1000.5, 1e6])
def test_large_multiples_of_a_float_are_multiples_to_pydantic_or_reported(step, most):
    kind = Annotated[float, Field(multiple_of=step, ge=None if most is None else -most, le=most)]
    schema = annotation_schema(kind)
    is_exact = float(step).as_integer_ratio()[1] in (1, 2, 4, 64)
    told = ["multiple_of of large numbers"]
    assert schema.get("x-unchecked") == (None if most is not None or is_exact else told)
    if "x-unchecked" in schema:
        return
    takes = pydantic.TypeAdapter(kind)
    exact = Decimal(repr(step))
    largest = int(Decimal(repr(schema["maximum"])) / exact)
    for count in range(max(-largest, largest - 300), largest + 1):
        takes.validate_python(json.loads(str(count * exact)))


def test_a_bound_beyond_exact_multiples_is_reported():
    kind = Annotated[float, Field(multiple_of=3, lt=1e17)]
    assert "x-unchecked" in annotation_schema(kind)
