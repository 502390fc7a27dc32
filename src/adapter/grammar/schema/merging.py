"""JSON schemas as data: what they require, and how two become one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import Any

from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern
from adapter.grammar.gbnf.pattern_search import is_found
from adapter.grammar.schema.formats import format_expression

Schema = dict[str, Any]

DEPENDENT = ("dependencies", "dependentRequired", "dependentSchemas")
"""Keywords of what the presence of a key asks for."""

KEYWORDS_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": (
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
        "unevaluatedProperties",
    ),
    "array": (
        "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems",
        "contains", "minContains", "maxContains", "unevaluatedItems", "x-set",
    ),
    "string": (
        "minLength", "maxLength", "pattern", "format", "formatMinimum", "formatMaximum", "x-json",
        "x-stripped",
    ),
    "number": (
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "x-digits",
    ),
}  # fmt: skip
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_ASSERTIONS = {
    "type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else",
    "x-unchecked", "x-key-order", "x-not-enum", "x-schema-names",
    *(keyword for keywords in KEYWORDS_OF_TYPE.values() for keyword in keywords),
}  # fmt: skip

FORMATS_OF_ANY_TEXT = ("binary", "password", "path", "file-path", "directory-path", "text")
"""Formats that every string fits."""

_STANDARD_FORMATS = frozenset((
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname",
    "ipv4", "ipv6", "uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template",
    "json-pointer", "relative-json-pointer", "regex", "host-name", "ip-address", "color",
))  # fmt: skip


class SchemaError(ValueError):
    """Not a JSON schema, or one that a grammar cannot follow."""


class ImpossibleSchemaError(SchemaError):
    """A schema that nothing can fit."""


def assertions(schema: Any) -> Schema:
    """What a schema requires, without annotations, in one spelling.

    Raises:
        SchemaError: a keyword's value has a wrong form.
    """
    if not isinstance(schema, Mapping):
        raise SchemaError(f"a schema is an object, true or false, not {schema!r}")
    if "$dynamicRef" in schema or "$recursiveRef" in schema:
        raise SchemaError("dynamic references are not supported; use $ref")
    found = {key: value for key, value in schema.items() if key in _ASSERTIONS}
    kinds = found.get("type")
    if isinstance(kinds, str):
        found["type"] = [kinds]
    if "enum" in found and not isinstance(found["enum"], list):
        raise SchemaError(f"enum has an invalid value: {found['enum']!r}")
    if "const" in found:
        const = [found.pop("const")]
        found["enum"] = _common_values(found["enum"], const) if "enum" in found else const
    if isinstance(found.get("pattern"), str):
        found["pattern"] = [found["pattern"]]
    if isinstance(found.get("items"), list):  # the spelling until 2019
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found["additionalItems"]
    found.pop("additionalItems", None)
    for keyword in found:
        form = _FORMS.get(keyword)
        if form is not None and not form(found[keyword]):
            raise SchemaError(f"{keyword} has an invalid value: {found[keyword]!r}")
    for kind in found.get("type", []):
        if kind not in TYPES:
            raise SchemaError(f"type {kind!r} is none of {', '.join(TYPES)}")
    if is_private_format(found.get("format")):
        kind = found.pop("format")
        if "string" in found.get("type", ("string",)) and kind not in FORMATS_OF_ANY_TEXT:
            found["x-unchecked"] = [*found.get("x-unchecked", ()), f"format {kind}"]
    for keyword in found.keys() & _COUNTS:
        found[keyword] = int(found[keyword])
    return found


def is_private_format(name: Any) -> bool:
    """Whether a format is none of JSON Schema's, nor known here. Validators do not check it, and it
    says nothing of the type.
    """
    return (
        isinstance(name, str) and name not in _STANDARD_FORMATS and format_expression(name) is None
    )


def schemas_in(schema: Schema, keyword: str) -> list[Any]:
    """The schemas of an allOf, anyOf or oneOf."""
    schemas = schema[keyword]
    if not isinstance(schemas, list) or not schemas:
        raise SchemaError(f"{keyword} must be a list of schemas, and must not be empty")
    return schemas


def merged(one: Schema, other: Schema) -> Schema:
    """One schema that describes what both do."""
    if not one:
        return other
    both = {**one, **other}
    for keyword in one.keys() & other.keys():
        both[keyword] = _MERGERS.get(keyword, _unmerged)(one[keyword], other[keyword])
    if "properties" in both or "patternProperties" in both:
        _merge_members(one, other, both)
    if "prefixItems" in both:
        both["prefixItems"] = _merged_prefix(one, other)
    unmerged = [keyword for keyword in one.keys() & other.keys() if both[keyword] is _UNMERGED]
    for keyword in unmerged:
        both[keyword] = one[keyword]
        if one[keyword] != other[keyword]:
            both["x-unchecked"] = [*both.get("x-unchecked", ()), f"{keyword} beside another"]
    return both


def types_of(schema: Schema) -> list[str] | None:
    """The types that a value may have; None for any.

    Without a type, it is the one that the other keywords are about: the types that they ignore are
    not needed.
    """
    if "type" in schema:
        kinds = list(schema["type"])
        return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]
    implied = [
        kind
        for kind, keywords in KEYWORDS_OF_TYPE.items()
        if any(keyword in schema and _says(keyword, schema[keyword]) for keyword in keywords)
    ]
    return implied or None


def _says(keyword: str, value: Any) -> bool:
    """Whether not everything fits a keyword. Otherwise a value need not even be of its type."""
    return keyword not in _WITHIN or not (value is True or value in ({}, []))


_WITHIN = (
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
    "items", "prefixItems",
)  # fmt: skip


def scalar_fits(value: Any, schema: Any) -> bool | None:
    """Whether a value fits a schema; None if that depends on more than scalar keywords."""
    if isinstance(schema, bool):
        return schema
    plain = assertions(schema)
    if "type" in plain and not any(is_of(value, kind) for kind in plain["type"]):
        return False
    if "enum" in plain and not any(same(value, one) for one in plain["enum"]):
        return False
    if any(same(value, one) for one in plain.get("x-not-enum", ())):
        return False
    kind = type_of(value)
    family = "number" if kind == "integer" else kind
    asked = set(KEYWORDS_OF_TYPE.get(family, ())) & plain.keys()
    if kind == "string":
        length = len(value)
        if not plain.get("minLength", 0) <= length <= plain.get("maxLength", length):
            return False
        try:
            if not all(is_found(pattern, value) for pattern in plain.get("pattern", [])):
                return False
        except UnsupportedPattern:
            return None
        asked -= {"minLength", "maxLength", "pattern"}
    if family == "number":
        if not plain.get("minimum", value) <= value <= plain.get("maximum", value):
            return False
        if "exclusiveMinimum" in plain and value <= plain["exclusiveMinimum"]:
            return False
        if "exclusiveMaximum" in plain and value >= plain["exclusiveMaximum"]:
            return False
        asked -= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    unknown = asked or plain.keys() & {"$ref", "allOf", "anyOf", "oneOf"}
    return None if unknown else True


def few_values(schema: Schema) -> list[Any] | None:
    """All values of a schema without references and unions, if there are obviously few."""
    if "enum" in schema:
        others = {keyword: schema[keyword] for keyword in schema if keyword != "enum"}
        fitting = [(value, scalar_fits(value, others)) for value in schema["enum"]]
        if "x-unchecked" in schema or any(fits is None for _, fits in fitting):
            return None
        return [value for value, fits in fitting if fits]
    if len(schema.get("type", ())) != 1:
        return None
    [kind] = schema["type"]
    if kind in _FEW and set(schema) == {"type"}:
        return _FEW[kind]
    if kind == "integer" and set(schema) in _BETWEEN:
        step = schema.get("multipleOf", 1)
        low, high = math.ceil(schema["minimum"]), math.floor(schema["maximum"])
        if isinstance(step, int):
            few = range(-(-low // step) * step, high + 1, step)
            return [*few] if len(few) <= _MANY else None
    return None


_FEW: dict[str, list[Any]] = {"boolean": [False, True], "null": [None]}
_BETWEEN = ({"type", "minimum", "maximum"}, {"type", "minimum", "maximum", "multipleOf"})
_MANY = 256


def exclusive(one: Any, other: Any) -> bool:
    """Whether it is obvious that no value fits both schemas."""
    if one is False or other is False:
        return True
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    first, second = assertions(one), assertions(other)
    if "enum" in first and "enum" in second:
        return not _common_values(first["enum"], second["enum"])
    kinds = [_kinds(first), _kinds(second)]
    if None not in kinds and not _common_types(*kinds):
        return True
    if _requires_what_lacks(first, second) or _requires_what_lacks(second, first):
        return True
    shared = set(first.get("required", ())) & set(second.get("required", ()))
    return any(
        exclusive(first.get("properties", {}).get(name), second.get("properties", {}).get(name))
        for name in shared
    )


def _requires_what_lacks(one: Schema, other: Schema) -> bool:
    """Whether one schema requires a key that the other does not allow."""
    if other.get("additionalProperties") is not False or "patternProperties" in other:
        return False
    if _kinds(one) != ["object"] or _kinds(other) != ["object"]:
        return False
    return not set(one.get("required", ())) <= set(other.get("properties", {}))


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON: True is not 1, but 1.0 is."""
    if type(one) is str or type(other) is str:  # the most of them, and much faster
        return bool(one == other)
    return _identity(one) == _identity(other)


