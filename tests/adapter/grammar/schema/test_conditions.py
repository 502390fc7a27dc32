"""not, oneOf, if and dependencies as unions: what fits them is valid."""

from __future__ import annotations

import itertools
import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import fits, schema_fits

from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.merging import SchemaError

VALUES = [None, True, 2, "a", "b"]
OBJECTS = [
    dict(zip(names, chosen, strict=True))
    for size in range(3)
    for names in itertools.combinations(("k", "m"), size)
    for chosen in itertools.product(VALUES, repeat=size)
]
SAID = [
    ({"type": ["string", "null"], "not": {"const": "a"}}, ["b", None], ["a", 2]),
    ({"type": "integer", "not": {"minimum": 3}}, [2], [3, 4]),
    ({"type": "boolean", "not": {"enum": [True]}}, [False], [True]),
    ({"not": {"type": "object"}}, [2, "a", None], [{}]),
    ({"enum": ["a", "b", 2], "not": {"type": "string"}}, [2], ["a", "b"]),
    (
        {"properties": {"k": {}, "m": {}}, "not": {"required": ["k"]}, "type": "object"},
        [{}, {"m": 2}],
        [{"k": 2}, {"k": 2, "m": 2}],
    ),
    (
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}, "m": {"type": "integer"}},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "a"}}},
            "then": {"required": ["m"]},
            "else": {"properties": {"m": False}},
        },
        [{"k": "a", "m": 2}, {"k": "b"}],
        [{"k": "a"}, {"k": "b", "m": 2}, {}],
    ),
    (
        {
            "type": "object",
            "properties": {"k": {"type": "string"}, "m": {"type": "integer"}},
            "oneOf": [{"required": ["k"]}, {"required": ["m"]}],
        },
        [{"k": "a"}, {"m": 2}],
        [{}, {"k": "a", "m": 2}],
    ),
    (
        {
            "type": "object",
            "properties": {"k": {"type": "string"}, "m": {"type": "integer"}},
            "dependentRequired": {"k": ["m"]},
        },
        [{}, {"m": 2}, {"k": "a", "m": 2}],
        [{"k": "a"}],
    ),
    (
        {
            "type": "object",
            "properties": {name: {"type": "integer"} for name in "abcd"},
            "dependencies": {"a": ["b"], "c": ["d"], "d": {"properties": {"b": {"minimum": 2}}}},
        },
        [{}, {"b": 1}, {"a": 1, "b": 1}, {"c": 1, "d": 1}, {"b": 2, "d": 1}],
        [{"a": 1}, {"c": 1}, {"a": 1, "c": 1, "d": 1}, {"b": 1, "d": 1}],
    ),
    (
        {"oneOf": [{"type": "number", "minimum": 2}, {"type": "number", "maximum": 3}]},
        [1, 5],
        [2, 3, 2.5],
    ),
]


@pytest.mark.parametrize("order", ["schema", "any"])
@pytest.mark.parametrize(("schema", "valid", "invalid"), SAID)
def test_what_a_union_says(tiny, schema, valid, invalid, order):
    made = json_schema_grammar(json.dumps(schema), any_order=order == "any")
    assert made.unchecked == ()
    for value in valid:
        jsonschema.validate(value, schema)
        assert fits(tiny, made.gbnf, json.dumps(value)), value
    for value in invalid:
        assert not fits(tiny, made.gbnf, json.dumps(value)), value


simple = st.one_of(
    st.sampled_from([True, False, {"type": "string"}, {"type": ["null", "boolean"]}]),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=3).map(lambda few: {"enum": few}),
)
named = st.sampled_from(["k", "m"])
described = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("object"),
        "properties": st.dictionaries(named, simple, max_size=2),
        "required": st.lists(named, max_size=2, unique=True),
        "additionalProperties": st.booleans(),
        "maxProperties": st.integers(0, 2),
    },
)
nested = st.recursive(
    st.one_of(simple, described),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "oneOf": st.lists(inner, min_size=1, max_size=3),
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "dependencies": st.dictionaries(
                named, st.one_of(inner, st.lists(named, max_size=1)), max_size=2
            ),
            "properties": st.dictionaries(named, inner, max_size=2),
        },
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=40)
@given(nested, st.booleans())
def test_what_is_let_through_is_valid_or_reported(tiny, schema, any_order):
    try:
        made = json_schema_grammar(json.dumps(schema), any_order=any_order)
    except SchemaError:
        return
    if made.unchecked:
        return
    validator = jsonschema.Draft7Validator(schema)
    for value in [*VALUES, *OBJECTS]:
        if fits(tiny, made.gbnf, json.dumps(value)):
            assert validator.is_valid(value), value


@pytest.mark.parametrize("reference", ["#", "#/$defs/part", "#/$defs/list"])
def test_dependencies_of_several_keys_are_told_where_a_value_may_hold_its_like(tiny, reference):
    """A sampler would follow four alternatives at each level: sixteen within two, and so on."""
    part = {
        "type": "object",
        "properties": {"a": {"$ref": reference}, "b": {"type": "integer"}, "c": {"type": "null"}},
        "dependentRequired": {"b": ["c"], "c": ["a"]},
    }
    listed = {"type": "array", "items": {"$ref": "#/$defs/part"}}
    document = {**part, "$defs": {"part": part, "list": listed}}
    assert json_schema_grammar(json.dumps(document)).unchecked == ("dependentRequired",)
    part = {**part, "properties": {**part["properties"], "a": {"type": "string"}}}
    document = {**part, "$defs": {"text": {"type": "string"}}}
    document["properties"]["a"] = {"$ref": "#/$defs/text"}
    assert json_schema_grammar(json.dumps(document)).unchecked == ()
    assert not schema_fits(tiny, document, '{"b": 1}')
    assert schema_fits(tiny, document, '{"a": "", "b": 1, "c": null}')
