"""Numbers between bounds: all of them, and no other."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st
from texts import expression_fits

from adapter.grammar.gbnf.numbers import integer, number

thorough = settings(deadline=None, max_examples=150)
bound = st.none() | st.integers(-3000, 3000)
decimals = st.decimals(-50, 50, places=3, allow_nan=False)


@thorough
@given(bound, bound, st.lists(st.integers(-4000, 4000), max_size=8))
def test_integers(tiny, low, high, others):
    if low is not None and high is not None:
        low, high = sorted((low, high))
    expression = integer(low, high)
    ends = [end + by for end in (low, high) if end is not None for by in (-1, 0, 1)]
    for one in {*ends, *others}:
        inside = (low is None or one >= low) and (high is None or one <= high)
        assert expression_fits(tiny, expression, str(one)) == inside, (low, high, one)


@thorough
@given(st.none() | decimals, st.none() | decimals, st.booleans(), st.booleans(), decimals)
def test_decimals(tiny, low, high, above, below, other):
    if low is not None and high is not None:
        low, high = sorted((low, high))
    if low is not None and low == high:
        above = below = False
    expression = number(low, high, above=above, below=below)
    near = [end + by for end in (low, high) if end is not None for by in map(Decimal, STEPS)]
    for one in {*near, other, Decimal(0), Decimal("-0.5")}:
        inside = (low is None or one > low or (one == low and not above)) and (
            high is None or one < high or (one == high and not below)
        )
        text = f"{one:f}"
        if text.startswith("-0") and not text.strip("-0."):
            continue  # minus zero is left out where a bound is
        assert expression_fits(tiny, expression, text) == inside, (low, high, above, below, text)


STEPS = ("-1", "-0.001", "-0.00001", "0", "0.00001", "0.001", "1")


def test_numbers_are_finite_and_written_as_in_json(tiny):
    expression = number(None, None)
    for text in ("0", "-1.5e3", "12E-09", "1e99"):
        assert expression_fits(tiny, expression, text)
    for text in ("1e999", "01", ".5", "5.", "+1", "0x1", "NaN", "-"):
        assert not expression_fits(tiny, expression, text)
