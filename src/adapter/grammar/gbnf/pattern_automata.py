"""Regular expressions that say first how a text must not begin, as automata."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from adapter.grammar.gbnf.automata import Automaton, automaton_of, without
from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern, constants, parsed_pattern
from adapter.grammar.gbnf.patterns import BEGINNINGS, items_expression
from adapter.grammar.gbnf.rules import one_of


@lru_cache(256)
def pattern_automaton(pattern: str) -> Automaton:
    """The texts in which a regular expression is found, as far as all dialects agree.

    It may begin with "^" and texts that must not come there: `^(?!x-)`.

    Raises:
        UnsupportedPattern: it has other lookarounds, back references, or flags, or dialects differ
            about what must not come.
        TooLarge: the automaton would be.
    """
    items = list(parsed_pattern(pattern))
    excluded: list[list[Any]] = []
    if items[:1] and items[0] in BEGINNINGS:
        while len(items) > 1 and items[1][0] is constants.ASSERT_NOT:
            direction, part = items.pop(1)[1]
            if direction != 1 or not _is_exact(part):
                raise UnsupportedPattern("assert not")
            excluded.append([items[0], *part])
    found = automaton_of(items_expression(items, one_of))
    for one in excluded:
        found = without(found, automaton_of(items_expression(one, one_of)))
    return found


def _is_exact(items: Any) -> bool:
    """Whether the expressions of items match exactly what the items match, in every dialect."""
    for kind, value in items:
        if kind is constants.IN:
            if any(item is constants.CATEGORY for item, _ in value):
                return False
        elif kind is constants.BRANCH:
            if not all(map(_is_exact, value[1])):
                return False
        elif kind is constants.SUBPATTERN:
            if not _is_exact(value[3]):
                return False
        elif kind in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            if not _is_exact(value[2]):
                return False
        elif kind not in (constants.LITERAL, constants.NOT_LITERAL, constants.AT):
            return False
    return True
