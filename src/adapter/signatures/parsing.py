"""A model's text as the output fields of a signature.

An answer that followed the grammar of its signature has its fields where the grammar wrote their
markers. For any other text there are three strategies, in this order; the first whose values all
fit their types wins:

1. field markers: `name: value` at the start of a line (field_markers.py)
2. a JSON object anywhere in the text
3. the whole text, when there is one output field
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import json_repair
from dspy.adapters.utils import apply_output_field_defaults
from dspy.signatures import Signature
from dspy.utils.exceptions import AdapterParseError
from pydantic.fields import FieldInfo

from adapter.signatures.field_markers import FieldMarkers, field_named
from adapter.signatures.field_values import Misfit, constrained_value
from adapter.signatures.typed_values import typed_value


def parse_completion(
    signature: type[Signature], completion: str, *, is_bound: bool = False
) -> dict[str, Any]:
    """Return the value of every output field, each of its declared type.

    If the signature has no output fields, because it only asked for calls of tools, the text is
    ignored. A field that the text lacks gets its default, or None if its type allows that.

    Args:
        is_bound: whether the text followed the signature's grammar. If it lacks some of the
            grammar's markers nevertheless, because a stop cut it off, it is read like any other.

    Raises:
        AdapterParseError: all three strategies fail. The message has the reason of each.
    """
    if not signature.output_fields:
        return {}
    problems = []
    misfit: Misfit | None = None
    best: Any = {}
    strategies = _STRATEGIES
    is_exact = False
    if is_bound:
        exact = FieldMarkers(signature, is_bound=True)
        exact.push(completion)
        marked = exact.values()
        if len(marked) == len(signature.output_fields):
            strategies = {"the grammar's markers": lambda *_: marked}
            is_exact = True
    for name, strategy in strategies.items():
        raw = strategy(signature, completion)
        if not raw:
            problems.append(f"{name}: none found")
            continue
        try:
            fields: dict[str, Any] = {
                field: _value_of(field, value, signature.output_fields[field], as_written=is_exact)
                for field, value in raw.items()
            }
        except Misfit as error:
            problems.append(f"{name}: {error}")
            # What these took for a field may be any text.
            misfit = misfit if strategy in _OF_ANY_TEXT else error
            continue
        fields = apply_output_field_defaults(signature, fields)
        missing = [field for field in signature.output_fields if field not in fields]
        if not missing:
            return fields
        problems.append(f"{name}: no value for {', '.join(missing)}")
        best = max(best, fields, key=len)
    raise AdapterParseError(
        adapter_name="LlamaCppAdapter",
        signature=signature,
        lm_response=completion,
        message="\n".join(problems),
        parsed_result=best,
    ) from misfit


def _value_of(name: str, raw: Any, field: FieldInfo, *, as_written: bool) -> Any:
    """A field's value, of its type and within its constraints."""
    try:
        value = typed_value(raw, field.annotation, as_written=as_written)
    except Exception as error:  # a validator of the user's may raise anything
        raise Misfit(name, raw, error) from error
    return constrained_value(name, value, field)


def _marked_fields(signature: type[Signature], text: str) -> dict[str, Any]:
    markers = FieldMarkers(signature)
    markers.push(text)
    return {**markers.values()}


def _json_fields(signature: type[Signature], text: str) -> dict[str, Any]:
    start = text.find("{")
    if start < 0:
        return {}
    end = text.rfind("}") + 1 or len(text)
    try:
        found = json_repair.loads(text[start:end])
    except (ValueError, RecursionError):
        return {}
    for candidate in found if isinstance(found, list) else [found]:
        if isinstance(candidate, dict):
            names = tuple(signature.output_fields)
            values = {field_named(str(key), names): value for key, value in candidate.items()}
            fields = {name: values[name] for name in names if name in values}
            if fields:
                return fields
    return {}


def _whole_text(signature: type[Signature], text: str) -> dict[str, Any]:
    if len(signature.output_fields) != 1 or not text.strip():
        return {}
    return {next(iter(signature.output_fields)): text.strip()}


_STRATEGIES: dict[str, Callable[[type[Signature], str], dict[str, Any]]] = {
    "field markers": _marked_fields,
    "a JSON object": _json_fields,
    "the whole text": _whole_text,
}

_OF_ANY_TEXT = (_json_fields, _whole_text)
