"""Free text in which no line can be mistaken for something else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from adapter.grammar.gbnf.characters import NONE, PRINTABLE, Characters
from adapter.grammar.gbnf.rules import (
    EMPTY,
    Expression,
    OneOf,
    Rule,
    Rules,
    choice,
    one_of,
    repeat,
    sequence,
)

LINE = PRINTABLE | Characters.of("\t")
"""What a line of text consists of."""

Step = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Marker:
    """What a line must not begin with.

    Attributes:
        before: signs of which any number may stand before the text.
        text: the text itself.
        spellings: the characters that may stand for one of the text's.
        after: signs of which any number may stand after it.
        ends: what makes it a marker; None if the text alone does.
    """

    before: Characters
    text: str
    spellings: Callable[[str], str] = str
    after: Characters = NONE
    ends: Characters | None = None


def line_without(
    rules: Rules, markers: tuple[Marker, ...], line: Characters = LINE, *, may_be_empty: bool
) -> Rule:
    """A line that does not begin with a marker."""
    signs = NONE
    for marker in markers:
        letters = "".join(marker.spellings(letter) for letter in marker.text)
        signs |= marker.before | marker.after | (marker.ends or signs) | Characters.of(letters)
    alphabet = [chr(c) for low, high in (signs & line).ranges for c in range(low, high + 1)]
    rest = repeat(OneOf(line))

    def successor(state: Step, character: str) -> Step | None:
        """What may have been read after one more character; None if that is a marker."""
        read: set[tuple[int, int]] = set()
        for index, position in state:
            marker = markers[index]
            if position == len(marker.text):
                if marker.ends is not None and character in marker.ends:
                    return None
                if character in marker.after:
                    read.add((index, position))
            elif character in marker.spellings(marker.text[position]):
                if marker.ends is None and position + 1 == len(marker.text):
                    return None
                read.add((index, position + 1))
            if position == 0 and character in marker.before:
                read.add((index, 0))
        return frozenset(read)

    def rule(state: Step, *, may_end: bool) -> Rule:
        key = ("line", markers, line, state, may_end)
        return rules.add("line", key, lambda: body(state, may_end))

    def body(state: Step, may_end: bool) -> Expression:
        by_successor: dict[Step | None, set[str]] = {}
        for character in alphabet:
            by_successor.setdefault(successor(state, character), set()).add(character)
        harmless = line
        options: list[Expression] = [EMPTY] if may_end else []
        for following, characters in by_successor.items():
            if following != frozenset():
                one = Characters.of("".join(characters))
                harmless -= one
                if following is not None:
                    options.append(sequence(one_of(one), rule(following, may_end=True)))
        options.append(sequence(one_of(harmless), rest))
        return choice(options)

    return rule(frozenset((index, 0) for index in range(len(markers))), may_end=may_be_empty)


@lru_cache(maxsize=1024)  # a marker's letters are asked for again with each character of a line
def case_spellings(letter: str) -> str:
    """The letters that re.IGNORECASE treats as equal to a letter."""
    found = {letter, letter.lower(), letter.upper(), letter.title(), letter.swapcase()}
    found |= {one for one in _ODD_CASES if re.fullmatch(re.escape(letter), one, re.IGNORECASE)}
    return "".join(one for one in found if len(one) == 1)


_ODD_CASES = (
    "\u0131\u0130\u017f\u212a\u1e9e\u2126\u212b\u03c2\u03d0\u03d1\u03d5\u03d6\u03f0\u03f1\u03f5\u1fbe"
    "\u00b5\u0345"
)
