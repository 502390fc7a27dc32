"""The numbers that a schema allows, as they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from adapter.grammar.gbnf.automata import TooLarge
from adapter.grammar.gbnf.digits import (
    EXACT_DIGITS,
    digits_of,
    exact,
    multiple_integer,
    special_number,
)
from adapter.grammar.gbnf.numbers import integer, number
from adapter.grammar.gbnf.rules import IMPOSSIBLE, Expression, Rules
from adapter.grammar.schema.bounds import bounds, require_contradictory, within_as_doubles
from adapter.grammar.schema.merging import Schema

Leave = Callable[[str], None]
"""Records what is left out of a schema."""


def integer_text(rules: Rules, schema: Schema, leave: Leave) -> Expression:
    """Whole numbers, which are read exactly."""
    low, above, high, below = bounds(schema)
    least = None if low is None else math.floor(low) + 1 if above else math.ceil(low)
    most = None if high is None else math.ceil(high) - 1 if below else math.floor(high)
    if least is not None and most is not None and least > most:
        return IMPOSSIBLE
    if "multipleOf" in schema:
        try:
            return multiple_integer(rules, least, most, exact(schema["multipleOf"]))
        except TooLarge:
            leave("multipleOf")
    return integer(least, most)


def number_text(rules: Rules, schema: Schema, leave: Leave) -> Expression:
    """Numbers that fit the schema even after they are read as doubles, as JSON's numbers mostly
    are.

    Rounding never moves a number past a bound, but may make it equal to one. It changes a multiple
    of a fraction and a Decimal. So these have no more digits than a double keeps.
    """
    low, above, high, below = bounds(schema)
    step = exact(schema["multipleOf"]) if "multipleOf" in schema else None
    total, places = digits_of(schema.get("x-digits"))
    is_exact = "x-digits" in schema or (step is not None and step % 1 != 0)
    if not is_exact:
        low, above, high, below = within_as_doubles(low, above, high, below)
    if low is not None and high is not None and (low > high or (low == high and (above or below))):
        require_contradictory(schema)
        return IMPOSSIBLE
    if step is None and not is_exact:
        return number(low, high, above=above, below=below)
    special = partial(
        special_number,
        rules,
        (low, high),
        (above, below),
        step=step,
        total=total,
        places=places,
    )
    try:
        found = special(is_exact=is_exact)
        if found == IMPOSSIBLE and is_exact:
            found = special(is_exact=False)
            if found != IMPOSSIBLE:
                leave(_MORE_DIGITS)
        return found
    except TooLarge:
        given = [keyword for keyword in ("multipleOf", "x-digits") if schema.get(keyword)]
        for what in given or [_MORE_DIGITS]:
            leave(what)
        return number(low, high, above=above, below=below)


_MORE_DIGITS = f"numbers of more than {EXACT_DIGITS} digits"
