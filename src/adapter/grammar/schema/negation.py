"""What a JSON schema does not describe, as a union of schemas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from adapter.grammar.schema.merging import DEPENDENT, TYPES, Schema, assertions

MAX_OPTIONS = 8
"""The most options of such a union. Each is written out with everything around it."""

_OF_OTHERS = {"$ref", "allOf", "anyOf", "oneOf", "not", "if"}
_COUNTED = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
}


def negated(schema: Any, meant: Callable[[Any], Any], depth: int = 0) -> list[Any] | None:
    """Schemas of which a value fits one if, and only if, it does not fit the given one.

    None if they would be too many, or no schema can express it.

    Args:
        meant: the schema that one with "$ref" refers to.
    """
    if isinstance(schema, Mapping) and "$ref" in schema and len(assertions(schema)) > 1:
        return None
    schema = meant(schema)
    if isinstance(schema, bool):
        return [] if schema else [True]
    if not isinstance(schema, Mapping) or depth > MAX_OPTIONS:
        return None
    found: list[Any] = []
    keywords = assertions(schema)
    for keyword in keywords:
        options = _without(keyword, keywords, meant, depth + 1)
        if options is None:
            return None
        found += options
        if len(found) > MAX_OPTIONS:
            return None
    return found


def _without(
    keyword: str, schema: Schema, meant: Callable[[Any], Any], depth: int
) -> list[Any] | None:
    """What violates one keyword of a schema."""
    value = schema[keyword]
    if keyword == "enum":
        return [{"x-not-enum": value}]
    if keyword == "type":
        return _other_types(value)
    if keyword == "required":
        return [{"type": ["object"], "properties": {name: False}} for name in value]
    if keyword == "properties":
        found: list[Any] = []
        for name, one in value.items():
            options = negated(one, meant, depth)
            if options is None:
                return None
            found += [
                {"type": ["object"], "required": [name], "properties": {name: option}}
                for option in options
            ]
        return found
    if keyword in _COUNTED:
        kind, other, by = _COUNTED[keyword]
        none = kind != "number" and value + by < 0  # no text has fewer than zero characters
        return [] if none else [{"type": [kind], other: value + by}]
    if keyword == "not":
        # What it stands for may be many alternatives itself.
        is_plain = isinstance(value, Mapping) and not _OF_OTHERS & assertions(value).keys()
        return [value] if is_plain else None
    if keyword in ("anyOf", "allOf") and isinstance(value, list):
        parts = [negated(one, meant, depth) for one in value]
        if any(part is None for part in parts):
            return None
        if keyword == "allOf":
            return [option for part in parts for option in part or ()]
        if math.prod(max(1, len(part or ())) for part in parts) > MAX_OPTIONS:
            return None
        return [{"allOf": [{"anyOf": part} if part else False for part in parts]}]
    return None


def _other_types(kinds: list[str]) -> list[Any] | None:
    if "integer" in kinds and "number" not in kinds:
        return None  # numbers that are not whole
    taken = {*kinds, *(["integer"] if "number" in kinds else [])}
    left = [kind for kind in TYPES if kind not in taken and kind != "integer"]
    return [{"type": left}] if left else []


CONDITIONS = (
    ("not",),
    ("if", "then", "else"),
    *((keyword,) for keyword in DEPENDENT),
)
"""Keywords of conditions, with those that belong together in one group."""


def single(condition: Schema) -> list[Schema]:
    """The keywords of one condition as several conditions, each of one key, if these are few."""
    [keyword, *others] = condition
    given = condition[keyword]
    if others or not isinstance(given, Mapping) or keyword not in DEPENDENT:
        return [condition]
    if 2 ** len(given) > 2 * MAX_OPTIONS:
        return [condition]
    return [{keyword: {name: needed}} for name, needed in given.items()]


def union_of_condition(condition: Schema, meant: Callable[[Any], Any]) -> list[Any] | None:
    """The union that is equivalent to the keywords of one condition; None if there is none."""
    if "not" in condition:
        return negated(condition["not"], meant)
    if "if" in condition:
        if not ("then" in condition or "else" in condition):
            return [True]
        options = negated(condition["if"], meant)
        if options is None:
            return None
        met = {"allOf": [condition["if"], condition.get("then", True)]}
        return [met, *({"allOf": [one, condition.get("else", True)]} for one in options)]
    [given] = condition.values()
    if not isinstance(given, Mapping) or len(given) != 1:
        return None
    [(name, needed)] = given.items()
    if isinstance(needed, list):
        needed = {"required": needed}
    there = {"allOf": [{"type": ["object"], "required": [name]}, needed]}
    return [{"properties": {name: False}}, there]


def exclusive_options(options: list[Any], meant: Callable[[Any], Any]) -> list[Any] | None:
    """Options of which a value fits one if, and only if, it fits exactly one of the given ones.

    None if there would be too many, or no schema can express it.
    """
    if len(options) > MAX_OPTIONS:
        return None
    others = []
    for option in options:
        one = negated(option, meant)
        if one is None:
            return None
        others.append(one)
    if math.prod(max(1, len(one)) for one in others) > 2 * MAX_OPTIONS:
        return None
    parted = []
    for index, option in enumerate(options):
        rest = [{"anyOf": one} if one else False for at, one in enumerate(others) if at != index]
        parted.append({"allOf": [option, *rest]})
    return parted
