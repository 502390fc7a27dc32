"""The bounds of a schema's numbers, with no more digits than are ever written."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from adapter.grammar.gbnf.numbers import FRACTION_DIGITS
from adapter.grammar.schema.merging import Schema, SchemaError

Bounds = tuple[Decimal | None, bool, Decimal | None, bool]


def bounds(schema: Schema) -> Bounds:
    """The least and the most of a number, and whether these themselves are excluded."""

    def exact(keyword: str) -> Decimal | None:
        return Decimal(repr(schema[keyword])) if keyword in schema else None

    low, above = exact("minimum"), exact("exclusiveMinimum")
    high, below = exact("maximum"), exact("exclusiveMaximum")
    is_above = above is not None and (low is None or above >= low)
    is_below = below is not None and (high is None or below <= high)
    low, high = above if is_above else low, below if is_below else high
    nearest = max(0 if low is None else low, 0 if high is None else -high)
    if nearest >= _LARGEST:
        raise SchemaError(f"its numbers have more than {_MOST_DIGITS} digits")
    # Bounds with more digits than have to be written.
    limit = _LARGEST if nearest >= _LARGE else _LARGE
    if low is not None:
        low, is_above = (None, False) if low <= -limit else _rounded(low, is_above, ROUND_CEILING)
    if high is not None:
        high, is_below = (None, False) if high >= limit else _rounded(high, is_below, ROUND_FLOOR)
    return low, is_above, high, is_below


def require_contradictory(schema: Schema) -> None:
    """Refuse bounds between which there are numbers, but none that is short enough to be written.

    Raises SchemaError.
    """
    low = max(schema[one] for one in ("minimum", "exclusiveMinimum") if one in schema)
    high = min(schema[one] for one in ("maximum", "exclusiveMaximum") if one in schema)
    is_open = low == schema.get("exclusiveMinimum") or high == schema.get("exclusiveMaximum")
    if low < high or (low == high and not is_open):
        raise SchemaError(f"its numbers have more than {FRACTION_DIGITS} digits after the point")


_LARGE = Decimal(10) ** 18
"""Numbers up to here are written, unless a schema's are all beyond it."""

_MOST_DIGITS = 100
_LARGEST = Decimal(10) ** _MOST_DIGITS


def _rounded(bound: Decimal, is_open: bool, rounding: str) -> tuple[Decimal, bool]:
    """A bound with no more digits than a fraction has, rounded inwards."""
    with localcontext() as context:
        context.prec = _MOST_DIGITS + FRACTION_DIGITS + 1
        rounded = bound.quantize(Decimal(1).scaleb(-FRACTION_DIGITS), rounding=rounding)
    return rounded, is_open and rounded == bound


def within_as_doubles(
    low: Decimal | None, above: bool, high: Decimal | None, below: bool
) -> Bounds:
    """Bounds of numbers that are read as doubles, such that no number is rounded to an excluded
    bound.

    An excluded bound, or one that is no double, is replaced by the next double. Near zero, doubles
    are closer to each other than numbers of FRACTION_DIGITS.
    """
    if low is not None and abs(low) >= _SPARSE and (above or not _is_double(low)):
        low, above = Decimal(repr(math.nextafter(float(low), math.inf))), False
    if high is not None and abs(high) >= _SPARSE and (below or not _is_double(high)):
        high, below = Decimal(repr(math.nextafter(float(high), -math.inf))), False
    return low, above, high, below


def _is_double(number: Decimal) -> bool:
    return Decimal(repr(float(number))) == number


_SPARSE = 8