def type_of(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, (list, tuple)) else "object"


def require_no_other_base(document: Mapping[str, Any]) -> None:
    """Refuse a schema with references that are not relative to its beginning: those within a part
    that has an $id of its own.
    """
    todo: list[tuple[Any, bool]] = [(document, False)]
    while todo:
        value, is_rebased = todo.pop()
        if isinstance(value, Mapping):
            own = value.get("$id")
            is_rebased |= value is not document and isinstance(own, str) and own[:1] != "#"
            if is_rebased and isinstance(value.get("$ref"), str):
                raise SchemaError(
                    "references within schemas that have an $id of their own are not supported"
                )
            todo += [(v, is_rebased) for k, v in value.items() if k not in ("enum", "const")]
        elif isinstance(value, list):
            todo += [(item, is_rebased) for item in value]


def is_of(value: Any, kind: str) -> bool:
    """Whether a value is of a JSON type."""
    own = type_of(value)
    return own == kind or (own, kind) == ("integer", "number")


def _kinds(schema: Schema) -> list[str] | None:
    if "enum" in schema:
        return [type_of(value) for value in schema["enum"]]
    kinds: list[str] | None = schema.get("type")
    return kinds


def _common_types(one: Any, other: Any) -> list[str]:
    common = [kind for kind in one if kind in other]
    mixed = ("integer" in one and "number" in other) or ("number" in one and "integer" in other)
    if mixed and "integer" not in common:
        common.append("integer")
    return common


