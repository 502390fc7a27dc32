"""Dates, times and durations between bounds."""

from __future__ import annotations

import datetime
import math
import re
from decimal import Decimal
from functools import lru_cache

from adapter.grammar.gbnf.automata import (
    Automaton,
    automaton_of,
    both,
    explored,
    minimal,
)
from adapter.grammar.gbnf.characters import DIGITS, Characters
from adapter.grammar.gbnf.numbers import integer, number
from adapter.grammar.gbnf.rules import IMPOSSIBLE, Expression, choice, sequence
from adapter.grammar.schema.formats import FORMATS

_UNITS = (("PT", 1, "S"), ("PT", 60, "M"), ("PT", 3600, "H"), ("P", 86400, "D"))
_SECOND = datetime.timedelta(seconds=1)
_MOST_OF_A_UNIT = 9999
_BASES = ("date", "time", "date-time")
_LAST = 0x10FFFF


class UnsupportedBound(ValueError):
    """A bound that no expression can express."""


def bounded_moment(kind: str, least: str | None, most: str | None) -> Automaton:
    """Texts of a format between two of them. None is no bound.

    If a bound has a time zone, all texts are in UTC. If it has none, they have none. Bounds are
    rounded to whole seconds, unless there are none between them.

    Raises:
        UnsupportedBound: a bound that no expression can express.
        TooLarge: it would take too many rules.
    """
    base = kind.removeprefix("naive-").removeprefix("any-")
    if base == "duration":
        ends = (None if one is None else _seconds(one) for one in (least, most))
        return automaton_of(_duration(*ends))
    if base not in _BASES:
        raise UnsupportedBound(f"bounds of {kind}")
    low, low_zoned = _read(base, least)
    high, high_zoned = _read(base, most)
    zones = {zoned for zoned in (low_zoned, high_zoned) if zoned is not None}
    if len(zones) > 1:
        raise UnsupportedBound("bounds with a zone and without one")
    zoned = zones.pop()
    if base != "date" and kind.startswith("naive-" if zoned else base):
        raise UnsupportedBound(f"{least or most} beside {kind}")
    for in_seconds in (True, False):
        made = _unbounded(base, "Z" if zoned else "")
        try:
            if low is not None:
                made = both(made, _from(_text(base, low, in_seconds=in_seconds, up=True)))
            if high is not None:
                made = both(made, _to(_text(base, high, in_seconds=in_seconds, up=False)))
        except OverflowError:
            continue
        if made.accepting:
            return made
    return automaton_of(IMPOSSIBLE)


@lru_cache
def _unbounded(base: str, zone: str) -> Automaton:
    plain = FORMATS[base if base == "date" else f"naive-{base}"]
    return minimal(automaton_of(sequence(plain, zone)))


def _read(base: str, bound: str | None) -> tuple[datetime.datetime | None, bool | None]:
    """A bound as a moment, in UTC if it has a zone, and whether it has one."""
    if bound is None:
        return None, None
    text = re.sub("[zZ]$", "+00:00", bound)
    try:
        if base == "time":
            text = f"{_DAY}T{text}"
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UnsupportedBound(f"{bound!r}, which is no {base}") from None
    if found.tzinfo is None:
        return found, False
    if base != "date-time" and found.utcoffset():
        raise UnsupportedBound(f"{bound!r}, which is not in UTC")
    return found.astimezone(datetime.timezone.utc).replace(tzinfo=None), True


_DAY = "2000-01-01"


def _text(base: str, moment: datetime.datetime, *, in_seconds: bool, up: bool) -> str:
    """A moment as it is written. Whole seconds are rounded inwards."""
    whole = moment.replace(microsecond=0)
    if in_seconds and up and whole != moment:
        whole += _SECOND
    if base == "time" and whole.date().isoformat() != _DAY:
        raise OverflowError
    text = whole.isoformat() if in_seconds else moment.isoformat(timespec="microseconds")
    return text[:10] if base == "date" else text[11:] if base == "time" else text


def _from(text: str) -> Automaton:
    """Texts that come after one in order, or begin with it."""

    def following(read: int) -> list[tuple[Characters, int]]:
        if read == len(text):
            return [(~Characters.of(), read)]
        same = (Characters.of(text[read]), read + 1)
        if text[read] == ".":
            return [same]  # without a fraction it would be less
        code = ord(text[read])
        above = (code + 1, ord("9")) if "." in text[:read] else (code + 1, _LAST)
        return [(Characters.of(above), len(text)), same] if above[0] <= above[1] else [same]

    return explored(0, following, lambda read: read == len(text))


def _to(text: str) -> Automaton:
    """Texts that come before one in order, or are equal to it."""
    free = len(text) + 1

    def following(read: int) -> list[tuple[Characters, int]]:
        if read == free:
            return [(~Characters.of(), free)]
        if read == len(text):
            return [(~Characters.of("."), free)]  # a fraction of a second would be more
        code = ord(text[read])
        less = Characters.of((0, code - 1))
        if read >= whole:
            less |= ~(DIGITS | Characters.of("."))  # the fraction ends here, or there is none
        return [(less, free), (Characters.of(text[read]), read + 1)]

    whole = text.find(".") if "." in text else len(text)
    return explored(0, following, lambda read: read >= whole)


def _duration(low: Decimal | None, high: Decimal | None) -> Expression:
    """Durations of one unit, which are few enough to count. Fractions of a second are only there
    where no whole second is.
    """
    options = _units("", low, high)
    if low is None or low < 0:
        below = _units("-", None if high is None else -high, None if low is None else -low)
        # Without bounds below zero, the most common ones are not negative.
        options += below if low is not None or not options else []
    if not options and low is not None and high is not None and low <= high:
        ends = (-high, -low) if high < 0 else (low, high)
        options.append(sequence("-PT" if high < 0 else "PT", number(*ends), "S"))
    return choice(options)


def _units(sign: str, low: Decimal | None, high: Decimal | None) -> list[Expression]:
    first = max(0, math.ceil(low or 0))
    options = []
    for begin, unit, end in _UNITS:
        start = -(-first // unit)
        last = max(_MOST_OF_A_UNIT, start) if high is None else math.floor(high / unit)
        if start <= last:
            options.append(sequence(sign + begin, integer(start, last), end))
    return options


def _seconds(bound: str) -> Decimal:
    found = re.fullmatch(r"(-?)PT(\d+(?:\.\d+)?)S", bound)
    if found is None:
        raise UnsupportedBound(f"{bound!r}, which is not a number of seconds such as PT90S")
    return Decimal(found[1] + found[2])
