"""Regular expressions as grammars: a text that fits is one in which re finds the pattern."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import schema_fits

from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern
from adapter.grammar.gbnf.patterns import pattern_expression
from adapter.grammar.schema.json_schema import json_schema_grammar

letters = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\d", r"\w", r"\s", r"\.", '"', r"\\"])
patterns = st.recursive(
    letters,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "*?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=5,
)
texts = st.text('ab1._ "\\é\n', max_size=5)


@settings(deadline=None, max_examples=200)
@given(patterns, st.booleans(), st.booleans(), texts)
def test_a_text_that_fits_has_the_pattern_in_it(tiny, pattern, begins, ends, text):
    pattern = "^" * begins + f"(?:{pattern})" + "$" * ends
    schema = {"type": "string", "pattern": pattern}
    if json_schema_grammar(json.dumps(schema)).unchecked:
        return  # a repetition of what may be empty
    if schema_fits(tiny, schema, json.dumps(text, ensure_ascii=False)):
        assert re.search(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[A-Z]{2}-\\d{3}$", ["AB-123"], ["AB-12", "ab-123", "xAB-123"]),
        ("b", ["b", "abc", "\u00e9b"], ["ac", ""]),
        ("^a|b$", ["ax", "xb"], ["xax"]),
        ('^"$', ['"'], ["", "''"]),
        ("^\\S+@\\S+$", ["a@b"], ["a b@c", "@"]),
        ("^(?:é|🦙)+$", ["é🦙"], ["e"]),
        ("^a{2,3}?$", ["aa", "aaa"], ["a", "aaaa"]),
        ("^$|^(([ab]){3}c$)", ["", "abac"], ["abc", "abacx", "xabac"]),
        ("(a|^b)(c|a$)", ["xacx", "bcx", "aa"], ["xbc", "aax", "ab"]),
        ("(^a$)|b", ["a", "xbx"], ["xa", "ax"]),
        ("^\\S+$", ["£5—é", "🦙"], ["a b", "a\xa0b", "a\u3000", ""]),
    ],
)
def test_patterns(tiny, pattern, good, bad):
    schema = {"type": "string", "pattern": pattern}
    for text in good:
        assert schema_fits(tiny, schema, json.dumps(text, ensure_ascii=False)), text
    for text in bad:
        assert not schema_fits(tiny, schema, json.dumps(text, ensure_ascii=False)), text


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)b",
        "(a)\\1",
        "\\bword",
        "(?i)a",
        "a^b",
        "a{1,5000}",
        "(",
        "(?i:a)b",
        "(a$)b",
        "(^a|b)?c",
    ],
)
def test_what_has_no_grammar(pattern):
    with pytest.raises(UnsupportedPattern):
        pattern_expression(pattern, lambda _: None)
