"""Constraints of fields in grammars: whatever text is drawn from one, pydantic takes."""

from __future__ import annotations

import json

import pydantic
from answer_types import constrained
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import random_text

from adapter.grammar.gbnf.rules import Rules
from adapter.grammar.schema.annotations import annotation_schema
from adapter.grammar.schema.json_schema import SchemaText
from adapter.grammar.schema.json_text import JsonText


@settings(deadline=None, max_examples=150)
@given(constrained, st.randoms(use_true_random=False))
def test_every_text_of_a_constraints_grammar_is_valid(kind, random):
    rules = Rules()
    text = SchemaText(JsonText(rules), annotation_schema(kind))
    root = text.root()
    assert not text.unchecked
    validator = pydantic.TypeAdapter(kind)
    for _ in range(8):
        written = random_text(rules, root, random)
        validator.validate_python(json.loads(written))
