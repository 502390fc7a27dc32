"""Checks values of an answer against the constraints of their fields.

DSPy only converts a text to a field's type. The constraints of ``dspy.OutputField(ge=…)`` and of
``Annotated`` types are in the field's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pydantic
from dspy.adapters.utils import annotation_allows_none
from pydantic.fields import FieldInfo

from adapter.grammar.schema.annotations import annotated, with_json_read
from adapter.signatures.typed_values import MISFITS

_SHOWN = 200  # characters of a value in an error


class Misfit(ValueError):
    """A value that its field does not allow. The text names field, value and constraint."""

    def __init__(self, name: str, value: Any, reason: Exception) -> None:
        super().__init__(f"{name}={_shown(value)} is not what the field allows: {_told(reason)}")


def constrained_value(name: str, value: Any, field: FieldInfo) -> Any:
    """A value of a field's type, after the field's own constraints and validators.

    Raises:
        Misfit: they refuse the value.
    """
    if not field.metadata:
        return value
    constraints: tuple[Any, tuple[Any, ...]] = (field.annotation, tuple(field.metadata))
    try:
        try:
            adapter = _kept_validator(*constraints)
        except TypeError:  # a constraint that has no hash
            adapter = _validator(*constraints)
        return adapter.validate_python(value)
    except MISFITS as error:
        raise Misfit(name, value, error) from error


def _validator(annotation: Any, metadata: tuple[Any, ...]) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(annotated(with_json_read(annotation), metadata))


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
        return str(reason) or type(reason).__name__
    texts = []
    for error in reason.errors(include_url=False):
        place = ".".join(map(str, error["loc"]))
        text = f"{place}: {error['msg']}" if place else error["msg"]
        texts.append(text if not place else f"{text}, not {_shown(error['input'])}")
    return "; ".join(texts)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
