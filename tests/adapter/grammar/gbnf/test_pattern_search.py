"""Finding a regular expression in a text: as re finds it, but always in linear time."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adapter.grammar.gbnf.parsed_patterns import InvalidPattern, UnsupportedPattern
from adapter.grammar.gbnf.pattern_search import is_found

atoms = st.sampled_from(
    [
        "a",
        "b",
        "[ab]",
        "[^a]",
        ".",
        r"\d",
        r"\D",
        r"\w",
        r"\W",
        r"\s",
        r"\S",
        r"[\d_-]",
        r"[^\wé]",
        r"\.",
        "é",
        "🏔",
        "^",
        "$",
        r"\b",
        r"\B",
        "",
        "(?!)",
    ]
)
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: f"(?:{'|'.join(some)})"),
        inner.map(lambda one: f"({one})"),
        st.tuples(st.sampled_from(["?=", "?!"]), inner).map(lambda two: f"({two[0]}{two[1]})"),
        st.tuples(
            inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}", "{0}", "*?", "+?"])
        ).map(lambda two: f"(?:{two[0]}){two[1]}"),
    ),
    max_leaves=8,
)
texts = st.text("ab1._ -é🏔\n", max_size=8)


@settings(deadline=None, max_examples=2000)
@given(patterns, texts)
def test_it_finds_what_re_finds(pattern, text):
    assume(text or r"\B" not in pattern)  # what Python says there changed with 3.14
    # Python's "$" also matches before a line break at the end, and its classes are Unicode's.
    expected = re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None
    assert is_found(pattern, text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a$", "a\n", False),  # Python would say yes
        (r"^\d$", "٣", False),
        (r"^\w$", "é", False),
        (r"^\s$", "\ufeff", True),
        (r"^\s$", "\x1c", False),
        (r"^\S$", "\u2003", False),
        (".", "\u2028", False),
        (".", "\r", False),
        ("", "", True),
        ("^(?!x-)(?=.*[0-9]).{3}$", "a1b", True),
        ("^(?!x-)(?=.*[0-9]).{3}$", "x-1", False),
        ("\ud800", "\ud800", True),
    ],
)
def test_it_means_what_ecma_262_says(pattern, text, expected):
    assert is_found(pattern, text) is expected


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^(a+)+$", "a" * 20_000 + "!"),
        ("^(a|a)*$", "a" * 20_000 + "!"),
        ("^(a|aa)+$", "a" * 20_000 + "!"),
        (r"(.*,){20}x", "1," * 1000),
        ("^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 10_000),
        ("(?=(a+)+$)b", "a" * 20_000),
        ("(" * 90 + "a" + ")+" * 90 + "$", "a" * 50 + "!"),
    ],
)
def test_what_takes_re_years_is_answered(pattern, text):
    assert is_found(pattern, text) is False


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(a)\1", "aa"),
        ("(?<=a)b", "ab"),
        ("(?i)a", "A"),
        ("(?i:a)", "A"),
        ("a{1,1000000}", "a"),
        ("(((a{99}){99}){99}){99}", "a"),
        ("((){1000}){1000}", "a"),
        ("(" * 5000 + ")" * 5000, "a"),
        ("a{99999999999999999999}", "a"),
        ("a" * 10_001, "a"),
        ("^(a?){1000}$", "!" + "a" * 100_000),
    ],
)
def test_what_it_cannot_say_is_reported(pattern, text):
    with pytest.raises(UnsupportedPattern):
        is_found(pattern, text)


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*", r"\p{L}", "a{2,1}"])
def test_what_is_no_regular_expression(pattern):
    with pytest.raises(InvalidPattern, match="no regular expression"):
        is_found(pattern, "a")
