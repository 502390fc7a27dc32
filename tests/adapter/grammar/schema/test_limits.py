"""Schemas made to take very long: each is a grammar, or an error that names the limit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from grammars import matches
from texts import schema_fits

from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.limits import MAX_CHARACTERS, MAX_LEVELS
from adapter.grammar.schema.merging import SchemaError

SLOW = "^(a+)+$"


def nested(count, inner, wrap):
    for _ in range(count):
        inner = wrap(inner)
    return inner


def ref(name):
    return {"$ref": f"#/$defs/{name}"}


def objects(count):
    return nested(count, {"type": "null"}, lambda one: {"type": "object", "properties": {"a": one}})


REFUSED = {
    "enum of a million": ({"enum": list(range(10**6))}, f"{MAX_CHARACTERS:,} characters"),
    "long value": ({"const": "x" * 10**7}, f"{MAX_CHARACTERS:,} characters"),
    "long text": ({"type": "string", "minLength": 10**9}, "minLength of 1000000000.*1000"),
    "long array": ({"type": "array", "minItems": 10**400}, "minItems of 1000.*1000"),
    "deep": (objects(MAX_LEVELS + 1), f"more than {MAX_LEVELS}"),
    "chain of references": (
        {"$defs": {f"d{i}": ref(f"d{i + 1}") for i in range(500)}, "$ref": "#/$defs/d0"},
        f"more than {MAX_LEVELS}",
    ),
    "product of unions": (
        {"allOf": [{"anyOf": [{"minimum": i * j} for i in range(10)]} for j in range(9)]},
        "more than 5000 combinations",
    ),
    "many names with many patterns": (
        {
            "properties": {f"p{i}": {} for i in range(1000)},
            "patternProperties": {f"^q{i}": {} for i in range(1000)},
        },
        "more than 2,000,000 steps",
    ),
    "very long name": (
        {"properties": {"n" * 100_000: {}}, "additionalProperties": True},
        "more than 2,000,000 steps",
    ),
    "references in a circle": ({"$defs": {"a": ref("b"), "b": ref("a")}, **ref("a")}, "no text"),
    "options in a circle": (
        {"$defs": {"a": ref("b"), "b": ref("a")}, "oneOf": [ref("a"), ref("b")]},
        "no text",
    ),
    "slow pattern of an enum": ({"enum": ["a" * 40 + "!"], "pattern": SLOW}, "no text"),
    "surrogate": ({"properties": {"\ud800": {}}, "required": ["\ud800"]}, "no text"),
    "pattern that is none": (
        {"properties": {"a": {}}, "patternProperties": {"(": {}}},
        r"patternProperties has '\(', no regular expression",
    ),
    "true is not 1": (
        {"allOf": [{"properties": {"a": {"const": one}}, "required": ["a"]} for one in (1, True)]},
        "no text",
    ),
    "no count": ({"type": "array", "maxItems": 0.5}, "maxItems has an invalid value"),
    "no bound of a date": (
        {"type": "string", "format": "date", "formatMinimum": 5},
        "formatMinimum has an invalid value",
    ),
    "common multiple": (
        {"type": "number", "allOf": [{"multipleOf": 1e308}, {"multipleOf": 7e307}]},
        "no common multiple",
    ),
    "many names": (
        {"properties": {f"p{i}": {} for i in range(20_000)}},
        "more than 2,000,000 steps",
    ),
    "own keyword": ({"x-unchecked": 5}, "x-unchecked has an invalid value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_beyond_a_limit_is_refused_with_it(name):
    schema, message = REFUSED[name]
    with pytest.raises(SchemaError, match=message):
        json_schema_grammar(json.dumps(schema))


ACCEPTED = {
    "allOf doubled again and again": (
        {
            "$defs": {f"a{i}": {"allOf": [ref(f"a{i + 1}")] * 2} for i in range(60)}
            | {"a60": {"type": "string"}},
            **ref("a0"),
        },
        ['"x"'],
        ["1"],
    ),
    "enums merged": (
        {"allOf": [{"enum": [*range(3000), "x"]}, {"enum": ["x", *range(2000, 5000)]}]},
        ["2999", "2000", '"x"'],
        ["1999", "3000"],
    ),
    "slow patterns": (
        {
            "type": "object",
            "properties": {"a" * 40: {"type": "integer"}, "a" * 40 + "!": {"type": "string"}},
            "patternProperties": {SLOW: {"minimum": 3}},
            "additionalProperties": False,
        },
        [json.dumps({"a" * 40: 3, "a" * 40 + "!": "x"})],
        [json.dumps({"a" * 40: 2}), json.dumps({"a" * 40 + "!": 2})],
    ),
    "slow patterns merged": (
        {
            "allOf": [
                {"patternProperties": {SLOW: {}}, "additionalProperties": {"type": "null"}},
                {"properties": {"a" * 40 + "!": {}}, "required": ["a" * 40 + "!"]},
            ]
        },
        [json.dumps({"a" * 40 + "!": None})],
        [json.dumps({"a" * 40 + "!": 1})],
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_schema_that_would_take_long_is_a_grammar_all_the_same(tiny, name):
    schema, good, bad = ACCEPTED[name]
    for text in good:
        assert schema_fits(tiny, schema, text), text
    for text in bad:
        assert not schema_fits(tiny, schema, text), text


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "string", "pattern": "a{1,1000000}"}, "1000 repetitions"),
        ({"type": "string", "pattern": "(a|b)" * 20_000}, "10000 characters"),
        ({"type": "string", "pattern": "(" * 5000 + ")" * 5000}, "nested too deep"),
        ({"properties": {"b": {}}, "patternProperties": {"(?<=a)b": {}}}, "assert"),
        (
            {"oneOf": [{"required": ["k"], "properties": {"k": {"const": i}}} for i in range(700)]},
            "oneOf .more than 100000 pairs",
        ),
    ],
)  # fmt: skip
def test_what_is_too_large_to_say_is_reported(schema, told):
    unchecked = json_schema_grammar(json.dumps(schema)).unchecked
    assert any(told.replace(".", "(", 1) in one or told in one for one in unchecked), unchecked


@pytest.mark.parametrize("length", [17, 180, 2000])
def test_a_name_may_be_long(tiny, length):
    name = "n" * length
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    for key, value, expected in [
        (name, 1, True),
        (name, "x", False),
        (name[:-1], "x", True),
        (name[:-1], 1, False),
        (name + "n", "x", True),
        (name[:-1] + "m", "x", True),
        ("", "x", True),
        (name[:15] + "x", "y", True),
    ]:
        assert schema_fits(tiny, schema, json.dumps({key: value})) is expected, key


def test_many_required_names(tiny):
    names = [f"p{i}" for i in range(400)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in names},
        "required": names,
        "additionalProperties": {"type": "null"},
    }
    whole = dict.fromkeys(names, 1)
    assert schema_fits(tiny, schema, json.dumps({**whole, "p": None}))
    assert not schema_fits(tiny, schema, json.dumps({**whole, "p": 1}))
    del whole["p200"]
    assert not schema_fits(tiny, schema, json.dumps(whole))


def test_thousands_of_names_may_be_optional(tiny):
    names = [f"p{i}" for i in range(5000)]
    gbnf = json_schema_grammar(json.dumps({"properties": dict.fromkeys(names, True)})).gbnf
    assert matches(tiny.vocab, gbnf, json.dumps(dict.fromkeys(names[1::1000], 1)))
    assert not matches(tiny.vocab, gbnf, json.dumps(dict.fromkeys(names[-1::-4000], 1)))


def test_where_the_stack_is_short_a_schema_is_refused_too():
    """On a stack that is nearly used up, in a process whose stack may end."""
    program = """
import json, sys
from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.merging import SchemaError
schema = {"type": "null"}
for _ in range(40):
    schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
text = json.dumps(schema)
seen = set()
def at(depth):
    if depth:
        return at(depth - 1)
    try:
        json_schema_grammar.__wrapped__(text)
        seen.add("made")
    except SchemaError as error:
        seen.add("refused" if "nests too deep" in str(error) else str(error))
for depth in range(0, 960, 20):
    at(depth)
print(sorted(seen))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert found.stdout.strip() == "['made', 'refused']"
