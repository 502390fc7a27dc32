"""Constraints of a whole type, such as a union, as constraints of its members.

pydantic checks `Annotated[int | float, Field(ge=3)]` with a function after the union, and its JSON
schemas do not say what that function checks.
"""

from __future__ import annotations

import datetime
import functools
import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pydantic
from pydantic_core import core_schema

_MOMENTS: dict[Any, str] = {
    datetime.date: "date",
    datetime.datetime: "datetime",
    datetime.time: "time",
    datetime.timedelta: "timedelta",
}
_NUMBERS = ("int", "float", "decimal")
_SIZED = ("str", "bytes", "list", "tuple", "set", "frozenset", "dict")
_KNOWN = {*_NUMBERS, *_MOMENTS.values(), *_SIZED, "none", "bool"}
_BOUNDS = ("ge", "gt", "le", "lt")
_TIGHTER: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("ge", "gt", "min_length"), max),
    **dict.fromkeys(("le", "lt", "max_length"), min),
}
_FITS: dict[str, Callable[[Any, Any], bool]] = {
    **{name: getattr(operator, name) for name in _BOUNDS},
    "multiple_of": lambda value, step: value % step == 0,
    "min_length": lambda value, least: len(value) >= least,
    "max_length": lambda value, most: len(value) <= most,
}
_OF_TEXTS = (
    *("pattern", "strip_whitespace", "to_lower", "to_upper", "coerce_numbers_to_str"),
    "ascii_only",
)
_NAMES = {*_FITS, *_OF_TEXTS, "max_digits", "decimal_places"}


def with_constraints_within(schema: Any) -> Any | None:
    """A core schema whose last constraint applies to its parts, and is not checked by a function.

    What a part cannot say of it is reported there as x-unchecked. If no value can pass the check,
    none fits the schema.

    Returns:
        None if the schema is of another kind.
    """
    constrained = _constrained(schema)
    if constrained is None:
        return None
    inner, name, value = constrained
    found = _applied(inner, name, value)
    return core_schema.literal_schema([]) if found is None else found


def may_fit(annotation: Any) -> bool:
    """Whether a type has values of which its constraints can be checked: no str is above 3."""
    try:
        schema: Any = pydantic.TypeAdapter(annotation).core_schema
    except Exception:  # of a type or a constraint of the user's
        return True
    while (constrained := _constrained(schema)) is not None:
        schema, name, value = constrained
        if _applied(schema, name, value) is None:
            return False
    return True


def _constrained(schema: Any) -> tuple[Any, str, Any] | None:
    """A schema, and the name and value of its constraint that a function of pydantic's checks."""
    if schema["type"] == "chain":
        *before, last = schema["steps"]
        inner = before[0] if len(before) == 1 else {**schema, "steps": before}
        if not before or not _is_pydantics(last) or last["schema"]["type"] != "str":
            return None
        given = [(name, value) for name, value in last["schema"].items() if name != "type"]
    elif _is_pydantics(schema) and isinstance(schema["function"]["function"], functools.partial):
        function = schema["function"]["function"]
        inner, given = schema["schema"], [*function.keywords.items()]
        if function.args:
            return None
    else:
        return None
    return (inner, *given[0]) if len(given) == 1 and given[0][0] in _NAMES else None


def _is_pydantics(schema: Any) -> bool:
    if schema["type"] not in ("function-after", "function-wrap"):
        return False
    function = schema["function"]["function"]
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__module__", "")).startswith("pydantic.")


def _applied(schema: Any, name: str, value: Any) -> Any | None:
    """A core schema with a constraint; None if checking it fails for every value."""
    kind = schema["type"]
    if kind == "union":
        choices = [
            (found, *choice[1:]) if isinstance(choice, tuple) else found
            for choice in schema["choices"]
            for found in [_applied(choice[0] if isinstance(choice, tuple) else choice, name, value)]
            if found is not None
        ]
        return _copied(schema, choices=choices) if choices else None
    if kind == "nullable":  # None has no order and no length
        return _applied(schema["schema"], name, value)
    if kind == "chain" and _constrained(schema) is not None:
        first, *others = schema["steps"]
        found = _applied(first, name, value)
        return None if found is None else _copied(schema, steps=[found, *others])
    if kind == "function-after":  # most validators of a user's only check a value
        inner = _applied(schema["schema"], name, value)
        return None if inner is None else {**_copied(schema), "schema": inner}
    if kind == "bool":
        schema, kind = {"type": "literal", "expected": [False, True]}, "literal"
    if kind == "literal":
        expected = _fitting(schema["expected"], name, value)
        return _copied(schema, expected=expected) if expected else None
    if kind == "enum":
        members = _fitting(schema["members"], name, value)
        return _copied(schema, members=members) if members else None
    takers = _takers(name, value)
    if takers is None or kind not in _KNOWN:
        return _unsaid(schema, name)
    if kind not in takers:
        return None
    if name == "multiple_of" and kind == "float" and Fraction(str(value)) != Fraction(value):
        return _unsaid(schema, name)  # the rest of Python's own division is rounded
    given = schema.get(name)
    if given is None:
        return _copied(schema, **{name: value})
    tighter = _TIGHTER.get(name)
    if tighter is None:
        return schema if given == value else _unsaid(schema, name)
    return _copied(schema, **{name: tighter(given, value)})


def _takers(name: str, value: Any) -> tuple[str, ...] | None:
    """The types whose values can be checked; None if that depends on the type's own methods."""
    if name in ("min_length", "max_length"):
        return _SIZED
    if name in ("max_digits", "decimal_places"):
        return ("decimal",)
    if name in _OF_TEXTS:
        return ("str",)
    if type(value) in _MOMENTS:
        return (_MOMENTS[type(value)],)
    if not isinstance(value, (int, float, Decimal)):
        return None
    if name in _BOUNDS or isinstance(value, int):
        return _NUMBERS
    return ("int", "float") if isinstance(value, float) else ("int", "decimal")


def _fitting(values: Any, name: str, value: Any) -> list[Any]:
    """The values of an enumeration that fit a constraint."""

    def fits(one: Any) -> bool:
        try:
            return name in _FITS and bool(_FITS[name](one, value))
        except Exception:  # it has no such order or length, or a method of the user's fails
            return False

    return [one for one in values if fits(one)]


def _unsaid(schema: Any, name: str) -> Any:
    told = {"pydantic_js_updates": {"x-unchecked": [name]}}
    return {**core_schema.no_info_after_validator_function(_as_it_is, schema), "metadata": told}


def _as_it_is(value: Any) -> Any:
    return value


def _copied(schema: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    """A changed copy, which is not the definition that others refer to."""
    return {**{key: value for key, value in schema.items() if key != "ref"}, **changed}
