"""Finds the fields of an answer that places in its grammar belong to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from adapter.grammar.gbnf.rules import Expression, Rules


def place_of_field(
    rules: Rules, number: int, value: Expression, alternative: str = ""
) -> Expression:
    """A field's value as a rule of its own, which identifies the field. Fields count from 1.

    Args:
        alternative: which one, if a field's values are written in several places.
    """
    return rules.add(f"{_RULE}{number}", (_RULE, number, alternative), lambda: value)


def with_field_names(gbnf: str, names: Iterable[str]) -> str:
    """A grammar with the names of its fields in a comment."""
    return f"{gbnf}{_COMMENT}{json.dumps([*names])}\n"


def fields_at(gbnf: str, places: Iterable[frozenset[str]]) -> list[str] | None:
    """The fields that places of a grammar belong to, in their order.

    Args:
        places: for each the names of its rules, as in ``pyllama.GrammarSampler.shortened``.

    Returns:
        None if the grammar does not name its fields.
    """
    comment = re.search(f"^{_COMMENT}(.*)$", gbnf, re.MULTILINE)
    if comment is None:
        return None
    names = json.loads(comment[1])
    found: set[int] = set()
    for place in places:
        numbers = {int(rule[1]) for rule in map(_IN_FIELD.fullmatch, place) if rule is not None}
        if not numbers and not any(_IS_ROOT.fullmatch(rule) for rule in place):
            numbers = {len(names)}  # no later rule identifies the place
        found |= numbers
    return [name for number, name in enumerate(names, 1) if number in found]


_RULE = "value-of-field-"
_COMMENT = "# fields: "
# What follows a model's thoughts has names of its own.
_IN_FIELD = re.compile(f"(?:answer-itself-)?{_RULE}([0-9]+)(?:-[0-9]+)?")
_IS_ROOT = re.compile("root|answer-itself")
