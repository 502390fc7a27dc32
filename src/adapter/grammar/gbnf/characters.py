"""Sets of characters, as ranges of code points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

Ranges = tuple[tuple[int, int], ...]

_LAST = 0x10FFFF


@dataclass(frozen=True)
class Characters:
    """A set of characters: ranges of code points, in order, with gaps between them."""

    ranges: Ranges

    @cached_property
    def _hash(self) -> int:
        return hash(self.ranges)

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, *items: str | tuple[int, int]) -> Characters:
        """The set of the characters of texts, and of ranges that include both ends."""
        ranges: list[tuple[int, int]] = []
        for item in items:
            ranges += [(ord(c), ord(c)) for c in item] if isinstance(item, str) else [item]
        return cls(_joined(ranges))

    def __or__(self, other: Characters) -> Characters:
        return Characters(_joined([*self.ranges, *other.ranges]))

    def __and__(self, other: Characters) -> Characters:
        return _common(self, other)

    def __sub__(self, other: Characters) -> Characters:
        return self & ~other

    def __invert__(self) -> Characters:
        return _others(self)

    def __contains__(self, character: str) -> bool:
        code = ord(character)
        for low, high in self.ranges:
            if code <= high:
                return low <= code
        return False

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def gbnf(self) -> str:
        """The set as GBNF writes it."""
        return _gbnf(self.ranges)


@lru_cache(4096)  # of the same few sets, for each pair of states of two automata
def _common(one: Characters, other: Characters) -> Characters:
    found, index = [], 0
    for low, high in one.ranges:
        while index < len(other.ranges) and other.ranges[index][1] < low:
            index += 1
        for first, last in other.ranges[index:]:
            if first > high:
                break
            found.append((max(low, first), min(high, last)))
    return Characters(tuple(found))


@lru_cache(1024)
def _others(those: Characters) -> Characters:
    gaps, begin = [], 0
    for low, high in those.ranges:
        if begin < low:
            gaps.append((begin, low - 1))
        begin = high + 1
    if begin <= _LAST:
        gaps.append((begin, _LAST))
    return Characters(tuple(gaps))


@lru_cache(1024)
def _gbnf(ranges: Ranges) -> str:
    return f"[{''.join(map(_range_gbnf, ranges))}]"


def _range_gbnf(ends: tuple[int, int]) -> str:
    low, high = ends
    return _escaped(low) if low == high else f"{_escaped(low)}-{_escaped(high)}"


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def _escaped(code: int) -> str:
    character = chr(code)
    if character.isascii() and character.isalnum():
        return character
    if code < 0x100:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


NONE = Characters(())

SEPARATORS = Characters.of("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
"""Where str.splitlines() breaks a text, besides the newline."""

PRINTABLE = ~(
    Characters.of((0, 0x1F), (0x7F, 0x9F), (0xD800, 0xDFFF), (0xFFFE, 0xFFFF)) | SEPARATORS
)
"""The characters of a line of text. Surrogates have no UTF-8 form, and separators end a line."""

DIGITS = Characters.of((0x30, 0x39))
HEX_DIGITS = DIGITS | Characters.of((0x41, 0x46), (0x61, 0x66))
WORD = DIGITS | Characters.of((0x41, 0x5A), (0x61, 0x7A), "_")