def _common_values(one: list[Any], other: list[Any]) -> list[Any]:
    options = set(map(_identity, other))
    return [value for value in one if _identity(value) in options]


def _identity(value: Any) -> Hashable:
    """A key that two values share if, and only if, they are equal in JSON."""
    if isinstance(value, list):
        return "array", tuple(map(_identity, value))
    if isinstance(value, Mapping):
        return "object", frozenset((key, _identity(value[key])) for key in value)
    return isinstance(value, bool), value


def _both(one: Any, other: Any) -> Any:
    if one is True or other is True:
        return other if one is True else one
    is_same = one == other and _identity(one) == _identity(other)
    return one if is_same else {"allOf": [one, other]}


def _common_multiple(one: float, other: float) -> float:
    first, second = Fraction(repr(one)), Fraction(repr(other))
    both = math.lcm(first.numerator, second.numerator)
    common = Fraction(both, math.gcd(first.denominator, second.denominator))
    if common > _LARGEST:
        raise SchemaError(
            f"no common multiple of {one} and {other} is a number that is ever written"
        )
    return float(common)


_LARGEST = 10**300


class _Unmerged:
    pass


_UNMERGED = _Unmerged()


def _unmerged(*_: Any) -> Any:
    return _UNMERGED


def _united(one: list[Any], other: list[Any]) -> list[Any]:
    return list(dict.fromkeys([*one, *other]))


