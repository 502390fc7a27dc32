"""Field markers in a model's answer: `name: value` at the start of a line.

A value reaches to the next marker. An answer that followed a grammar has the markers that the
grammar wrote: spelled exactly, and in the signature's order. In any other text a marker may have
another case, a list sign, or emphasis. The answer may come in pieces. What is certain of it is
known before its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import regex
from dspy.signatures import Signature


@dataclass(frozen=True)
class Span:
    """The place of a field's value: from its marker to `end`."""

    marker: re.Match[str]
    end: int
    closed: bool
    """Whether another marker follows, so that more text is not part of the value."""


class Settled(NamedTuple):
    """The beginning of a value that no further text can change, and whether it is complete."""

    text: str
    complete: bool


class FieldMarkers:
    """The fields of an answer that is pushed in pieces of any size.

    The first of a field's markers counts. A marker inside a code block is part of the code.

    If the answer followed no grammar, the model may ask itself another question after all outputs
    are answered. The name of the first input field, spelled as in the prompt and after a value,
    begins such a question. Nothing after it counts.

    Attributes:
        is_bound: whether the answer followed the grammar of the signature.
        text: the answer so far.
    """

    def __init__(self, signature: type[Signature], *, is_bound: bool = False) -> None:
        self._outputs = tuple(signature.output_fields)
        self._is_bound = is_bound
        self._new_turn = None if is_bound else next(iter(signature.input_fields), None)
        names = (*self._outputs, self._new_turn) if self._new_turn else self._outputs
        self._names = names
        self._source = _bound_source(names) if is_bound else _marker_source(names)
        self._flags = re.MULTILINE if is_bound else re.MULTILINE | re.IGNORECASE
        self.text = ""
        self._line = 0  # the beginning of the line that may still grow
        self._markers: list[re.Match[str]] = []  # markers in the lines before it
        self._fences: list[int] = []

    def push(self, text: str) -> None:
        """Add the next piece of the answer."""
        self.text += text
        line = self.text.rfind("\n") + 1
        if line > self._line:
            self._markers += self._pattern().finditer(self.text, self._line, line)
            self._fences += _fences(self.text, self._line, line)
            self._line = line

    def values(self) -> dict[str, str]:
        """Return the text of every field found in the complete answer.

        Text before the first marker belongs to the first field if that one has no marker: a model
        that reasons first often leaves out its name.
        """
        found = self._spans(self._visible(ended=True))
        values = {name: self._value(span) for name, span in found.items()}
        if self._is_bound:
            return values
        if found and self._outputs[0] not in found:
            preamble = self.text[: min(span.marker.start() for span in found.values())].strip()
            if preamble:
                values[self._outputs[0]] = preamble
        return values

    def settled(self, name: str) -> Settled | None:
        """Return what is certain of a field's value; None before its marker."""
        visible = self._visible(ended=False)
        span = self._spans(visible).get(name)
        if span is None or span.marker.end() == len(self.text):
            return None  # emphasis that belongs to the marker may still follow
        if span.closed:
            return Settled(self._value(span), complete=True)
        end = min(self._undecided(), self._open_code_marker())
        text = self.text[span.marker.end() : end].lstrip()
        length = len(text)
        while length and (text[length - 1].isspace() or text[length - 1] in "*_`"):
            length -= 1  # space, emphasis and fences may turn out to enclose the value
        return Settled(text[:length], complete=False)

    def _pattern(self) -> re.Pattern[str]:
        return _marker_pattern(self._source, self._flags)

    def _all(self) -> tuple[list[re.Match[str]], list[int]]:
        last_line = self._pattern().finditer(self.text, self._line)
        return [*self._markers, *last_line], [*self._fences, *_fences(self.text, self._line)]

    def _visible(self, *, ended: bool) -> list[re.Match[str]]:
        """Return the markers outside code blocks.

        A block that was never closed hides no markers. One that may still be closed does. With a
        grammar every block is closed, except the last one of an answer that was cut off.
        """
        markers, fences = self._all()
        end = [] if ended and not self._is_bound else [len(self.text)]
        blocks = list(zip(fences[::2], fences[1::2] + end, strict=False))
        first = markers[0].start() if markers else 0
        return [
            marker
            for marker in markers
            if not any(first < start < marker.start() < end for start, end in blocks)
        ]

    def _spans(self, markers: list[re.Match[str]]) -> dict[str, Span]:
        found: dict[str, Span] = {}
        field = None
        for marker in markers:
            name = field_named(marker["name"], self._names)
            if self._is_bound and name not in self._outputs[len(found) : len(found) + 1]:
                continue  # a line of a text: the next marker belongs to the next field
            if name == self._new_turn and not self._begins_a_turn(marker, found, field):
                continue  # a word of the answer
            if field is not None:
                found[field] = Span(found[field].marker, marker.start(), closed=True)
            if name == self._new_turn:
                break  # the model continues with a question of its own
            # If a field comes twice, the first one counts: models repeat themselves.
            field = name if name not in found else None
            if field is not None:
                found[field] = Span(marker, len(self.text), closed=False)
        return found

    def _begins_a_turn(
        self, marker: re.Match[str], found: dict[str, Span], field: str | None
    ) -> bool:
        """Whether the first input's name begins a question of the model's own."""
        if len(found) < len(self._outputs):
            return False
        if not self.text.startswith(f"{self._new_turn}:", marker.start()):
            return False
        value = "" if field is None else self.text[found[field].marker.end() : marker.start()]
        return field is None or bool(value.strip())

    def _value(self, span: Span) -> str:
        between = self.text[span.marker.end() : span.end]
        return between.strip() if self._is_bound else _value(span.marker, between)

    def _undecided(self) -> int:
        """Return where the last line begins if it may become a marker, or else the text's end."""
        line = self.text[self._line :]
        match = _partial_pattern(self._source, self._flags).match(line, partial=True)
        return self._line if match is not None and match.partial else len(self.text)

    def _open_code_marker(self) -> int:
        """Return where the first marker inside an open code block is."""
        markers, fences = self._all()
        if self._is_bound or len(fences) % 2 == 0 or not markers or fences[-1] < markers[0].start():
            return len(self.text)
        after = (marker.start() for marker in markers if marker.start() > fences[-1])
        return next(after, len(self.text))


