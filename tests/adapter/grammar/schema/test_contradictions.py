"""Schemas that contradict themselves: they are refused, and the error names the part."""

from __future__ import annotations

import json

import pytest

from adapter.grammar.schema.json_schema import contradiction, json_schema_grammar
from adapter.grammar.schema.merging import ImpossibleSchemaError, SchemaError


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum 5 and maximum 3"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "exclusiveMaximum 2"),
        ({"type": "number", "minimum": 1, "maximum": 9, "multipleOf": 10}, "multipleOf 10"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength 5 and maxLength 3"),
        ({"type": "string", "pattern": "^a{5}$", "maxLength": 3}, "maxLength 3"),
        ({"type": "array", "minItems": 5, "maxItems": 3}, "minItems 5 and maxItems 3"),
        ({"type": "object", "minProperties": 5, "maxProperties": 3}, "minProperties 5"),
        ({"enum": [1, 2], "minimum": 5}, r"enum \[1, 2\] and minimum 5"),
        (
            {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
            "minItems 3 and uniqueItems True",
        ),
        (
            {"type": "string", "format": "date", "formatMinimum": "2024-02-01",
             "formatMaximum": "2024-01-01"},
            "formatMinimum '2024-02-01'",
        ),
        ({"enum": ["x" * 500], "maxLength": 3}, r"x\.\.\. and maxLength 3"),
        ({"type": "string", "pattern": r"[^\s\S]"}, "pattern .* matches no text"),
        ({"type": "string", "pattern": "^ x$", "x-stripped": True}, r"x.' and x-stripped True"),
    ],
)  # fmt: skip
def test_keywords_that_contradict_each_other_are_named(schema, said):
    with pytest.raises(ImpossibleSchemaError, match=f"no text can ever fit it: .*{said}.*change"):
        json_schema_grammar(json.dumps(schema))
    whole = {"type": "object", "properties": {"of": {"type": "array", "items": schema}}}
    assert " of of[] " in contradiction(whole)
    whole |= {"required": ["of"]}
    whole["properties"]["of"]["minItems"] = 1
    with pytest.raises(ImpossibleSchemaError, match=r"of of\[\] (contradict each|matches no)"):
        json_schema_grammar(json.dumps(whole))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 5},
        {"type": "object", "properties": {"a": False}, "minProperties": 1},
        # There are such values, but no grammar writes them.
        {"type": "number", "minimum": 1e-20, "maximum": 2e-20},
        {"type": "string", "format": "ipv6", "maxLength": 3},
        {"type": "string", "format": "duration", "formatMinimum": "PT0.1S",
         "formatMaximum": "PT0.2S"},
        {"type": "string", "format": "time", "formatMinimum": "no time", "formatMaximum": "none"},
        {"type": 5},
        {"minProperties": {}, "maxProperties": 1, "propertyNames": {}},
        {"type": "string", "pattern": r"^\n$"},
        {"type": "string", "pattern": r"^\s*x$", "x-stripped": True},
    ],
)  # fmt: skip
def test_what_contradicts_nothing_is_not_called_a_contradiction(schema):
    assert contradiction(schema) is None


def test_numbers_that_are_too_long_to_be_written_are_not_said_to_be_impossible():
    schema = {"type": "number", "minimum": 1e-20, "maximum": 2e-20}
    with pytest.raises(SchemaError, match="more than 15 digits after the point") as raised:
        json_schema_grammar(json.dumps(schema))
    assert not isinstance(raised.value, ImpossibleSchemaError)


def test_a_large_schema_that_nothing_fits_is_refused_without_much_work():
    good = {"type": "integer", "minimum": 1, "maximum": 3}
    schema = {"type": "object", "properties": {f"k{n}": good for n in range(2000)}}
    schema["properties"]["bad"] = False
    schema["required"] = ["bad"]
    with pytest.raises(ImpossibleSchemaError, match=r"no text can ever fit it$"):
        json_schema_grammar(json.dumps(schema))


@pytest.mark.parametrize("reference", [[], {}, 5, None])
def test_a_reference_that_is_no_text_is_refused(reference):
    with pytest.raises(SchemaError, match="does not refer into the same schema"):
        json_schema_grammar(json.dumps({"$ref": reference}))
