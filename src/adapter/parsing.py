"""A model's text as the output fields of a signature.

Three strategies, in this order; the first whose values all fit their types wins:

1. field markers: `name: value` at the start of a line, whatever the case, list sign or emphasis;
   a value reaches to the next marker
2. a JSON object anywhere in the text
3. the whole text, when there is one output field
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import json_repair
from dspy.adapters.utils import apply_output_field_defaults
from dspy.signatures import Signature
from dspy.utils.exceptions import AdapterParseError

from adapter.typed_values import MISFITS, typed_value


def parse_completion(signature: type[Signature], completion: str) -> dict[str, Any]:
    """Return the value of every output field, each of its declared type.

    A field that the text does not mention takes its default, or None where its type allows that.
    Raises AdapterParseError, with the reason of each strategy, where all three fail.
    """
    problems = []
    best: Any = {}
    for name, strategy in _STRATEGIES.items():
        raw = strategy(signature, completion)
        if not raw:
            problems.append(f"{name}: none found")
            continue
        try:
            fields: dict[str, Any] = {
                field: typed_value(value, signature.output_fields[field].annotation)
                for field, value in raw.items()
            }
        except MISFITS as error:
            problems.append(f"{name}: a value does not fit its type: {error}")
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
    )


def _marked_fields(signature: type[Signature], text: str) -> dict[str, Any]:
    outputs = list(signature.output_fields)
    new_turn = next(iter(signature.input_fields), None)
    markers = _markers(text, (*outputs, new_turn) if new_turn else tuple(outputs))
    found: dict[str, tuple[re.Match[str], int]] = {}
    field = None
    for name, marker in markers:
        if name == new_turn and len(found) < len(outputs):
            continue  # not all is answered yet: a word of the answer
        if field is not None:
            found[field] = (found[field][0], marker.start())
        if name == new_turn:
            break  # the model goes on with a question of its own
        # Of a field given twice the first counts, as in a model that repeats itself.
        field = name if name not in found else None
        if field is not None:
            found[field] = (marker, len(text))
    values: dict[str, Any] = {
        name: _value(marker, text[marker.end() : end]) for name, (marker, end) in found.items()
    }
    if found and outputs[0] not in found:
        # A model that reasons first often leaves out the first field's name.
        preamble = text[: min(marker.start() for marker, _ in found.values())].strip()
        if preamble:
            values[outputs[0]] = preamble
    return values


def _markers(text: str, names: tuple[str, ...]) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the field markers in a text. Those inside a value's code block are the code's."""
    fences = [fence.start() for fence in re.finditer(r"^[ \t]*```", text, re.MULTILINE)]
    blocks = list(zip(fences[::2], fences[1::2], strict=False))
    first = None
    for marker in _marker_pattern(names).finditer(text):
        first = marker.start() if first is None else first
        if not any(first < start < marker.start() < end for start, end in blocks):
            yield _field_named(marker["name"], names), marker


@lru_cache(maxsize=256)
def _marker_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    spellings = "|".join(
        re.escape(name).replace("_", "[ _-]") for name in sorted(names, key=len, reverse=True)
    )
    return re.compile(
        rf"""^[ \t]*
        (?:(?:[#>]+|[-*+•]|\d+[.)])[ \t]+)*      # a heading, quotation or list sign
        (?P<open>\*\*|__|[*`])?
        (?P<name>{spellings})
        (?P<close>\*\*|__|[*`])?[ \t]*(?::|\uff1a)(?P<late_close>\*\*|__|[*`])?[ \t]*""",
        re.IGNORECASE | re.MULTILINE | re.VERBOSE,
    )


def _value(marker: re.Match[str], text: str) -> str:
    """Return a field's text without what encloses it together with its name."""
    text = text.strip()
    emphasis = marker["open"]
    if emphasis and not (marker["close"] or marker["late_close"]):
        text = text.removesuffix(emphasis).rstrip()
    if len(re.findall(r"^[ \t]*```", text, re.MULTILINE)) % 2:
        text = text.removesuffix("```").rstrip()  # the end of a block around the whole answer
    return text


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
            values = {_field_named(str(key), names): value for key, value in candidate.items()}
            fields = {name: values[name] for name in names if name in values}
            if fields:
                return fields
    return {}


def _whole_text(signature: type[Signature], text: str) -> dict[str, Any]:
    if len(signature.output_fields) != 1 or not text.strip():
        return {}
    return {next(iter(signature.output_fields)): text.strip()}


def _field_named(spelling: str, names: tuple[str, ...]) -> str:
    """Return the field that a spelling of its name means, or the spelling if it means none."""

    def plain(name: str) -> str:
        return re.sub("[ -]", "_", name.strip()).lower()

    if spelling in names:
        return spelling
    return next((name for name in names if plain(name) == plain(spelling)), spelling)


_STRATEGIES: dict[str, Callable[[type[Signature], str], dict[str, Any]]] = {
    "field markers": _marked_fields,
    "a JSON object": _json_fields,
    "the whole text": _whole_text,
}