def is_marker(line: str, names: tuple[str, ...]) -> bool:
    """Whether a line may be read as the beginning of one of these fields."""
    return _marker_pattern(_marker_source(names), re.IGNORECASE).match(line) is not None


def field_named(spelling: str, names: tuple[str, ...]) -> str:
    """Return the field that a spelling of a name stands for, or the spelling itself."""

    def plain(name: str) -> str:
        return re.sub("[ -]", "_", name.strip()).lower()

    if spelling in names:
        return spelling
    return next((name for name in names if plain(name) == plain(spelling)), spelling)


def _fences(text: str, start: int, end: int | None = None) -> Iterator[int]:
    lines = _FENCE.finditer(text, start, len(text) if end is None else end)
    return (fence.start() for fence in lines)


_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)


def _marker_source(names: tuple[str, ...]) -> str:
    spellings = "|".join(
        re.escape(name).replace("_", "[ _-]") for name in sorted(names, key=len, reverse=True)
    )
    return rf"""^[ \t]*
        (?:(?:[#>]+|[-*+•]|[0-9]+[.)])[ \t]+)*   # a heading, quotation or list sign
        (?P<open>\*\*|__|[*`])?
        (?P<name>{spellings})
        (?P<close>\*\*|__|[*`])?[ \t]*(?::|\uff1a)(?P<late_close>\*\*|__|[*`])?[ \t]*"""


def _bound_source(names: tuple[str, ...]) -> str:
    return rf"^(?P<name>{'|'.join(map(re.escape, names))}):"


@lru_cache(maxsize=256)
def _marker_pattern(source: str, flags: int) -> re.Pattern[str]:
    return re.compile(source, flags | re.VERBOSE)


@lru_cache(maxsize=256)
def _partial_pattern(source: str, flags: int) -> Any:
    """Return the same pattern for the `regex` library, which can match the beginning of a match."""
    ignored = regex.IGNORECASE if flags & re.IGNORECASE else 0
    return regex.compile(source, ignored | regex.VERBOSE)


def _value(marker: re.Match[str], text: str) -> str:
    """Return a field's text without what encloses it together with its name."""
    text = text.strip()
    emphasis = marker["open"]
    if emphasis and not (marker["close"] or marker["late_close"]):
        text = text.removesuffix(emphasis).rstrip()
    if len(_FENCE.findall(text)) % 2:
        text = text.removesuffix("```").rstrip()  # the end of a block around the whole answer
    return text
