"""Regular expressions as expressions of a grammar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapter.grammar.gbnf.characters import PRINTABLE, Characters
from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern, constants, parsed_pattern
from adapter.grammar.gbnf.rules import (
    MAX_REPEAT,
    Expression,
    Repeat,
    choice,
    may_be_empty,
    repeat,
    sequence,
)

Spelling = Callable[[Characters], Expression]
"""How one character of a set is written where the text stands."""

_WORD = Characters.of((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A), "_")
_ASCII = Characters.of((0x20, 0x7E))
_LETTERS = Characters.of(
    (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x17F), (0x391, 0x3A1), (0x3A3, 0x3C9), (0x410, 0x44F),
    (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FBF), (0xAC00, 0xD7A3),
)  # fmt: skip

# Dialects differ about letters and digits beyond ASCII. Only those on which all agree are used.
_CATEGORIES: dict[Any, Characters] = {
    constants.CATEGORY_DIGIT: Characters.of((0x30, 0x39)),
    constants.CATEGORY_NOT_DIGIT: (_ASCII | _LETTERS) - Characters.of((0x30, 0x39)),
    constants.CATEGORY_WORD: _WORD,
    constants.CATEGORY_NOT_WORD: _ASCII - _WORD,
    constants.CATEGORY_SPACE: Characters.of(" "),
    constants.CATEGORY_NOT_SPACE: (_ASCII | _LETTERS) - Characters.of(" "),
}
_EVERYTHING = ~Characters.of()


def pattern_expression(pattern: str, spelled: Spelling) -> Expression:
    """The texts in which a regular expression is found, as far as all dialects agree.

    Raises:
        UnsupportedPattern: it is not a regular expression, has lookarounds or back references, or
            ignores case.
    """
    return _Converter(spelled).found_in(list(parsed_pattern(pattern)))


class _Converter:
    def __init__(self, spelled: Spelling) -> None:
        self._spelled = spelled

    def found_in(self, items: list[Any]) -> Expression:
        """Texts in which the items are found, which may be anchored to the text's ends."""
        if len(items) == 1 and items[0][0] is constants.BRANCH:
            return choice(self.found_in(list(branch)) for branch in items[0][1][1])
        begins = bool(items) and items[0] in (
            (constants.AT, constants.AT_BEGINNING),
            (constants.AT, constants.AT_BEGINNING_STRING),
        )
        items = items[begins:]
        ends = bool(items) and items[-1] in (
            (constants.AT, constants.AT_END),
            (constants.AT, constants.AT_END_STRING),
        )
        items = items[: len(items) - ends]
        anything = repeat(self._spelled(_EVERYTHING))
        around = sequence() if begins else anything, sequence() if ends else anything
        if len(items) == 1 and items[0][0] is constants.SUBPATTERN and not (begins or ends):
            return self.found_in(list(self._group(items[0][1])))
        return sequence(around[0], self._all(items), around[1])

    def _all(self, items: Any) -> Expression:
        return sequence(*(self._one(*item) for item in items))

    def _one(self, kind: Any, value: Any) -> Expression:
        if kind in (constants.LITERAL, constants.NOT_LITERAL, constants.IN, constants.ANY):
            return self._spelled(_characters(kind, value))
        if kind is constants.BRANCH:
            return choice(self._all(branch) for branch in value[1])
        if kind is constants.SUBPATTERN:
            return self._all(self._group(value))
        if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            least, most, items = value
            unlimited = most is constants.MAXREPEAT
            if least > MAX_REPEAT or (not unlimited and most > MAX_REPEAT):
                raise UnsupportedPattern(f"more than {MAX_REPEAT} repetitions")
            part = self._all(items)
            if unlimited:
                return _endless(part, least)
            return repeat(part, least, most)
        raise UnsupportedPattern(str(kind).lower().replace("_", " "))

    def _group(self, value: Any) -> Any:
        _, added, removed, items = value
        if added or removed:
            raise UnsupportedPattern("flags")
        return items


def _endless(part: Expression, least: int) -> Expression:
    """A part repeated any number of times. One that may be empty would make a rule that begins with
    itself.
    """
    while may_be_empty(part):
        if not isinstance(part, Repeat):
            raise UnsupportedPattern("repetition of what may be empty")
        part, least = part.part, 0
    return repeat(part, least)


def _characters(kind: Any, value: Any) -> Characters:
    def category(name: Any, negated: bool) -> Characters:
        # What is excluded must include what any one dialect means.
        return ~_complement(name) if negated else _CATEGORIES[name]

    return characters_of(kind, value, PRINTABLE, category)


def characters_of(
    kind: Any, value: Any, any_one: Characters, category: Callable[[Any, bool], Characters]
) -> Characters:
    """The characters that one item of a parsed pattern stands for.

    Args:
        any_one: what a dot stands for.
        category: the characters of a category such as digits, for a class or a negated one.
    """
    if kind is constants.ANY:
        return any_one
    if kind in (constants.LITERAL, constants.NOT_LITERAL):
        one = Characters.of((value, value))
        return one if kind is constants.LITERAL else ~one
    negated = bool(value) and value[0][0] is constants.NEGATE
    ranges: list[tuple[int, int]] = []
    for item, argument in value[negated:]:
        if item is constants.LITERAL:
            ranges.append((argument, argument))
        elif item is constants.RANGE:
            ranges.append(tuple(argument))
        else:
            ranges += category(argument, negated).ranges
    included = Characters.of(*ranges)
    return ~included if negated else included


def _complement(category: Any) -> Characters:
    name = str(category)
    other = name.replace("CATEGORY_NOT_", "CATEGORY_")
    if other == name:
        other = name.replace("CATEGORY_", "CATEGORY_NOT_")
    return _CATEGORIES[getattr(constants, other)]
