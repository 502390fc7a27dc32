"""Numbers with more conditions than bounds: multiples, and limited digits."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cache, lru_cache, partial

from adapter.grammar.gbnf.automata import (
    MAX_RULES,
    Automaton,
    TooLarge,
    automaton_of,
    both,
    characters_only,
    counted,
    explored,
    minimal,
)
from adapter.grammar.gbnf.characters import DIGITS, Characters
from adapter.grammar.gbnf.numbers import integer, number
from adapter.grammar.gbnf.rules import Expression, Rules, any_text, choice, sequence

_MINUS = Characters.of("-")
_POINT = Characters.of(".")
_ZERO = Characters.of("0")
_DIGITS = [Characters.of(str(digit)) for digit in range(10)]
_EXPONENT = Characters.of("eE")
_SIGNS = Characters.of("+-")
_LISTED = 500
"""The most multiples between bounds that are written out."""

_LARGEST = 10**15

_MOST_REMAINDERS = MAX_RULES // 12
"""The largest step without bounds. More, each at a dozen digits or more, would exceed MAX_RULES."""

_LIMITS = (10**9, 10**6)
"""The largest number if there is no bound. If that takes too many rules, the next one is tried."""


def multiple_integer(rules: Rules, low: int | None, high: int | None, step: Decimal) -> Expression:
    """Whole multiples of `step`, which is above 0, between bounds.

    Raises:
        TooLarge: it would take too many rules.
    """
    whole, _ = step.as_integer_ratio()  # 3/2 divides the multiples of 3
    if whole == 1:
        return integer(low, high)
    zeros = len(str(whole)) - len(str(whole).rstrip("0"))
    if zeros:
        return _with_zeros(rules, low, high, whole, zeros)
    if low is not None and high is not None:
        first, last = -(-low // whole), high // whole
        if last - first < _LISTED:
            return any_text(str(one * whole) for one in range(first, last + 1))
    fitting = multiples(Decimal(whole))
    for limit in _LIMITS:
        least = min(-limit, 10 * (high or 0)) if low is None else low
        most = max(limit, 10 * (low or 0)) if high is None else high
        try:
            made = counted(rules, partial(_between, least, most, fitting))
            return made.expression(rules, characters_only)
        except TooLarge:
            continue
    raise TooLarge(f"multiples of {whole} beyond {_LIMITS[-1]}")


def _between(least: int, most: int, fitting: Automaton) -> Automaton:
    return both(automaton_of(integer(least, most)), fitting)


def _with_zeros(
    rules: Rules, low: int | None, high: int | None, whole: int, zeros: int
) -> Expression:
    """Multiples of a number that ends in zeros: others, followed by as many zeros."""
    power = 10**zeros
    least = None if low is None else -(-low // power)
    most = None if high is None else high // power
    step = Decimal(whole // power)
    options: list[Expression | str] = []
    if least is None or least < 0:
        below = multiple_integer(rules, least, -1 if most is None else min(most, -1), step)
        options.append(sequence(below, "0" * zeros))
    if (least is None or least <= 0) and (most is None or most >= 0):
        options.append("0")
    if most is None or most > 0:
        above = multiple_integer(rules, 1 if least is None else max(least, 1), most, step)
        options.append(sequence(above, "0" * zeros))
    return choice(options)


def special_number(
    rules: Rules,
    bounds: tuple[Decimal | None, Decimal | None],
    are_open: tuple[bool, bool],
    *,
    step: Decimal | None,
    total: int | None,
    places: int | None,
    is_exact: bool = False,
) -> Expression:
    """Decimal numbers between bounds: multiples of `step`, or of limited digits.

    Args:
        are_open: whether the bounds themselves are excluded.
        total: digits in all, as pydantic counts them for max_digits.
        places: digits after the point.
        is_exact: only numbers that do not change when they are read as doubles.

    Raises:
        TooLarge: it would take too many rules.
    """
    above, below = are_open
    if step is not None and total is None and places is None:
        listed = _listed(bounds, are_open, step)
        if listed is not None:
            return any_text(one for one in listed if not is_exact or _is_kept(one))
    if step is not None and None in bounds:
        _require_small(step)

    def all_at_once() -> Automaton:
        made = automaton_of(number(*bounds, above=above, below=below))
        if is_exact:
            made = both(made, kept_by_doubles())
        if step is not None:
            made = both(made, multiples(step))
        if total is not None or places is not None:
            made = both(made, so_many_digits(total, places))
        return made

    return counted(rules, all_at_once).expression(rules, characters_only)


def _listed(
    bounds: tuple[Decimal | None, Decimal | None], are_open: tuple[bool, bool], step: Decimal
) -> list[str] | None:
    """The multiples between two bounds, in the shortest form; None if there are many."""
    low, high = bounds
    if low is None or high is None or (high - low) / step > _LISTED:
        return None
    if max(abs(low), abs(high)) / step > _LARGEST:
        return None  # more digits than the computation has
    first, last = math.ceil(low / step), math.floor(high / step)
    first += are_open[0] and first * step == low
    last -= are_open[1] and last * step == high
    texts = []
    for count in range(first, last + 1):
        text = f"{count * step:f}"
        texts.append(text.rstrip("0").rstrip(".") if "." in text else text)
    return texts


def _require_small(step: Decimal) -> None:
    """Refuse steps without bounds whose automaton is too large, before it is made.

    It has a state for each remainder, apart from powers of 2 and 5, at each of about ten digits.
    """
    odd = int("".join(map(str, step.as_tuple().digits)))
    for factor in (2, 5):
        while odd % factor == 0:
            odd //= factor
    if odd > _MOST_REMAINDERS:
        raise TooLarge(f"multiples of {step} without bounds")


@lru_cache(64)
def multiples(step: Decimal) -> Automaton:
    """Multiples of `step` without an exponent, with no more digits than it has, in few states.

    Raises:
        TooLarge: it would take too many rules.
    """
    _, digits, exponent = step.normalize().as_tuple()
    assert isinstance(exponent, int)  # it is finite
    modulus = int("".join(map(str, digits))) * 10 ** max(0, exponent)
    places = max(0, -exponent)
    below = modulus // math.gcd(modulus, 10)

    def same(remainder: int) -> int:
        """The least remainder that the same digits complete. The next one may hide a difference."""
        return remainder if places or remainder == 0 else remainder % below or below

    def following(state: tuple[int, int]) -> list[tuple[Characters, tuple[int, int]]]:
        remainder, place = state
        found: list[tuple[Characters, tuple[int, int]]] = []
        if place == _SIGN:
            found.append((_MINUS, (0, _MINUSED)))
        if place == _WHOLE and places:
            found.append((_POINT, (remainder, 0)))
        if place < places:
            after = place + 1 if place >= 0 else _WHOLE
            for digit, one in enumerate(_DIGITS):
                found.append((one, (same((remainder * 10 + digit) % modulus), after)))
        return found

    def accepts(state: tuple[int, int]) -> bool:
        remainder, place = state
        if place in (_SIGN, _MINUSED, 0):
            return False
        missing = places - max(0, place)
        return bool(remainder * 10**missing % modulus == 0)

    return minimal(explored((0, _SIGN), following, accepts))


# Places before the point. Behind it, the place is the number of digits so far.
_SIGN, _MINUSED, _WHOLE, _ENDED = -4, -3, -2, -1
_RAISED, _RAISED_SIGNED, _RAISED_BY = -7, -6, -5  # in an exponent


def so_many_digits(total: int | None, places: int | None) -> Automaton:
    """Numbers without an exponent that have limited digits in all, and after the point.

    A zero before the point does not count. If both are given, the difference limits the whole part.
    """
    most_places = 15 if places is None else places
    most_whole = 18 if total is None else total if places is None else max(0, total - places)

    def room(whole: int, place: int) -> bool:
        return place <= most_places and (total is None or whole + place <= total)

    def following(state: tuple[int, int]) -> list[tuple[Characters, tuple[int, int]]]:
        whole, place = state
        found: list[tuple[Characters, tuple[int, int]]] = []
        if place == _SIGN:
            found.append((_MINUS, (0, _WHOLE)))
        if place in (_SIGN, _WHOLE):
            if whole == 0:
                found.append((_ZERO, (0, _ENDED)))
            if whole < most_whole:
                found.append((DIGITS if whole else DIGITS - _ZERO, (whole + 1, _WHOLE)))
        if (place == _ENDED or whole) and place in (_WHOLE, _ENDED) and room(whole, 1):
            found.append((_POINT, (whole, 0)))
        if place >= 0 and room(whole, place + 1):
            found.append((DIGITS, (whole, place + 1)))
        return found

    def accepts(state: tuple[int, int]) -> bool:
        whole, place = state
        ended = place == _ENDED and most_whole > 0
        return place > 0 or ended or (place == _WHOLE and whole > 0)

    return explored((0, _SIGN), following, accepts)


EXACT_DIGITS = 15
"""How many digits of a number survive being read as a double and written again."""


def _is_kept(text: str) -> bool:
    return "." not in text or Decimal(repr(float(text))) == Decimal(text)


@cache
def kept_by_doubles() -> Automaton:
    """Numbers of JSON that Python reads without changing them.

    With a point or an exponent they are doubles, and have at most EXACT_DIGITS digits. A zero
    before the point does not count. Other numbers are read exactly, whatever their length.
    """

    def following(state: tuple[int, int]) -> list[tuple[Characters, tuple[int, int]]]:
        count, place = state
        found: list[tuple[Characters, tuple[int, int]]] = []
        if place == _SIGN:
            found.append((_MINUS, (0, _WHOLE)))
        if place in (_SIGN, _WHOLE):
            if count == 0:
                found.append((_ZERO, (0, _ENDED)))
            digits = DIGITS if count else DIGITS - _ZERO
            found.append((digits, (min(count + 1, EXACT_DIGITS + 1), _WHOLE)))
        is_whole = place == _ENDED or (place == _WHOLE and count > 0)
        if is_whole and count < EXACT_DIGITS:
            found.append((_POINT, (count, 0)))
        if place in (0, 1) and count < EXACT_DIGITS:
            found.append((DIGITS, (count + 1, 1)))
        if (is_whole or place == 1) and count <= EXACT_DIGITS:
            found.append((_EXPONENT, (0, _RAISED)))
        if place == _RAISED:
            found.append((_SIGNS, (0, _RAISED_SIGNED)))
        if place in (_RAISED, _RAISED_SIGNED, _RAISED_BY):
            found.append((DIGITS, (0, _RAISED_BY)))
        return found

    def accepts(state: tuple[int, int]) -> bool:
        count, place = state
        return place in (_ENDED, 1, _RAISED_BY) or (place == _WHOLE and count > 0)

    return explored((0, _SIGN), following, accepts)


def exact(value: float) -> Decimal:
    """A JSON number as it is written."""
    return Decimal(repr(value))


def digits_of(asked: object) -> tuple[int | None, int | None]:
    """pydantic's max_digits and decimal_places, from a schema that has them."""
    if not isinstance(asked, dict):
        return None, None
    found = [asked.get(name) for name in ("max_digits", "decimal_places")]
    total, places = (one if isinstance(one, int) and one >= 0 else None for one in found)
    return total, places
