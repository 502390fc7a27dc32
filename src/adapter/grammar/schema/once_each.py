"""Lists of a few known things in any order, without repetition."""

from __future__ import annotations

import math

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
    identity = (tuple(things), least, most)

    def following(had: frozenset[int]) -> Rule:
        """What may come after these things."""

        def body() -> Expression:
            options: list[Expression] = [EMPTY] if len(had) >= least else []
            if len(had) < most:
                options += [
                    sequence(comma, thing, following(had | {index}))
                    for index, thing in enumerate(things)
                    if index not in had
                ]
            return choice(options)

        return rules.add(f"{hint}-more", ("once", identity, had), body)

    options = [sequence(thing, following(frozenset({i}))) for i, thing in enumerate(things)]
    return choice([*([] if least else [EMPTY]), *(options if most else [])])
