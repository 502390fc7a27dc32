"""Sets of characters are read as JSON schemas mean them, and without a warning of Python's."""

from __future__ import annotations

import re
import warnings

import pytest

from adapter.grammar.gbnf.parsed_patterns import (
    InvalidPattern,
    UnsupportedPattern,
    parsed_pattern,
)
from adapter.grammar.gbnf.pattern_search import is_found

SETS = [
    "[a--]", "[--a]", "[+--]", "[a&&b]", "[a||b]", "[~~]", "[[a]", "[^[a]", "[a-c-e]", "[&-~]",
    r"[\--a]", r"[a\]--]", "[a-]", "[-a]", r"[\[-a]", "[!--/]", "[a-b--]", r"\[a--b",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SETS)
def test_signs_in_a_set_mean_what_they_mean_to_python_today(pattern):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            meant = re.compile(pattern)
        except re.error:
            with pytest.raises(InvalidPattern):
                parsed_pattern(pattern)
            return
    for code in range(0x20, 0x7F):
        assert is_found(pattern, chr(code)) is bool(meant.search(chr(code))), chr(code)
    assert is_found(pattern, "[a--b") is bool(meant.search("[a--b"))


def test_a_hyphen_behind_a_category_stands_for_itself():
    assert [one for one in "a-.+" if is_found(r"^[\w-.]$", one)] == ["a", "-", "."]
    assert [one for one in "a-.+" if is_found(r"^[.\w-]$", one)] == ["a", "-", "."]


@pytest.mark.parametrize("pattern", ["[]a]", "[^]", "[]", "a(?#[)b", "(?i)a"])
def test_what_python_and_ecma_262_read_differently_is_not_supported(pattern):
    with pytest.raises(UnsupportedPattern):
        parsed_pattern(pattern)


@pytest.mark.parametrize("pattern", ["[a", "(", "a**", "[b-a]", "\\", "[a\\"])
def test_what_is_no_expression_is_invalid(pattern):
    with pytest.raises(InvalidPattern):
        parsed_pattern(pattern)
