"""Refuses output fields that no value fits, before a model is asked for one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pydantic

from adapter.errors import ConfigurationError
from adapter.grammar.schema.annotations import annotated, annotation_schema
from adapter.grammar.schema.json_schema import contradiction
from adapter.grammar.schema.merging import SchemaError
from adapter.grammar.schema.whole_constraints import may_fit
from adapter.signatures.typed_values import MISFITS, allowed_values, union_members
from adapter.signatures.values import of_members

_UNBOUND = (str, int, float, bool)
"""Types that anything fits unless a field constrains them."""

_OWN = (pydantic.BeforeValidator, pydantic.PlainValidator, pydantic.WrapValidator)

_AS_OF_FIELDS = {
    "minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of", "formatMinimum": "at least", "formatMaximum": "at most",
    **dict.fromkeys(("minLength", "minItems", "minProperties"), "min_length"),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), "max_length"),
}  # fmt: skip


def require_possible(name: str, annotation: Any, metadata: tuple[Any, ...]) -> None:
    """Refuse a field if its constraints contradict each other, or those of a part of its type.

    This includes an Optional of which only None is left, and a part that may be left out.

    Args:
        metadata: constraints of the field, as pydantic keeps them.

    Raises:
        ConfigurationError: names the field and the constraints.
    """
    if not metadata and annotation in _UNBOUND:
        return
    members = [one for one in union_members(annotation) if one is not type(None)]
    metadata = of_members(metadata) if members else metadata
    members = members or [annotation]
    reasons = [_contradiction(member, metadata) for member in members]
    found = [reason for reason in reasons if reason is not None]
    if len(found) == len(members) or (found and not metadata):
        raise ConfigurationError(f"no value can fit the output field {name!r}: {found[0]}")


def _contradiction(annotation: Any, metadata: tuple[Any, ...]) -> str | None:
    """What contradicts a field's constraints, or itself, in one type; None if nothing does."""
    values = [True, False] if annotation is bool else allowed_values(annotation)
    if values:
        fitting = not metadata or _any_fits(values, annotation, metadata)
        constraints = ", ".join(map(repr, metadata))
        return None if fitting else f"{_listed(values)} and {constraints} {_CHANGE}"
    if metadata and not may_fit(annotated(annotation, metadata)):
        return f"{annotation} and {', '.join(map(repr, metadata))} {_CHANGE}"
    try:
        found = contradiction(annotation_schema(annotation, metadata))
    except SchemaError:
        return None  # it has no schema that could be examined
    return None if found is None else _in_words_of_fields(found)


def _any_fits(values: Iterable[Any], annotation: Any, metadata: tuple[Any, ...]) -> bool:
    if any(isinstance(one, _OWN) for one in metadata):
        return True  # it may expect a text, and make a value of it
    try:
        fits = pydantic.TypeAdapter(annotated(annotation, metadata)).validate_python
    except (pydantic.PydanticUserError, TypeError):
        return True  # what validates it is not known
    for value in values:
        try:
            fits(value)
        except MISFITS:
            continue
        except Exception:  # of a validator of the user's, which expects something else
            return True
        return True
    return False


def _listed(values: list[Any]) -> str:
    shown = ", ".join(map(repr, values[:_SHOWN]))
    return f"the values {shown}, ..." if len(values) > _SHOWN else f"the values {shown}"


_SHOWN = 5

_STRIP = "strip_whitespace"

_CHANGE = "contradict each other; change one of them"


def _in_words_of_fields(text: str) -> str:
    text = text.replace("x-set True", "no item twice").replace("x-stripped True", _STRIP)
    words = text.split(" ")
    return " ".join(_AS_OF_FIELDS.get(word, word) for word in words)
