"""Regular expressions as expressions of a grammar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapter.grammar.gbnf.characters import DIGITS, PRINTABLE, WORD, Characters
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

_ASCII = Characters.of((0x20, 0x7E))
_LETTERS = Characters.of(
    (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x17F), (0x391, 0x3A1), (0x3A3, 0x3C9), (0x410, 0x44F),
    (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FBF), (0xAC00, 0xD7A3),
)  # fmt: skip

_ANY_SPACE = Characters.of(" \xa0\u1680\u180e", (0x2000, 0x200F), "\u202f\u205f\u2060\u3000\ufeff")
"""What any dialect takes for white space, besides control characters."""

# Dialects differ about letters and digits beyond ASCII. Only those on which all agree are used.
_CATEGORIES: dict[Any, Characters] = {
    constants.CATEGORY_DIGIT: DIGITS,
    constants.CATEGORY_NOT_DIGIT: (_ASCII | _LETTERS) - DIGITS,
    constants.CATEGORY_WORD: WORD,
    constants.CATEGORY_NOT_WORD: _ASCII - WORD,
    constants.CATEGORY_SPACE: Characters.of(" "),
    constants.CATEGORY_NOT_SPACE: PRINTABLE - _ANY_SPACE,
}
_EVERYTHING = ~Characters.of()
BEGINNINGS = [
    (constants.AT, constants.AT_BEGINNING),
    (constants.AT, constants.AT_BEGINNING_STRING),
]
_ENDS = [(constants.AT, constants.AT_END), (constants.AT, constants.AT_END_STRING)]


def pattern_expression(pattern: str, spelled: Spelling) -> Expression:
    """The texts in which a regular expression is found, as far as all dialects agree.

    Raises:
        UnsupportedPattern: it is not a regular expression, has lookarounds or back references, or
            ignores case.
    """
    return items_expression(list(parsed_pattern(pattern)), spelled)


def items_expression(items: list[Any], spelled: Spelling) -> Expression:
    """The same of the parts of one, as the parser has them."""
    return _Converter(spelled).found_in(items)


class _Converter:
    def __init__(self, spelled: Spelling) -> None:
        self._spelled = spelled

    def found_in(self, items: list[Any], *, first: bool = True, last: bool = True) -> Expression:
        """Texts in which the items are found. They, or parts of them, may be anchored.

        Args:
            first: they begin what is searched for, so any text may stand before them.
            last: they end it.
        """
        begins = first and bool(items) and items[0] in BEGINNINGS
        ends = last and len(items) > begins and items[-1] in _ENDS
        items = items[begins : len(items) - ends]
        before, after = first and not begins, last and not ends
        if len(items) == 1 and _is_anchored(items):
            return choice(
                self.found_in(part, first=before, last=after) for part in self._options(*items[0])
            )
        anything = repeat(self._spelled(_EVERYTHING))
        parts = [anything] if before else []
        end = len(items)
        if before and _is_anchored(items[:1]):
            parts = [self.found_in(items[:1], last=False)]
            items, end = items[1:], end - 1
        if after and _is_anchored(items[-1:]):
            end -= 1
            return sequence(*parts, self._all(items[:end]), self.found_in(items[end:], first=False))
        return sequence(*parts, self._all(items), anything if after else sequence())

    def _options(self, kind: Any, value: Any) -> list[list[Any]]:
        """The branches of a group, or of a union."""
        if kind is constants.BRANCH:
            return [list(branch) for branch in value[1]]
        return [list(self._group(value))]

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


def _is_anchored(items: list[Any]) -> bool:
    """Whether an item is a group or a union that has an anchor at an end of one of its parts."""
    for kind, value in items:
        if kind is constants.BRANCH:
            parts = value[1]
        elif kind is constants.SUBPATTERN:
            parts = [value[3]]
        else:
            continue
        for part in parts:
            edges = [*part[:1], *part[-1:]]
            if any(edge[0] is constants.AT for edge in edges) or _is_anchored(edges):
                return True
    return False


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