_MERGERS: dict[str, Any] = {
    "type": _common_types,
    "enum": _common_values,
    "required": _united,
    "pattern": _united,
    "x-unchecked": _united,
    "x-schema-names": _united,
    "x-not-enum": lambda one, other: [*one, *other],
    "x-key-order": lambda one, other: one if one == other else "schema",
    "items": _both,
    "additionalProperties": _both,
    "propertyNames": _both,
    **dict.fromkeys(("uniqueItems", "x-set", "x-stripped"), lambda one, other: one or other),
    "multipleOf": _common_multiple,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    "properties": lambda one, other: {**one, **other},
    "patternProperties": lambda one, other: {
        key: _both(one[key], other[key]) if key in one and key in other else {**one, **other}[key]
        for key in {**one, **other}
    },
    # Those that are left here are reported, whatever they say.
    **dict.fromkeys(
        DEPENDENT,
        lambda one, other: {**one, **other},
    ),
    "prefixItems": lambda one, _: one,  # put together below, with the items after them
}


def _merge_members(one: Schema, other: Schema, both: Schema) -> None:
    """Apply to each property what the other schema says about those that it does not declare."""
    properties: dict[str, Any] = {}
    for name in both.get("properties", {}):
        try:
            schemas = [_member(name, schema) for schema in (one, other)]
        except UnsupportedPattern:
            both["x-unchecked"] = [*both.get("x-unchecked", ()), "patternProperties"]
            schemas = [schema.get("properties", {}).get(name, True) for schema in (one, other)]
        properties[name] = _both(*schemas)
    both["properties"] = properties
    for first, second in ((one, other), (other, one)):
        # A key of a pattern in one is an additional property for the other.
        patterns = first.get("patternProperties")
        is_bound = second.get("additionalProperties", True) is not True
        if patterns and is_bound and patterns != second.get("patternProperties"):
            both["x-unchecked"] = [*both.get("x-unchecked", ()), "patternProperties"]


def _member(name: str, schema: Schema) -> Any:
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    if any(is_found(pattern, name) for pattern in schema.get("patternProperties", {})):
        return True  # its own schema is added with the patterns
    return schema.get("additionalProperties", True)


def _merged_prefix(one: Schema, other: Schema) -> list[Any]:
    length = max(len(one.get("prefixItems", [])), len(other.get("prefixItems", [])))

    def at(schema: Schema, index: int) -> Any:
        prefix = schema.get("prefixItems", [])
        return prefix[index] if index < len(prefix) else schema.get("items", True)

    return [_both(at(one, index), at(other, index)) for index in range(length)]


def _is_count(value: Any) -> bool:
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_FORMS: dict[str, Any] = {
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    **dict.fromkeys(("properties", "patternProperties"), _is_object),
    **dict.fromkeys(("type", "required", "pattern"), _are_texts),
    "prefixItems": lambda value: isinstance(value, list),
    **dict.fromkeys(("format", "formatMinimum", "formatMaximum"), _is_text),
    **dict.fromkeys(("uniqueItems", "x-set", "x-stripped"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("x-unchecked", "x-schema-names"), _are_texts),
    "x-key-order": lambda value: value in ("any", "schema"),
}
