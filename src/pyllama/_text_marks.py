"""Finds users' text in a rendered chat where it could be read as a control token.

A template mixes its own text with that of messages, and llama.cpp's engine returns one text. The
engine can mark what came in, but loses these marks wherever a template splits, joins or serialises
text. So a character that none of the inputs contains, the mark, is inserted into everything that
could name a control token, after the first character of the name. It passes through the template
with the text, and shows in the prompt that the character before it is not the template's.

The mark is inserted wherever control tokens are named, in any case of letters; into pairs of signs
that they begin or end with, such as ``<|``; and at the ends of a text that could become a control
token together with text of the template. Text without any of these, which is almost every text, is
unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pyllama._guard import check
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama.errors import ChatTemplateError

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, pyllama_tokenizer

# Roles are part of the control tokens in many templates: '<|' + message.role + '|>'.
_ROLES = frozenset(
    ("assistant", "developer", "function", "ipython", "model", "system", "tool", "user")
)
# Signs that templates put beside text, wherever it stands.
_NAMES = frozenset(("name", "description"))

# DEL is one byte, and JSON leaves it unchanged. The others are noncharacters or for private use.
_MARKS = ("\x7f", *map(chr, range(0xFDD0, 0xFDF0)), *map(chr, range(0xE000, 0xF900)))

MAX_KEPT_TEXTS, MAX_KEPT_LENGTH = 512, 8192
"""How many texts without marks are remembered, and how long they may be: those of demonstrations
and instructions come with each prompt.
"""

_FEW = 64  # places in a text for which room is allocated at once


class TextMarker:
    """Inserts marks into one conversation and its tools.

    Args:
        tokenizer: what names control tokens (``Vocab._tokenizer``).
        unmarked: texts that need no marks, with whether their ends were looked at; it grows.
        taken: the inputs in JSON and the template, which must not contain the mark.
    """

    def __init__(
        self,
        tokenizer: Handle[Pointer[pyllama_tokenizer]],
        unmarked: dict[tuple[str, bool], None],
        *taken: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._unmarked = unmarked
        self._taken = taken
        self._mark: str | None = None
        self._places = ffi.new("size_t[]", _FEW)

    @property
    def used(self) -> bool:
        """Whether anything was marked."""
        return self._mark is not None

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [
            message if self._is_known(message) else self._value(message, True)
            for message in messages
        ]

    def options(self, value: Any) -> Any:
        """Tools, a schema or a template's variables. The meaning of their words is kept."""
        return self._value(value, False)

    def unmark(self, text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text without marks, and the ranges of the characters before them."""
        mark = self._mark
        if mark is None or (mark not in text and "\\u" not in text):
            return text, ()
        # A template may escape its text to ASCII.
        parts = re.split(f"{mark}|{re.escape(_escaped(mark))}", text, flags=re.IGNORECASE)
        ends, length = [], 0
        for part in parts[:-1]:
            length += len(part)
            ends.append(length)
        ranges = tuple((end - 1, end) for end in dict.fromkeys(ends) if end > 0)
        return "".join(parts), ranges

    def _is_known(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is a role and a text that needs no marks, as most are."""
        role, text = message.get("role"), message.get("content")
        return (
            len(message) == 2
            and type(role) is type(text) is str
            and role in _ROLES
            and (text, True) in self._unmarked
        )

    def _value(self, value: Any, edges: bool, key: object = None) -> Any:
        if isinstance(value, str):
            if key == "role" and value in _ROLES:
                return value
            if key == "type" and value.isidentifier():
                return value
            if key == "arguments":
                return self._arguments(value)
            return self._text(value, edges or key in _NAMES)
        if isinstance(value, Mapping):
            return {self._key(k): self._value(v, edges, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._value(item, edges, key) for item in value]
        return value

    def _key(self, key: Any) -> Any:
        if not isinstance(key, str) or key.isidentifier():
            return key
        return self._text(key, False)

    def _arguments(self, text: str) -> str:
        """A call's arguments in JSON, in which a sign may be escaped."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self._text(text, True)
        marker = TextMarker(self._tokenizer, self._unmarked, *self._taken)
        marker._mark = self._mark
        before = json.dumps(value)
        marked = marker._value(value, True)
        if json.dumps(marked) == before:
            return text
        self._mark = marker._mark
        return json.dumps(marked, ensure_ascii=False)

    def _text(self, text: str, edges: bool) -> str:
        if (text, edges) in self._unmarked:
            return text
        data = text.encode("utf-8", "surrogatepass")
        places, room = self._places, _FEW
        while True:
            with self._tokenizer as tokenizer:
                count = check(
                    lib.guarded_tokenizer_breaks(tokenizer, data, len(data), edges, places, room),
                    "looking for control tokens",
                )
            if count <= room:
                break
            places, room = ffi.new("size_t[]", count), count
        if count == 0:
            if len(text) <= MAX_KEPT_LENGTH:
                if len(self._unmarked) >= MAX_KEPT_TEXTS:
                    self._unmarked.clear()
                self._unmarked[text, edges] = None
            return text
        mark = self._the_mark().encode()
        ends = [0, *ffi.unpack(places, count), len(data)]
        parts = [data[begin:end] for begin, end in pairwise(ends)]
        return mark.join(parts).decode("utf-8", "surrogatepass")

    def _the_mark(self) -> str:
        if self._mark is None:
            taken = "".join(self._taken).lower()
            free = (mark for mark in _MARKS if mark not in taken and _escaped(mark) not in taken)
            self._mark = next(free, None)
            if self._mark is None:
                raise ChatTemplateError("the messages hold every private character of Unicode")
        return self._mark


def _escaped(mark: str) -> str:
    """Its escape in JSON."""
    return f"\\u{ord(mark):04x}"
