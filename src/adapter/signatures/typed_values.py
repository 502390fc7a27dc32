"""Converts text that a model wrote for a field to the field's type."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import re
import types
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin

import json_repair
import pydantic
from dspy.adapters.types import Code, Reasoning
from dspy.adapters.utils import annotation_allows_none, parse_value
from typing_extensions import is_typeddict

MISFITS = (ValueError, TypeError, RecursionError, MemoryError)
"""Errors of converting a hostile text. pydantic's ValidationError is a ValueError."""

_COLLECTIONS = (list, set, frozenset, tuple)
TEMPORAL = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta)
_NOTHING = ("none", "null", "n/a")


def typed_value(raw: Any, annotation: Any, *, as_written: bool = False) -> Any:
    """Convert a text, or a value out of a JSON object, to a field's type.

    The text is taken as it stands if that is possible. Otherwise it is read more loosely: without
    the code block, quotes, emphasis or full stop around it; without an explanation after it; in
    another case than the Literal or Enum that it stands for; as a list with list signs or commas;
    as one of a Union's types.

    Args:
        as_written: the text followed a grammar. What it says is what it means, so it is not read
            more loosely.

    Raises:
        Exception: one of MISFITS, that of the strict reading, if nothing fits.
    """
    if annotation is str:
        return raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    if annotation in TEMPORAL:
        return _moment(raw, annotation)
    if _is_text_type(annotation) and isinstance(raw, str):
        return _text_type(raw, annotation)
    if annotation is Decimal and isinstance(raw, str):
        with contextlib.suppress(*MISFITS):  # exactly, not through JSON's double
            return pydantic.TypeAdapter(Decimal).validate_python(raw.strip())
    if raw in ("None", "null") and annotation_allows_none(annotation):
        return None
    with contextlib.suppress(*MISFITS):
        return value_in_json(raw, annotation)
    try:
        if any(member in TEMPORAL for member in union_members(annotation)):
            if isinstance(raw, str) and not _is_number(raw):
                return pydantic.TypeAdapter(annotation).validate_json(json.dumps(raw.strip()))
            raise TypeError(f"{raw!r} is none of {annotation}")
        return parse_value(raw, annotation)
    except MISFITS:
        if not any(member in TEMPORAL for member in union_members(annotation)):
            with contextlib.suppress(*MISFITS):
                return json_value(raw, annotation)
        readings = _readings_as_written if as_written else _looser_readings
        for reading in readings(raw, annotation):
            with contextlib.suppress(*MISFITS):
                return parse_value(reading, annotation)
        if isinstance(raw, str) and str in union_members(annotation):
            return raw  # whatever it looks like
        raise


def value_in_json(text: Any, annotation: Any) -> Any:
    """Read the JSON of a type that is no text, as pydantic reads JSON.

    DSPy's own parser reads it as values of Python's: with `list[datetime] | set[int]` a list of
    numbers as seconds and not as a set, with `timedelta | Decimal` a number as seconds, and with
    `datetime | date` a date as a moment.

    Raises:
        Exception: one of MISFITS, or any other of a validator of the user's.
    """
    if not isinstance(text, str) or text.lstrip()[:1] not in tuple('"[{-0123456789'):
        raise ValueError("it is no JSON, or a word")
    kinds = union_members(annotation) or (annotation,)
    if any(kind in (str, Any) or allowed_values(kind) for kind in kinds):
        raise ValueError("it may be a text")
    value = pydantic.TypeAdapter(annotation).validate_json(text)
    if isinstance(value, TEMPORAL) and _is_number(text):
        raise ValueError(f"{text} is a number of seconds")
    return value


def json_value(raw: Any, annotation: Any) -> Any:
    """Read a text, or a value out of a JSON object, as pydantic reads JSON.

    DSPy's own parser reads it as a value of Python's, of which a strict type refuses a date's
    text. A text that is no such JSON stands for itself.

    Raises:
        Exception: one of MISFITS, or any other of a validator of the user's.
    """
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
    if isinstance(raw, str):
        with contextlib.suppress(*MISFITS):
            return adapter.validate_json(raw)
    return adapter.validate_json(json.dumps(raw))


def dspy_value(raw: Any, annotation: Any) -> Any:
    """Read a text, or a value out of a JSON object, as an adapter of DSPy's does, or as JSON.

    The members of an Enum are read as DSPy does, by their names, and so are those in a Literal.

    Raises:
        Exception: that of DSPy's reading, if neither is possible.
    """
    try:
        return parse_value(raw, annotation)
    except MISFITS:
        if not isinstance(annotation, enum.EnumMeta):
            with contextlib.suppress(*MISFITS):
                return json_value(raw, annotation)
        for literal in union_members(annotation) or (annotation,):
            for value in allowed_values(literal) if get_origin(literal) is Literal else ():
                if isinstance(value, enum.Enum) and raw in (str(value), value.name, value.value):
                    return value
        raise


def allowed_values(annotation: Any) -> list[Any]:
    """Return the values that a Literal or an Enum allows; of another type, none."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        return [member.value for member in members]
    return []


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a Union or Optional; of another type, none."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()


def _readings_as_written(raw: Any, annotation: Any) -> Iterator[Any]:
    """Yield a text as each of a Union's types, and as the value of a Literal or Enum it names."""
    for member in union_members(annotation):
        with contextlib.suppress(*MISFITS):
            yield typed_value(raw, member, as_written=True)
    if isinstance(raw, str):
        yield from _choices(raw, annotation)


