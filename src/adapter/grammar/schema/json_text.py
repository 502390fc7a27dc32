"""The parts of JSON that every schema needs, as expressions."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from adapter.grammar.gbnf.characters import HEX_DIGITS, PRINTABLE, Characters
from adapter.grammar.gbnf.numbers import NUMBER
from adapter.grammar.gbnf.rules import (
    EMPTY,
    MAX_REPEAT,
    Expression,
    Rule,
    Rules,
    choice,
    one_of,
    optional,
    repeat,
    sequence,
)

_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b",
                  "\f": "\\f"}  # fmt: skip
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": "), allow_nan=False)
_UNUSUAL = re.compile(r"[^\x20-\x25\x27-\x3B\x3D\x3F-\x7E]")


_BLOCK = 64

MAX_CHARACTERS = _BLOCK * MAX_REPEAT
"""The largest maximum of characters in a string that a grammar can count."""


class JsonText:
    """JSON within the rules of a grammar.

    Attributes:
        raw: the characters that a string may contain without an escape.
        other_characters: the rules of characters of a key that are none of these, which keys share.
    """

    quote = '"'
    """What begins and ends a string."""

    def __init__(self, rules: Rules, raw: Characters = PRINTABLE) -> None:
        self.rules = rules
        self.other_characters: dict[str, Rule] = {}
        self.raw = raw - Characters.of('"\\')
        # Quotes and backslashes of JSON itself.
        self._written = self.raw | Characters.of('"\\')
        #: Between two items or members.
        self.comma = sequence(",", self.space)

    @property
    def space(self) -> Rule:
        """White space: none, or at most a line break with its indentation."""

        def body() -> Expression:
            indented = sequence(repeat("\n", 1, 2), repeat(one_of(Characters.of(" \t")), 0, 20))
            return choice([EMPTY, " ", indented])

        return self.rules.add("space", ("space", self.quote), body)

    def spelled(self, characters: Characters) -> Expression:
        """One character of a set, as written in a string."""
        return _spelled(characters, self.raw)

    @property
    def character(self) -> Rule:
        """Any character of a string. Escapes of single surrogates are not allowed."""

        def body() -> Expression:
            digit = one_of(HEX_DIGITS)
            other = one_of(HEX_DIGITS - Characters.of("dD"))
            below = one_of(Characters.of((0x30, 0x37)))
            code = choice(
                [
                    sequence(other, repeat(digit, 3, 3)),
                    sequence(one_of(Characters.of("dD")), below, repeat(digit, 2, 2)),
                ]
            )
            escape = sequence(
                "\\", choice([one_of(Characters.of('"\\bfnrt')), sequence("u", code)])
            )
            return choice([one_of(self.raw), escape])

        return self.rules.add("char", ("char", self.raw, self.quote), body)

    def string(self, least: int = 0, most: int | None = None) -> Expression:
        """A string with a number of characters; see `characters` for large maximums."""
        return self.quoted(characters(self.rules, self.character, least, most))

    def quoted(self, content: Expression) -> Expression:
        """A string with this content."""
        return sequence(self.quote, content, self.quote)

    def array(self, items: Expression) -> Expression:
        """An array with this between its brackets."""
        return sequence("[", self.space, items, self.space, "]")

    def object(self, members: Expression) -> Expression:
        """An object with this between its braces."""
        return sequence("{", self.space, members, self.space, "}")

    def member(self, key: Expression, value: Expression) -> Expression:
        """A key with its value."""
        return sequence(key, ":", self.space, value)

    @property
    def value(self) -> Rule:
        """Any value."""
        return self.rules.add("value", ("value", self.quote), self._value)

    def written(self, value: Any) -> str:
        """A value as JSON, in the characters that are allowed here.

        Raises:
            ValueError: JSON has no such value.
        """
        text = _ENCODER.encode(value)

        def escaped(match: re.Match[str]) -> str:
            code = ord(match[0])
            if 0xD800 <= code < 0xE000:
                raise ValueError("a surrogate alone")
            if match[0] in self._written:
                return match[0]
            return json.dumps(match[0])[1:-1] if code > 0x7F else f"\\u{code:04x}"

        return _UNUSUAL.sub(escaped, text)

    def _value(self) -> Expression:
        comma, value = self.comma, self.value
        items = sequence(value, repeat(sequence(comma, value)))
        member = self.member(self.string(), value)
        members = sequence(member, repeat(sequence(comma, member)))
        scalars = [NUMBER, "true", "false", "null", self.string()]
        return choice([self.object(optional(members)), self.array(optional(items)), *scalars])


def characters(rules: Rules, one: Expression, least: int, most: int | None) -> Expression:
    """`least` to `most` characters.

    llama.cpp writes each count out as a rule, so a large maximum is counted in blocks, and rounded
    down to one less than whole ones.
    """
    if most is None or most <= MAX_REPEAT or most - least < _BLOCK:
        return repeat(one, least, most)
    block = rules.add("block", ("block", one), lambda: repeat(one, _BLOCK, _BLOCK))
    blocks = repeat(block, 0, (most - least + 1) // _BLOCK - 1)
    return sequence(repeat(one, least, least), blocks, repeat(one, 0, _BLOCK - 1))


class HeldJsonText(JsonText):
    """JSON within a string of JSON: each quote is escaped once more.

    Its own strings have no escapes, and it has no line breaks.
    """

    quote = '\\"'

    @property
    def space(self) -> Rule:
        """White space: none, or one space."""
        return self.rules.add("space", ("space", self.quote), lambda: choice([EMPTY, " "]))

    def spelled(self, characters: Characters) -> Expression:
        """One character of a set, if none has to be escaped."""
        return one_of(characters & self.raw)

    @property
    def character(self) -> Rule:
        """Any character of a string."""
        key = ("char", self.raw, self.quote)
        return self.rules.add("char", key, lambda: one_of(self.raw))

    def written(self, value: Any) -> str:
        """A value as JSON within a string. Raises ValueError if JSON has no such value."""
        return super().written(value).replace("\\", "\\\\").replace('"', '\\"')


@lru_cache(4096)
def _spelled(characters: Characters, raw: Characters) -> Expression:
    escapes = [written for one, written in _SHORT_ESCAPES.items() if one in characters]
    # XML's signs, where a string stands in XML.
    escapes += [f"\\u{ord(one):04x}" for one in "<&>" if one in characters and one not in raw]
    return choice([one_of(characters & raw), *escapes])
