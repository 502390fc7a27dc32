"""Patterns that say first how a text must not begin: what their automata take, they match."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from texts import fits

from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern
from adapter.grammar.gbnf.pattern_automata import pattern_automaton
from adapter.grammar.schema.json_schema import json_schema_grammar

TEXTS = ["".join(letters) for n in range(5) for letters in itertools.product("ab-", repeat=n)]


@pytest.mark.parametrize(
    "pattern",
    [
        "^(?!a)",
        "^(?!a)[ab]+$",
        "^(?!(ab|b)$)[ab]{1,3}$",
        "^(?!a)(?!b-)",
        "^(?!a*b)[^-]*$",
        "^(?!)a",
        "ab|-$",
    ],
)
def test_an_automaton_takes_what_the_pattern_matches(pattern):
    automaton = pattern_automaton(pattern)
    found = [text for text in TEXTS if automaton.takes(text)]
    assert found == [text for text in TEXTS if re.search(pattern, text)]


@pytest.mark.parametrize(
    "pattern", ["(?!a)b", "^a(?!b)", "^(?=a)", "^(?<!a)b", "^((?!ab).)*$", "^(?!\\w)", "^(?!.a)"]
)
def test_other_lookarounds_have_no_automaton(pattern):
    with pytest.raises(UnsupportedPattern):
        pattern_automaton(pattern)


def test_such_a_pattern_binds_texts_and_keys(tiny):
    pattern = "^(?!(in|is)$)[a-z]+$"
    text = {"type": "string", "pattern": pattern}
    keys = {"type": "object", "patternProperties": {pattern: {"type": "null"}}}
    keys["additionalProperties"] = False
    for schema, form in ((text, '"{}"'), (keys, '{{"{}": null}}')):
        made = json_schema_grammar(json.dumps(schema))
        assert made.unchecked == ()
        words = ["in", "is", "i", "isa", "x", "-"]
        taken = [word for word in words if fits(tiny, made.gbnf, form.format(word))]
        assert taken == ["i", "isa", "x"]
