"""Finds the part of a schema whose own keywords contradict each other, to name it in an error."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

_CONSTRAINTS = (
    "enum", "const", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf",
    "x-digits", "minLength", "maxLength", "pattern", "x-stripped", "format", "formatMinimum",
    "formatMaximum", "minItems", "maxItems", "uniqueItems", "x-set", "minProperties",
    "maxProperties",
)  # fmt: skip
"""Keywords that may contradict each other."""

_MAX_PARTS = 100
"""The most parts of a schema that are looked at."""


def first_contradiction(
    schema: Mapping[str, Any], is_possible: Callable[[Mapping[str, Any]], bool]
) -> str | None:
    """Where a schema contradicts itself, in words: the keywords with their values, and what to do.
    None if nowhere.

    Parts that may be left out count as well.

    Args:
        is_possible: whether something fits a part of the schema.
    """
    constrained = (
        (path, part, [keyword for keyword in _CONSTRAINTS if keyword in part])
        for path, part in _parts(schema, "")
    )
    doubtful = (
        one
        for one in constrained
        if (len(one[2]) > 1 or one[2] == ["pattern"]) and _is_whole(one[1])
    )
    for path, part, keywords in islice(doubtful, _MAX_PARTS):
        if not is_possible(part):
            given = [keyword for keyword in keywords if part[keyword] != {}]
            said = " and ".join(f"{keyword} {_shown(part[keyword])}" for keyword in given)
            said += f" of {path}" if path else ""
            if len(given) > 1:
                return f"{said} contradict each other; change one of them"
            return f"{said} matches no text; change it"
    return None


def _parts(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A schema's parts with their paths, each after those within it."""
    if not isinstance(schema, Mapping):
        return
    for keyword in ("$defs", "definitions", "properties"):
        named = schema.get(keyword)
        for name, part in named.items() if isinstance(named, Mapping) else ():
            yield from _parts(part, f"{path}.{name}" if path else str(name))
    for keyword in ("items", "additionalProperties"):
        yield from _parts(schema.get(keyword), f"{path}[]")
    for keyword in ("prefixItems", "allOf", "anyOf", "oneOf"):
        several = schema.get(keyword)
        for part in several if isinstance(several, list) else ():
            yield from _parts(part, path)
    yield path, schema


def _is_whole(part: Mapping[str, Any]) -> bool:
    """Whether no value fits a part if the grammar can write none.

    A grammar does not write all strings of some formats, and does not know some constraints.
    """
    if "x-unchecked" in part or _is_long(part.get("multipleOf")):
        return False
    if "minProperties" in part and not part.keys().isdisjoint(("patternProperties", _NAMES)):
        least, most = part["minProperties"], part.get("maxProperties")
        return isinstance(least, int) and isinstance(most, int) and least > most
    ends = [part.get(keyword) for keyword in ("formatMinimum", "formatMaximum")]
    if ends != [None, None]:
        return _is_after(*ends)
    return "format" not in part or part.keys().isdisjoint(("pattern", "minLength", "maxLength"))


_NAMES = "propertyNames"
"""A grammar writes only some of the keys that this, or a pattern, allows."""


def _is_long(number: Any) -> bool:
    """Whether a float has more digits than a grammar writes exactly."""
    return isinstance(number, float) and float(f"{number:.15g}") != number


def _is_after(one: Any, other: Any) -> bool:
    """Whether a text is a moment after another one of the same kind."""
    for read in (_date, _moment, _time, _seconds):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            return bool(read(one) > read(other))
    return False


def _date(text: str) -> Any:
    return datetime.date.fromisoformat(text)


def _moment(text: str) -> Any:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def _time(text: str) -> Any:
    return datetime.time.fromisoformat(text.replace("Z", "+00:00"))


def _seconds(text: str) -> Any:
    """Of a duration as the bounds of a timedelta are written."""
    number = text.replace("PT", "", 1).removesuffix("S")
    return float(number)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_MAX_SHOWN = 80
