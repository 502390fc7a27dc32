"""Searches a text for a regular expression, in time that grows only with the text's length.

Patterns come from schemas, which are untrusted, and Python's own engine backtracks: a short pattern
can keep it busy for years on a short text. Here the pattern's automaton reads the text once, from
its end to its beginning. At each position it keeps the states from which the pattern can be
completed there. So a lookahead already knows what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from adapter.grammar.gbnf.characters import DIGITS, WORD, Characters
from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern, constants, parsed_pattern
from adapter.grammar.gbnf.patterns import characters_of

MAX_STATES = 5000
"""The most states of a pattern's automaton, in which repetitions are written out."""

MAX_STEPS = 1_000_000
"""The most steps of an automaton on one text."""

# As in ECMA-262, the dialect of JSON schemas.
_SPACE = Characters.of(
    (0x09, 0x0D), " \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff", (0x2000, 0x200A)
)
_CATEGORIES: dict[Any, Characters] = {
    constants.CATEGORY_DIGIT: DIGITS,
    constants.CATEGORY_NOT_DIGIT: ~DIGITS,
    constants.CATEGORY_WORD: WORD,
    constants.CATEGORY_NOT_WORD: ~WORD,
    constants.CATEGORY_SPACE: _SPACE,
    constants.CATEGORY_NOT_SPACE: ~_SPACE,
}
_ANY = ~Characters.of("\n\r\u2028\u2029")


def is_found(pattern: str, text: str) -> bool:
    """Whether ECMA-262 finds a regular expression in a text.

    Raises:
        InvalidPattern: it is not a regular expression.
        UnsupportedPattern: it looks back, has flags, or is too large.
    """
    return _automaton(pattern).is_found(text)


@lru_cache(1024)
def _automaton(pattern: str) -> _Automaton:
    made = _Automaton()
    try:
        made.compile(parsed_pattern(pattern))
    except RecursionError:
        raise UnsupportedPattern("nested too deep") from None
    return made


@dataclass(frozen=True)
class _Look:
    """A place where what follows must fit another automaton, or must not."""

    begin: int
    negated: bool


_Condition = Any  # None, a constant of parser's for a place, or a _Look


class _Automaton:
    """States that read a character, or lead on under a condition.

    The states of a lookahead are a layer of their own, which is computed before the layer that uses
    it.
    """

    def __init__(self) -> None:
        self._layer_of: list[int] = []
        self._read_before: list[list[tuple[Characters, int]]] = []  # by the state that they lead to
        self._free_before: list[list[tuple[_Condition, int]]] = []
        self._ends: list[int] = []  # the last state of each layer
        self._begin = 0
        self._n_parts = 0

    def compile(self, items: Any) -> None:
        """Make the states of a whole pattern."""
        self._begin = self._layer_with(items)

    def _layer_with(self, items: Any) -> int:
        """A new layer. Layers within it are made and numbered first."""
        mark = len(self._layer_of)
        end = self._state()
        begin = self._all(items, end)
        number = len(self._ends)
        self._ends.append(end)
        for state in range(mark, len(self._layer_of)):
            if self._layer_of[state] < 0:
                self._layer_of[state] = number
        return begin

    def _state(self) -> int:
        if len(self._layer_of) == MAX_STATES:
            raise UnsupportedPattern(f"more than {MAX_STATES} states")
        self._layer_of.append(-1)
        self._read_before.append([])
        self._free_before.append([])
        return len(self._layer_of) - 1

    def _all(self, items: Any, end: int) -> int:
        for kind, value in reversed(list(items)):
            end = self._one(kind, value, end)
        return end

    def _one(self, kind: Any, value: Any, end: int) -> int:
        """The state from which a part of the pattern leads to `end`."""
        self._n_parts += 1
        if self._n_parts > 4 * MAX_STATES:
            raise UnsupportedPattern(f"more than {MAX_STATES} states")
        if kind in (constants.LITERAL, constants.NOT_LITERAL, constants.IN, constants.ANY):
            begin = self._state()
            self._read_before[end].append((_characters(kind, value), begin))
            return begin
        if kind is constants.SUBPATTERN:
            _, added, removed, items = value
            if added or removed:
                raise UnsupportedPattern("flags")
            return self._all(items, end)
        if kind is constants.BRANCH:
            return self._fork([self._all(branch, end) for branch in value[1]])
        if kind in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            least, most, part = value
            return self._repeated(part, least, most, end)
        if kind is constants.AT:
            return self._when(value, end)
        if kind in (constants.ASSERT, constants.ASSERT_NOT) and value[0] > 0:
            look = _Look(self._layer_with(value[1]), kind is constants.ASSERT_NOT)
            return self._when(look, end)
        if str(kind) == "FAILURE":  # how "(?!)" is parsed
            return self._state()
        raise UnsupportedPattern(str(kind).lower().replace("_", " "))

    def _repeated(self, items: Any, least: int, most: Any, end: int) -> int:
        if most is constants.MAXREPEAT:
            again = self._state()
            self._free_before[end].append((None, again))
            begin = self._all(items, again)
            self._free_before[begin].append((None, again))
            if least == 0:
                begin = again
            least -= 1
        else:
            begin = end
            for _ in range(most - least):
                begin = self._fork([end, self._all(items, begin)])
        for _ in range(least):
            begin = self._all(items, begin)
        return begin

    def _fork(self, targets: list[int]) -> int:
        begin = self._state()
        for target in targets:
            self._free_before[target].append((None, begin))
        return begin

    def _when(self, condition: _Condition, end: int) -> int:
        begin = self._state()
        self._free_before[end].append((condition, begin))
        return begin

    def is_found(self, text: str) -> bool:
        """Whether the pattern is found anywhere in a text. Raises UnsupportedPattern."""
        steps = 0
        following: set[int] = set()
        for place in range(len(text), -1, -1):
            character = text[place] if place < len(text) else None
            todo: list[list[int]] = [[end] for end in self._ends]
            for state in following if character is not None else ():
                for characters, before in self._read_before[state]:
                    steps += 1
                    if character in characters:  # type: ignore[operator]
                        todo[self._layer_of[before]].append(before)
            reached: set[int] = set()
            for layer in todo:
                while layer:
                    state = layer.pop()
                    if state in reached:
                        continue
                    reached.add(state)
                    for condition, before in self._free_before[state]:
                        steps += 1
                        if before not in reached and _holds(condition, text, place, reached):
                            layer.append(before)
            if self._begin in reached:
                return True
            if steps > MAX_STEPS:
                raise UnsupportedPattern(f"more than {MAX_STEPS} steps on a text of {len(text)}")
            following = reached
        return False


def _holds(condition: _Condition, text: str, place: int, reached: set[int]) -> bool:
    """Whether a step is possible at a position, given the states `reached` after it."""
    if condition is None:
        return True
    if isinstance(condition, _Look):
        return (condition.begin in reached) is not condition.negated
    if condition in (constants.AT_BEGINNING, constants.AT_BEGINNING_STRING):
        return place == 0
    if condition in (constants.AT_END, constants.AT_END_STRING):
        return place == len(text)
    sides = (text[place - 1 : place] if place else "", text[place : place + 1])
    before, after = (side != "" and side in WORD for side in sides)
    return (before != after) is (condition is constants.AT_BOUNDARY)


def _characters(kind: Any, value: Any) -> Characters:
    return characters_of(kind, value, _ANY, lambda name, _: _CATEGORIES[name])