def _looser_readings(raw: Any, annotation: Any) -> Iterator[Any]:
    """Yield what a raw value may stand for, likeliest first. Each is still to be validated."""
    if members := union_members(annotation):
        if isinstance(raw, str) and type(None) in members and _bare(raw).casefold() in _NOTHING:
            yield None
        yield from _converted(raw, [member for member in members if member is not type(None)])
        return
    origin = get_origin(annotation) or annotation
    if isinstance(raw, str):
        raw = re.sub(r"\A```[^\n]*\n(.*?)\n?[ \t]*```\Z", r"\1", raw.strip(), flags=re.DOTALL)
        if origin not in (*_COLLECTIONS, dict):
            yield raw
            if not _has_parts(origin):
                yield from _scalar_readings(raw, annotation)
            return
        yield from _listed(raw, annotation)
        raw = json_repair.loads(raw)
    if isinstance(raw, list) and origin in _COLLECTIONS:
        yield from _items(raw, annotation)
    elif isinstance(raw, dict) and origin is dict:
        _, value_type = get_args(annotation) or (Any, Any)
        try:
            yield {key: typed_value(value, value_type) for key, value in raw.items()}
        except MISFITS:
            return


def _converted(raw: Any, annotations: list[Any]) -> Iterator[Any]:
    for annotation in annotations:
        with contextlib.suppress(*MISFITS):
            yield typed_value(raw, annotation)


def _has_parts(kind: Any) -> bool:
    """Whether values of a type are objects or arrays in JSON, whose first line alone says less."""
    if not isinstance(kind, type):
        return False
    is_class = issubclass(kind, (pydantic.BaseModel, tuple))
    return is_class or dataclasses.is_dataclass(kind) or is_typeddict(kind)


def _scalar_readings(text: str, annotation: Any) -> Iterator[Any]:
    line = _bare(text.partition("\n")[0])
    for reading in (line, _without_explanation(line)):
        yield re.sub(r"(?<=\d),(?=\d{3}\b)", "", reading)
        yield from _choices(reading, annotation)


def _without_explanation(line: str) -> str:
    # "3 - 4" and "3, 4" are not a 3 with an explanation.
    return _bare(re.split(r"[.,;:!]\s+(?!\d)|\s+[-\u2013\u2014(](?!\s*\d)", line)[0])


def _choices(reading: str, annotation: Any) -> Iterator[Any]:
    """Yield the values of a Literal or Enum that a reading names, in any case."""
    names = {str(value): value for value in allowed_values(annotation)}
    if isinstance(annotation, enum.EnumMeta):
        members: list[Any] = list(annotation)
        for member in members:
            names |= {member.name: member.value, str(member): member.value}
    for name, value in names.items():
        if name.casefold() == reading.casefold():
            yield value


def _listed(text: str, annotation: Any) -> Iterator[list[Any]]:
    """Read a text as a list with list signs, or with commas."""
    lines = [line for line in text.splitlines() if line.strip()]
    signed = [re.match(r"\s*(?:[-*+•]|\d+[.)])\s+(.*)", line) for line in lines]
    if all(signed):
        yield from _items([match[1] for match in signed if match], annotation)
    elif len(lines) == 1 and text[0] not in "[({":
        yield from _items(text.split(","), annotation)


def _items(items: list[Any], annotation: Any) -> Iterator[list[Any]]:
    item_types = [item for item in get_args(annotation) if item is not ...] or [str]
    if len(item_types) != len(items):
        item_types = item_types[:1] * len(items)
    try:
        yield [
            typed_value(item.strip() if isinstance(item, str) else item, item_type)
            for item, item_type in zip(items, item_types, strict=True)
        ]
    except MISFITS:
        return


def _moment(raw: Any, annotation: Any) -> Any:
    """Read a date, a time or a duration. A bare number is refused: pydantic would count seconds."""
    if _is_number(raw):
        raise ValueError(f"{raw!r} is a number; a {annotation.__name__} is written in ISO 8601")
    adapter = pydantic.TypeAdapter(annotation)
    if not isinstance(raw, str):
        return adapter.validate_python(raw)
    line = _bare(raw)
    try:
        return adapter.validate_python(line)
    except pydantic.ValidationError:
        clause = _without_explanation(line)
        if clause == line or _is_number(clause):
            raise
        return adapter.validate_python(clause)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, TypeError):
        return False
    return True


def _is_text_type(annotation: Any) -> bool:
    # Python 3.10 takes list[int] for a class. Only its origin shows what it is.
    is_class = get_origin(annotation) is None and isinstance(annotation, type)
    return is_class and issubclass(annotation, (Code, Reasoning))


def _text_type(raw: str, annotation: Any) -> Any:
    """Read Code or Reasoning: the text itself, or a JSON object with the field that holds it."""
    try:
        loaded = json.loads(raw)
        if isinstance(loaded, dict):
            return annotation.model_validate(loaded)
    except MISFITS:
        pass  # text that only looks like JSON
    return annotation.model_validate(raw)


def _bare(text: str) -> str:
    """Return a text without the quotes, emphasis and full stop around it."""
    return text.strip().strip(" \t*_`\"'.")
