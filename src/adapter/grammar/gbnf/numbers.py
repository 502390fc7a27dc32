"""Numbers between bounds, as expressions over their digits."""

from __future__ import annotations

import math
from decimal import Decimal

from adapter.grammar.gbnf.characters import DIGITS, Characters
from adapter.grammar.gbnf.rules import (
    EMPTY,
    IMPOSSIBLE,
    Expression,
    choice,
    one_of,
    optional,
    repeat,
    sequence,
)

INTEGER_DIGITS = 16
"""The most digits of a number without a bound: what a double holds exactly, as in llama.cpp."""

FRACTION_DIGITS = 15

_NONZERO = one_of(Characters.of((0x31, 0x39)))
_DIGIT = one_of(DIGITS)

INTEGER: Expression = sequence(
    optional("-"), choice(["0", sequence(_NONZERO, repeat(_DIGIT, 0, INTEGER_DIGITS - 1))])
)

# Two digits of exponent keep every number finite.
NUMBER: Expression = sequence(
    INTEGER,
    optional(sequence(".", repeat(_DIGIT, 1, FRACTION_DIGITS))),
    optional(sequence(one_of(Characters.of("eE")), optional(one_of(Characters.of("+-"))),
                      repeat(_DIGIT, 1, 2))),
)  # fmt: skip


def integer(low: int | None, high: int | None) -> Expression:
    """Whole numbers from `low` to `high`. Without a bound, their digits are limited."""
    if low is None and high is None:
        return INTEGER
    limit = 10 ** max(INTEGER_DIGITS, *(len(str(abs(b))) + 1 for b in (low, high) if b is not None))
    low = 1 - limit if low is None else low
    high = limit - 1 if high is None else high
    options = []
    if low < 0:
        options.append(sequence("-", _whole(max(1, -high), -low)))
    if high >= 0:
        options.append(_whole(max(0, low), high))
    return choice(options)


def number(
    low: Decimal | None, high: Decimal | None, *, above: bool = False, below: bool = False
) -> Expression:
    """Decimal numbers from `low` to `high`. `above` and `below` exclude the bounds themselves."""
    if low is None and high is None:
        return NUMBER
    options = []
    if low is None or low < 0:
        # Mirrored: -5 < x <= -2 is 2 <= -x < 5.
        least = Decimal(0) if high is None else max(Decimal(0), -high)
        least_open = below and high is not None and high <= 0
        most = None if low is None else -low
        options.append(sequence("-", _decimal(least, most, above=least_open, below=above)))
    if high is None or high >= 0:
        least, least_open = (low, above) if low is not None and low >= 0 else (Decimal(0), False)
        options.append(_decimal(least, high, above=least_open, below=below))
    return choice(options)


def _whole(low: int, high: int) -> Expression:
    """Whole numbers from 0 on, without leading zeros."""
    options = []
    for length in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        most = min(high, 10**length - 1)
        if least <= most:
            options.append(_same_length(str(least), str(most)))
    return choice(options)


def _same_length(low: str, high: str) -> Expression:
    """Digit strings between two of the same length."""
    rest = len(low) - 1
    if low == high:
        return sequence(low)
    first, last = int(low[0]), int(high[0])
    if first == last:
        return sequence(low[0], _same_length(low[1:], high[1:]))
    options = []
    if low[1:].strip("0"):
        options.append(sequence(low[0], _same_length(low[1:], "9" * rest)))
        first += 1
    if high[1:].strip("9"):
        options.append(sequence(high[0], _same_length("0" * rest, high[1:])))
        last -= 1
    options.append(sequence(_digits(first, last), repeat(_DIGIT, rest, rest)))
    return choice(options)


def _digits(first: int, last: int) -> Expression:
    if first > last:
        return IMPOSSIBLE
    return one_of(Characters.of((0x30 + first, 0x30 + last)))


def _decimal(low: Decimal, high: Decimal | None, *, above: bool, below: bool) -> Expression:
    """Decimal numbers from 0 on."""
    if high is None:
        high, below = Decimal(10) ** max(INTEGER_DIGITS, low.adjusted() + 2), True
    least, most = math.floor(low), math.floor(high)
    low_part, high_part = _fraction(low - least), _fraction(high - most)
    if least == most:
        return sequence(str(least), _point(_between(low_part, above, high_part, below)))
    options = [
        sequence(str(least), _point(_at_least(low_part, above))),
        sequence(str(most), _point(_at_most(high_part, below))),
    ]
    if least + 1 < most:
        any_fraction = optional(sequence(".", repeat(_DIGIT, 1, FRACTION_DIGITS)))
        options.append(sequence(_whole(least + 1, most - 1), any_fraction))
    return choice(options)


def _fraction(value: Decimal) -> str:
    return f"{value:f}".partition(".")[2].rstrip("0")


Fraction = tuple[bool, Expression]
"""Whether there may be no digit at all, and the digits if there are some."""


def _point(fraction: Fraction) -> Expression:
    may_lack, digits = fraction
    with_point = sequence(".", digits)
    return choice([EMPTY, with_point]) if may_lack else with_point


def _whole_of(fraction: Fraction) -> Expression:
    may_lack, digits = fraction
    return choice([EMPTY, digits]) if may_lack else digits


def _any_digits(used: int = 0) -> Expression:
    return repeat(_DIGIT, 0, max(1, FRACTION_DIGITS - used))


def _at_least(bound: str, above: bool) -> Fraction:
    """Digits of fractions from 0.`bound` on."""
    if not bound:
        if above:
            zeros = repeat("0", 0, FRACTION_DIGITS - 8)
            return False, sequence(zeros, _NONZERO, repeat(_DIGIT, 0, 7))
        return True, repeat(_DIGIT, 1, FRACTION_DIGITS)
    first, rest = int(bound[0]), _at_least(bound[1:], above)
    more = sequence(_digits(first + 1, 9), _any_digits(len(bound)))
    return False, choice([more, sequence(bound[0], _whole_of(rest))])


def _at_most(bound: str, below: bool) -> Fraction:
    """Digits of fractions up to 0.`bound`."""
    if not bound:
        return (False, IMPOSSIBLE) if below else (True, repeat("0", 1, FRACTION_DIGITS))
    first, rest = int(bound[0]), _at_most(bound[1:], below)
    less = sequence(_digits(0, first - 1), _any_digits(len(bound)))
    return True, choice([less, sequence(bound[0], _whole_of(rest))])


def _between(low: str, above: bool, high: str, below: bool) -> Fraction:
    if not high:
        return (False, IMPOSSIBLE) if low or above or below else _at_most("", False)
    first, last = int(low[:1] or 0), int(high[0])
    may_lack = not low and not above
    if first == last:
        return may_lack, sequence(high[0], _whole_of(_between(low[1:], above, high[1:], below)))
    options = [
        sequence(str(first), _whole_of(_at_least(low[1:], above))),
        sequence(_digits(first + 1, last - 1), _any_digits()),
        sequence(high[0], _whole_of(_at_most(high[1:], below))),
    ]
    return may_lack, choice(options if first < last else [])
