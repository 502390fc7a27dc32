"""What a grammar was made of is freed when it is made. A circle would wait for the collector."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from adapter.grammar.gbnf.rules import Rules
from adapter.grammar.schema.json_schema import contradiction, json_schema_grammar

NAMES = {"type": "object", "propertyNames": {"enum": ["a", "b", "c"]}}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {"properties": {"a": {"type": "string"}, "b": {"$ref": "#"}}},
    "ordered": {"properties": {"a": True, "b": True}, "required": ["a"], "x-key-order": "schema"},
    "counted": {"properties": {"a": True, "b": True, "c": True}, "maxProperties": 2},
    "names": NAMES,
    "set": {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True},
    "held": {"type": "string", "x-json": NAMES},
    "number": {"type": "number", "multipleOf": 0.25, "minimum": 0},
    "string": {"type": "string", "pattern": "^a+$", "minLength": 2},
    "condition": {"if": {"required": ["a"]}, "then": {"required": ["b"]}, "type": "object"},
    "union": {"anyOf": [NAMES, {"type": "null"}]},
}


def n_made() -> int:
    return sum(type(one) is Rules for one in gc.get_objects())


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("make", [json_schema_grammar, contradiction])
def test_nothing_of_a_grammar_waits_for_the_garbage_collector(name, make):
    gc.collect()
    before = n_made()
    gc.disable()
    try:
        if make is contradiction:
            contradiction(SCHEMAS[name])
        else:
            json_schema_grammar.__wrapped__(json.dumps(SCHEMAS[name]))
        assert n_made() == before
    finally:
        gc.enable()
