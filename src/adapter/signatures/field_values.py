"""Checks values of an answer against the constraints of their fields.

DSPy only converts a text to a field's type. The constraints of ``dspy.OutputField(ge=…)`` and of
``Annotated`` types are in the field's metadata.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pydantic
from dspy.adapters.utils import annotation_allows_none
from pydantic.fields import FieldInfo

from adapter.grammar.schema.annotations import annotated
from adapter.signatures.validated_types import validated_type
from adapter.signatures.values import of_members

_SHOWN = 200  # characters of a value in an error


class Misfit(ValueError):
    """A value that its field does not allow. The text names field, value and constraint."""

    def __init__(self, name: str, value: Any, reason: Exception) -> None:
        super().__init__(f"{name}={_shown(value)} is not what the field allows: {_told(reason)}")


def constrained_value(name: str, value: Any, field: FieldInfo) -> Any:
    """A value of a field's type, after the field's own constraints and validators.

    Raises:
        Misfit: they refuse the value, or a validator of the user's fails on it.
    """
    if not field.metadata:
        return value
    constraints: tuple[Any, tuple[Any, ...]] = (field.annotation, tuple(field.metadata))
    try:
        try:
            validate = _kept_validator(*constraints)
        except TypeError:  # a constraint that has no hash
            validate = _validator(*constraints)
        return validate(value)
    except Exception as error:  # a validator of the user's may raise anything
        raise Misfit(name, value, error) from error


def _validator(annotation: Any, metadata: tuple[Any, ...]) -> Callable[[Any], Any]:
    """What validates a value of a type against the constraints alone."""
    of_typed = annotated(validated_type(annotation), of_members(metadata))
    validate = pydantic.TypeAdapter(of_typed).validate_python
    if not any(isinstance(one, _BEFORE) or hasattr(one, "union_mode") for one in metadata):
        return validate
    plain = pydantic.TypeAdapter(annotation)
    whole = pydantic.TypeAdapter(annotated(annotation, metadata))

    def validate_as_written(value: Any) -> Any:
        """A validator that comes before the type's own expects JSON, such as a date's text.

        So does a union that takes the first member that fits.
        """
        with contextlib.suppress(Exception):
            written = plain.dump_json(value, by_alias=True)
            # An alias that is only read, such as a pydantic.AliasPath, is not written.
            if plain.validate_json(written) == value:
                return whole.validate_json(written)
        return validate(value)

    return validate_as_written


_BEFORE = (pydantic.BeforeValidator, pydantic.PlainValidator, pydantic.WrapValidator)

_kept_validator = lru_cache(256)(_validator)


def constrained_values(
    fields: Mapping[str, FieldInfo], values: Mapping[str, Any]
) -> dict[str, Any]:
    """All values of an answer, after the constraints of their fields.

    A value that was not read from text is kept: a field's default, and the None that DSPy uses if a
    model called tools instead of answering.

    Raises:
        Misfit: a field refuses its value.
    """
    checked = dict(values)
    for name, field in fields.items():
        if name not in values or _is_filled_in(values[name], field):
            continue
        checked[name] = constrained_value(name, values[name], field)
    return checked


def _is_filled_in(value: Any, field: FieldInfo) -> bool:
    if value is None:
        return not annotation_allows_none(field.annotation)
    return not field.is_required() and value is field.default


def _told(reason: Exception) -> str:
    if not isinstance(reason, pydantic.ValidationError):
        kind = type(reason).__name__
        is_message = isinstance(reason, (ValueError, TypeError)) and str(reason)
        return str(reason) if is_message else f"{kind}: {reason}" if str(reason) else kind
    texts = []
    for error in reason.errors(include_url=False):
        place = ".".join(map(str, error["loc"]))
        text = f"{place}: {error['msg']}" if place else error["msg"]
        texts.append(text if not place else f"{text}, not {_shown(error['input'])}")
    return "; ".join(texts)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
