"""The text of a string of which several things are demanded at once."""

from __future__ import annotations

from adapter.grammar.automata import Automaton, TooLarge, automaton_of, both, lengths
from adapter.grammar.formats import FORMATS
from adapter.grammar.moments import UnsupportedBound, bounded_moment
from adapter.grammar.patterns import Spelling, UnsupportedPattern, pattern_expression
from adapter.grammar.rules import (
    IMPOSSIBLE,
    MAX_REPEAT,
    Expression,
    OneOf,
    Repeat,
    Rules,
    one_of,
    repeat,
)


class StringTexts:
    """Demands on a text, each of which is held to that a grammar can say.

    One alone is written as it stands; several are made one by the product of their automata.

    unchecked   what must be checked after
    """

    def __init__(self, rules: Rules, spelled: Spelling) -> None:
        self._rules = rules
        self._spelled = spelled
        self._demands: dict[str, Expression | Automaton] = {}
        self._pattern: str | None = None
        self.unchecked: list[str] = []

    def add_format(self, kind: str, least: str | None = None, most: str | None = None) -> None:
        """Hold the text to one of FORMATS, and to bounds of it."""
        made: Expression | Automaton = FORMATS[kind]
        if least is not None or most is not None:
            try:
                made = bounded_moment(kind, least, most)
            except (UnsupportedBound, TooLarge) as reason:
                self.unchecked.append(f"bounds ({reason})")
        self._demands[f"format {kind}"] = made

    def add_pattern(self, pattern: str) -> None:
        """Hold the text to a regular expression."""
        try:
            self._demands[f"pattern {pattern}"] = pattern_expression(pattern, one_of)
        except UnsupportedPattern as reason:
            self.unchecked.append(f"pattern {pattern} ({reason})")
            return
        self._pattern = pattern

    def add(self, name: str, expression: Expression) -> None:
        """Hold the text to an expression without rules."""
        self._demands[name] = expression

    def expression(self, least: int = 0, most: int | None = None) -> Expression | None:
        """The texts of so many characters that keep to all of it; None where nothing is said."""
        if not self._demands:
            return None
        [first, *others] = self._demands.values()
        if not others and isinstance(first, Repeat) and isinstance(first.part, OneOf):
            return self._characters(first, least, most)
        if least or most is not None:
            names = {"minLength": least > 0, "maxLength": most is not None}
            given = " and ".join(name for name, asked in names.items() if asked)
            try:
                self._demands[given] = lengths(least, most)
            except TooLarge:
                self.unchecked.append(given)
        if len(self._demands) == 1 and not isinstance(first, Automaton):
            return self._written(first)
        return self._product()

    def _product(self) -> Expression | None:
        """All demands at once, but for those that make it too large."""
        made: Automaton | None = None
        found: Expression | None = None
        for name, demand in self._demands.items():
            try:
                one = demand if isinstance(demand, Automaton) else automaton_of(demand)
                product = one if made is None else both(made, one)
                found = product.expression(self._rules, self._spelled)
            except TooLarge:
                self.unchecked.append(name)
                continue
            made = product
        return found

    def _written(self, only: Expression) -> Expression:
        if self._pattern is None:
            return only
        return pattern_expression(self._pattern, self._spelled)

    def _characters(self, only: Repeat, least: int, most: int | None) -> Expression:
        """A repetition of one character, of so many of them too."""
        assert isinstance(only.part, OneOf)
        least = max(least, only.least)
        limits = [limit for limit in (most, only.most) if limit is not None]
        if limits and least > min(limits):
            return IMPOSSIBLE
        if least > MAX_REPEAT:
            raise TooLarge(f"{least} characters")
        highest = min(limits) if limits and min(limits) <= MAX_REPEAT else None
        if limits and highest is None:
            self.unchecked.append("maxLength")
        return repeat(self._spelled(only.part.characters), least, highest)
