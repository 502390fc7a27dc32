"""Lists of a few known things in any order, without repetition."""

from __future__ import annotations

import math
from typing import NamedTuple

from adapter.grammar.gbnf.rules import (
    EMPTY,
    IMPOSSIBLE,
    Expression,
    Rule,
    Rules,
    choice,
    sequence,
)

MAX_SETS = 256
"""The most sets of things that a list may have had so far. Each takes a rule."""


def once_each(
    rules: Rules,
    hint: str,
    things: list[Expression],
    comma: Expression,
    least: int,
    most: int | None,
) -> Expression | None:
    """Lists of `least` to `most` of the things, without repetition; None if it takes too many
    rules.
    """
    most = len(things) if most is None else min(most, len(things))
    if least > most:
        return IMPOSSIBLE
    if sum(math.comb(len(things), count) for count in range(1, most + 1)) > MAX_SETS:
        return None
    lists = _Lists(rules, hint, tuple(things), comma, least, most)
    options = [sequence(thing, lists.following(frozenset({i}))) for i, thing in enumerate(things)]
    return choice([*([] if least else [EMPTY]), *(options if most else [])])


class _Lists(NamedTuple):
    """Lists of `least` to `most` things of a few, each at most once."""

    rules: Rules
    hint: str
    things: tuple[Expression, ...]
    comma: Expression
    least: int
    most: int

    def following(self, had: frozenset[int]) -> Rule:
        """What may come after these things."""
        key = ("once", self.things, self.least, self.most, had)
        return self.rules.add(f"{self.hint}-more", key, lambda: self._more(had))

    def _more(self, had: frozenset[int]) -> Expression:
        options: list[Expression] = [EMPTY] if len(had) >= self.least else []
        if len(had) < self.most:
            options += [
                sequence(self.comma, thing, self.following(had | {index}))
                for index, thing in enumerate(self.things)
                if index not in had
            ]
        return choice(options)
