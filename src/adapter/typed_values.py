"""A text that a model wrote for a field, as a value of the field's type."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from dspy.adapters.utils import annotation_allows_none, parse_value

MISFITS = (ValueError, TypeError, RecursionError, MemoryError)
"""What converting a hostile text raises. pydantic's ValidationError is a ValueError."""


def typed_value(raw: Any, annotation: Any) -> Any:
    """Convert a text, or a value out of a JSON object, to a field's type.

    The text is taken as it stands if that is possible. If not, it is read more loosely: without
    the code block, quotes, emphasis or full stop around it, without an explanation after it, in
    another case than the Literal or Enum it stands for, as a list with list signs or commas.
    Raises one of MISFITS, that of the strict reading, where nothing fits.
    """
    if annotation is str:
        return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    if not isinstance(raw, str):
        return parse_value(raw, annotation)
    if raw in ("None", "null") and annotation_allows_none(annotation):
        return None
    try:
        return parse_value(raw, annotation)
    except MISFITS:
        for reading in _looser_readings(raw, annotation):
            if reading == raw:
                continue
            try:
                return parse_value(reading, annotation)
            except MISFITS:
                continue
        raise


def allowed_values(annotation: Any) -> list[Any]:
    """Return the values that a Literal or an Enum allows; of another type, none."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        return [member.value for member in members]
    return []


def _looser_readings(text: str, annotation: Any) -> Iterator[Any]:
    unfenced = re.sub(r"\A```[^\n]*\n(.*?)\n?[ \t]*```\Z", r"\1", text.strip(), flags=re.DOTALL)
    yield unfenced
    if get_origin(annotation) is list:
        yield from _listed(unfenced, annotation)
        return
    line = unfenced.partition("\n")[0].strip(" \t*_`\"'.")
    # An explanation after the value; "3 - 4" and "3, 4" are no explained 3.
    clause = re.split(r"[.,;:!]\s+(?!\d)|\s+[-\u2013\u2014(](?!\s*\d)", line)[0].strip(" \t*_`\"'")
    for reading in (line, clause):
        yield re.sub(r"(?<=\d),(?=\d{3}\b)", "", reading)
        for choice in allowed_values(annotation):
            if str(choice).casefold() == reading.casefold():
                yield choice


def _listed(text: str, annotation: Any) -> Iterator[list[Any]]:
    item_type = (get_args(annotation) or (str,))[0]
    lines = [line for line in text.splitlines() if line.strip()]
    signed = [re.match(r"\s*(?:[-*+•]|\d+[.)])\s+(.*)", line) for line in lines]
    if all(signed):
        items = [match[1] for match in signed if match]
    elif len(lines) == 1:
        items = text.split(",")
    else:
        return
    try:
        yield [typed_value(item.strip(), item_type) for item in items]
    except MISFITS:
        return
