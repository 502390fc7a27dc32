"""The text of a string that must meet several conditions at once."""

from __future__ import annotations

from functools import lru_cache, partial

from adapter.grammar.gbnf.automata import (
    MAX_RULES,
    Automaton,
    TooLarge,
    automaton_of,
    both,
    counted,
    lengths,
    minimal,
)
from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern
from adapter.grammar.gbnf.pattern_automata import pattern_automaton
from adapter.grammar.gbnf.patterns import Spelling, pattern_expression
from adapter.grammar.gbnf.rules import (
    IMPOSSIBLE,
    MAX_REPEAT,
    Choice,
    Concatenation,
    Expression,
    OneOf,
    Repeat,
    Rules,
    Text,
    choice,
    one_of,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema.formats import FORMATS, format_expression
from adapter.grammar.schema.moments import UnsupportedBound, bounded_moment
from adapter.grammar.schema.web_formats import (
    ENDLESS_EMAIL,
    ENDLESS_HOST,
    ENDLESS_URI,
    MAX_LABEL,
    URI,
)

_WHITE_SPACE = Characters.of(
    (0x09, 0x0D), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
    (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_VISIBLE = one_of(~_WHITE_SPACE)

STRIPPED = optional(
    sequence(_VISIBLE, optional(sequence(repeat(one_of(~Characters.of())), _VISIBLE)))
)
"""A text without white space around it."""


class StringTexts:
    """Conditions on a text. Those that a grammar can express are applied.

    One alone is written as it stands; several are made one by the product of their automata. In it
    some formats have parts of any length, which a length beside them limits.

    Attributes:
        unchecked: what must be checked after.
    """

    def __init__(self, rules: Rules, spelled: Spelling) -> None:
        self._rules = rules
        self._spelled = spelled
        self._demands: dict[str, Expression | Automaton] = {}
        self._is_plain = True  # only of characters that are never escaped
        self.unchecked: list[str] = []

    def add_format(self, kind: str, least: str | None = None, most: str | None = None) -> None:
        """Require a format, with bounds. An unknown format is reported."""
        made: Expression | Automaton | None = format_expression(kind)
        if made is None:
            self.unchecked.append(f"format {kind}")
            return
        if least is not None or most is not None:
            try:
                made = bounded_moment(kind, least, most)
            except (UnsupportedBound, TooLarge) as reason:
                self.unchecked.append(f"bounds ({reason})")
        self._demands[f"format {kind}"] = made
        self._is_plain &= kind in FORMATS

    def add_pattern(self, pattern: str) -> None:
        """Require a match of a regular expression."""
        made: Expression | Automaton
        try:
            try:
                made = pattern_expression(pattern, one_of)
            except UnsupportedPattern:
                made = counted(self._rules, partial(pattern_automaton, pattern))
        except (UnsupportedPattern, TooLarge) as reason:
            self.unchecked.append(f"pattern {pattern} ({reason})")
            return
        self._demands[f"pattern {pattern}"] = made
        self._is_plain = False

    def add(self, name: str, expression: Expression) -> None:
        """Require an expression without rules."""
        self._demands[name] = expression

    def expression(self, least: int = 0, most: int | None = None) -> Expression | None:
        """The texts of limited length that meet all conditions; None if there are none."""
        if not self._demands:
            return None
        [first, *others] = self._demands.values()
        if not isinstance(first, Automaton):
            shortest, longest = _extent(first)
            least = least if shortest < least else 0
            most = most if most is not None and (longest is None or longest > most) else None
        if not others and not isinstance(first, Automaton) and (least or most is not None):
            counted = self._counted(first, least, most)
            if counted is not None:
                return counted
        if least or most is not None:
            names = {"minLength": least > 0, "maxLength": most is not None}
            given = " and ".join(name for name, asked in names.items() if asked)
            try:
                self._demands[given] = lengths(least, most)
            except TooLarge:
                self.unchecked.append(given)
        if len(self._demands) == 1 and not isinstance(first, Automaton):
            return self._written(first)
        return self._product(most)

    def _product(self, most: int | None) -> Expression | None:
        """All conditions at once, except those that make it too large."""
        made: Automaton | None = None
        kept = []
        for name, demand in self._demands.items():
            if name in _ENDLESS and (name == _URI or (most is not None and most <= MAX_LABEL)):
                demand = _endless(name)
            try:
                product = counted(self._rules, partial(_narrowed, made, demand))
                if len(product.steps) > MAX_RULES:
                    raise TooLarge(name)
            except TooLarge:
                self.unchecked.append(name)
                continue
            made = product
            kept.append(name)
            if not made.accepting:
                return IMPOSSIBLE
        if made is None:
            return None
        if kept == [_URI]:
            return self._written(URI)  # alone, it has a limit of its own
        # What counts characters has hardly two states that are the same.
        return made.expression(self._rules, self._spelled, is_minimal=len(made.steps) > _SMALL)

    def _written(self, only: Expression) -> Expression:
        return only if self._is_plain else self._respelled(only)

    def _respelled(self, part: Expression) -> Expression:
        """An expression of the text itself as it is written."""
        if isinstance(part, Text):
            return sequence(*(self._spelled(Characters.of(one)) for one in part.text))
        if isinstance(part, OneOf):
            return self._spelled(part.characters)
        if isinstance(part, Concatenation):
            return sequence(*map(self._respelled, part.parts))
        if isinstance(part, Choice):
            return choice(map(self._respelled, part.options))
        if isinstance(part, Repeat):
            return Repeat(self._respelled(part.part), part.least, part.most)
        return part

    def _counted(self, only: Expression, least: int, most: int | None) -> Expression | None:
        """An expression with one repetition, with a count that gives the text this length.

        None if it has none, several, or parts of several lengths.
        """
        parts: list[Expression] = [*only.parts] if isinstance(only, Concatenation) else [only]
        sizes = [_length(part) for part in parts]
        if sizes.count(None) != 1:
            return None
        index = sizes.index(None)
        loop = parts[index]
        size = _length(loop.part) if isinstance(loop, Repeat) else None
        if not isinstance(loop, Repeat) or not size:
            return None
        fixed = sum(one for one in sizes if one is not None)
        fewest = max(loop.least, -(-(least - fixed) // size))
        limits = [] if loop.most is None else [loop.most]
        if most is not None:
            limits.append((most - fixed) // size)
        if limits and fewest > min(limits):
            return IMPOSSIBLE
        if fewest > MAX_REPEAT:
            raise TooLarge(f"{fewest} repetitions")
        highest = min(limits) if limits and min(limits) <= MAX_REPEAT else None
        if limits and highest is None:
            self.unchecked.append("maxLength")
        parts[index] = repeat(loop.part, fewest, highest)
        return self._written(sequence(*parts))


def _narrowed(made: Automaton | None, demand: Expression | Automaton) -> Automaton:
    """What an automaton accepts and another condition allows."""
    one = demand if isinstance(demand, Automaton) else automaton_of(demand)
    return one if made is None else both(made, one)


def _extent(part: Expression) -> tuple[int, int | None]:
    """The lengths of an expression's shortest and longest text; None for no longest one."""
    if isinstance(part, Text):
        return len(part.text), len(part.text)
    if isinstance(part, OneOf):
        return 1, 1
    if isinstance(part, Repeat):
        least, most = _extent(part.part)
        longest = None if most is None or part.most is None else most * part.most
        return least * part.least, longest
    if not isinstance(part, (Concatenation, Choice)):
        return 0, None
    parts = part.parts if isinstance(part, Concatenation) else part.options
    if not parts:
        return 0, 0
    extents = [_extent(one) for one in parts]
    leasts = [least for least, _ in extents]
    mosts = [most for _, most in extents if most is not None]
    is_bounded = len(mosts) == len(parts)
    if isinstance(part, Concatenation):
        return sum(leasts), sum(mosts) if is_bounded else None
    return min(leasts), max(mosts) if is_bounded else None


_URI = "format uri"
_ENDLESS = {_URI: ENDLESS_URI, "format hostname": ENDLESS_HOST, "format email": ENDLESS_EMAIL}
"""Formats of any length, of which automata are small; all but the first need a limit."""


@lru_cache
def _endless(name: str) -> Automaton:
    return minimal(automaton_of(_ENDLESS[name]))


_SMALL = 200
"""States up to which equivalent ones are merged."""


def _length(part: Expression) -> int | None:
    """The number of characters of each text of an expression; None if they differ."""
    if isinstance(part, Text):
        return len(part.text)
    if isinstance(part, OneOf):
        return 1
    if isinstance(part, Repeat):
        size = _length(part.part)
        return None if size is None or part.least != part.most else size * part.least
    if isinstance(part, Concatenation):
        found = [_length(one) for one in part.parts]
        return None if None in found else sum(one for one in found if one is not None)
    if isinstance(part, Choice):
        lengths_of = {_length(one) for one in part.options}
        return lengths_of.pop() if len(lengths_of) == 1 else None
    return None
