"""JSON schemas as grammars: which texts they take, and which schemas are refused."""

from __future__ import annotations

import json

import pytest
from grammars import matches
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama import Grammar, GrammarError

no_deadline = settings(deadline=None, max_examples=200)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (True, ["1", '"a"', "null", '{"a": [1, {}]}'], ["", "x", "{", "01"]),
        ({"type": "integer"}, ["0", "-12", "99"], ["1.5", "01", '"1"', ""]),
        ({"type": "integer", "minimum": 5, "maximum": 12}, map(str, range(5, 13)), ["4", "13"]),
        ({"type": "boolean"}, ["true", "false"], ["True", "0"]),
        ({"enum": ["a\n", 3, None]}, ['"a\\n"', "3", "null"], ['"a"', "4"]),
        ({"const": {"a": 1}}, ['{"a":1}'], ['{"a": 1}', "{}"]),
        ({"type": "string", "maxLength": 2}, ['""', '"ab"', '"é\\n"'], ['"abc"', "ab"]),
        ({"type": "string", "pattern": "^[a-c]+x?$"}, ['"a"', '"abcx"'], ['"x"', '"d"']),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, ["[]", "[null]"], ["[1]"]),
        ({"anyOf": [{"const": 1}, {"type": "null"}]}, ["1", "null"], ["2", ""]),
        (
            '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}',
            ['{"a": 1}', '{"a":-3}'],
            ["{}", '{"a": "1"}', '{"a": 1, "b": 2}'],
        ),
        (
            {
                "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                "$ref": "#/$defs/tree",
            },
            ["[]", "[[],[[]]]"],
            ["[1]", "[[]"],
        ),
    ],
)
def test_a_schema_becomes_its_grammar(tiny, schema, good, bad):
    grammar = Grammar.from_json_schema(schema)
    assert grammar.unsupported_patterns == ()
    for text in good:
        assert matches(tiny.vocab, grammar, text), text
    for text in bad:
        assert not matches(tiny.vocab, grammar, text), text


def test_patterns_without_a_grammar_are_reported(tiny, capfd):
    schema = {
        "type": "object",
        "properties": {
            "a": {"pattern": "^\\d+$"},
            "b": {"pattern": "^[a]$"},
            "c": {"pattern": "x"},
        },
        "required": ["a", "b", "c"],
    }
    grammar = Grammar.from_json_schema(schema)
    assert grammar.unsupported_patterns == ("^\\d+$", "x")
    assert matches(tiny.vocab, grammar, '{"a": "no digits", "b": "a", "c": ""}')
    assert not matches(tiny.vocab, grammar, '{"a": "1", "b": "b", "c": ""}')
    assert capfd.readouterr() == ("", "")


nested = {"type": "integer"}
for _ in range(400):
    nested = {"type": "object", "properties": {"a": nested}}


def chain_of_references(count):
    definitions = {
        f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}}
        for i in range(count)
    }
    definitions[f"d{count}"] = {"type": "null"}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema",
    [nested, chain_of_references(5000), {"type": "object", "properties": {"€" * 20_000: {}}}],
)
def test_what_would_overflow_the_stack(schema):
    assert Grammar.from_json_schema(schema).gbnf.count("::=") > 3


cyclic = {"type": "object"}
cyclic["properties"] = {"a": cyclic}
endless = []
for _ in range(100_000):
    endless = [endless]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "must be an object or true"),
        ("[]", "must be an object or true"),
        ("3", "must be an object or true"),
        ("{", "no JSON"),
        ("", "no JSON"),
        ('{"a": "\ud800"}', "JSON schema"),
        ({"const": float("nan")}, "no JSON"),
        (cyclic, "no JSON"),
        ({"const": endless}, "nests too deep"),
        ("[" * 100_000, "nests too deep"),
        ({"const": "x" * 2**20}, "longer than"),
        ({"type": "animal"}, "unrecognized type animal"),
        ({"type": ["null", "null"]}, "type twice"),
        ({"anyOf": []}, "must not be empty"),
        ({"properties": 3}, "properties must be an object"),
        ({"properties": {"a": True}}, "must be an object"),
        ({"$ref": "https://example.com/schema.json"}, "only references into the same document"),
        ({"$ref": "other.json#/a"}, "only references into the same document"),
        ({"$ref": "#/$defs/missing"}, "defs not found"),
        ({"$ref": 3}, "must be a string"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "leads back to itself"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]},
            "leads back to itself",
        ),
        (
            {
                "$defs": {"a_b": {"type": "null"}, "a.b": {"type": "integer"}},
                "anyOf": [{"$ref": "#/$defs/a_b"}, {"$ref": "#/$defs/a.b"}],
            },
            "one rule for both",
        ),
        ({"type": "string", "pattern": "^(a$"}, "unbalanced parentheses"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "ends at fewer"),
        ({"type": "string", "minLength": 2001}, "exceeds sane defaults"),
        ({"type": "array", "maxItems": -1}, "non-negative"),
        ({"type": "array", "maxItems": 2**32 + 1}, "maxItems over"),
        ({"type": "integer", "minimum": 2**64}, "minimum of more than 64 bits"),
        ({"type": "integer", "minimum": 1e300}, "minimum of more than 64 bits"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum over its maximum"),
        ({"properties": {"a]": {}}, "additionalProperties": True}, "cannot be used: line"),
    ],
)
def test_a_schema_that_cannot_be_used(schema, message, capfd):
    with pytest.raises(GrammarError, match=message):
        Grammar.from_json_schema(schema)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("schema", [None, 3, b"{}", [], {"enum": {1}}, {"enum": [object()]}])
def test_a_schema_of_another_type(schema):
    with pytest.raises(TypeError, match="schema must"):
        Grammar.from_json_schema(schema)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text('abé"\\/{\n', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@no_deadline
@given(values, values)
def test_any_value_is_taken_and_a_constant_is_nothing_else(tiny, value, other):
    assert matches(tiny.vocab, Grammar.from_json_schema({}), json.dumps(value))
    constant = Grammar.from_json_schema({"const": value})
    compact = {"separators": (",", ":"), "ensure_ascii": False}
    assert matches(tiny.vocab, constant, json.dumps(value, **compact))
    if json.dumps(value) != json.dumps(other):
        assert not matches(tiny.vocab, constant, json.dumps(other, **compact))


@no_deadline
@given(st.data())
def test_bounds_are_those_of_the_integers(tiny, data):
    low, high = sorted(data.draw(st.tuples(*[st.integers(-3000, 3000)] * 2)))
    grammar = Grammar.from_json_schema({"type": "integer", "minimum": low, "maximum": high})
    for number in {low - 1, low, high, high + 1, data.draw(st.integers(-4000, 4000))}:
        assert matches(tiny.vocab, grammar, str(number)) == (low <= number <= high), (
            low,
            high,
            number,
        )
