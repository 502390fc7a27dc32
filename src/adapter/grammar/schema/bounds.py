"""The bounds of a schema's numbers, in so many digits as are ever written."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from adapter.grammar.gbnf.numbers import FRACTION_DIGITS
from adapter.grammar.schema.merging import Schema, SchemaError


def bounds(schema: Schema) -> tuple[Decimal | None, bool, Decimal | None, bool]:
    """The least and the most of a number, and whether these themselves are left out."""

    def exact(keyword: str) -> Decimal | None:
        return Decimal(repr(schema[keyword])) if keyword in schema else None

    low, above = exact("minimum"), exact("exclusiveMinimum")
    high, below = exact("maximum"), exact("exclusiveMaximum")
    is_above = above is not None and (low is None or above >= low)
    is_below = below is not None and (high is None or below <= high)
    low, high = above if is_above else low, below if is_below else high
    if (low is not None and low >= _LARGEST) or (high is not None and high <= -_LARGEST):
        raise SchemaError(f"its numbers have more than {_DIGITS} digits")
    # Bounds of more digits than are ever written.
    if low is not None:
        low, is_above = (
            (None, False) if low <= -_LARGEST else _rounded(low, is_above, ROUND_CEILING)
        )
    if high is not None:
        high, is_below = (
            (None, False) if high >= _LARGEST else _rounded(high, is_below, ROUND_FLOOR)
        )
    return low, is_above, high, is_below


_DIGITS = 18
_LARGEST = Decimal(10) ** _DIGITS


def _rounded(bound: Decimal, is_open: bool, rounding: str) -> tuple[Decimal, bool]:
    """A bound of no more digits than a fraction has, on the inner side."""
    with localcontext() as context:
        context.prec = 2 * _DIGITS
        rounded = bound.quantize(Decimal(1).scaleb(-FRACTION_DIGITS), rounding=rounding)
    return rounded, is_open and rounded == bound
