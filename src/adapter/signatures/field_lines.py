"""Fields as lines of `name: value`. No value can forge another field's line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

from dspy.adapters.types import Code
from dspy.adapters.utils import format_field_value
from dspy.signatures import Signature
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from adapter.signatures.field_markers import is_marker
from adapter.signatures.formatting import is_demonstrated
from adapter.signatures.tool_lines import tool_line, tools_in
from adapter.signatures.values import is_dspy_type

_BAR = "| "
_LINE_BEGIN = re.compile("(?:^|(?<=[\n\v\f\x1c-\x1e\x85\u2028\u2029])|(?<=\r)(?!\n))(?!\\Z)")


def input_lines(signature: type[Signature], values: Mapping[str, Any]) -> str:
    """Return one `name: value` line for each input that has a value.

    A value of several lines starts on a line of its own. If one of its lines could be read as a
    field of the signature, a bar is put before each. Other values are written as they are.
    """
    names = tuple(signature.fields)
    lines = []
    for name, field in signature.input_fields.items():
        if name not in values:
            continue
        value = values[name]
        if is_dspy_type(field.annotation, Code) and value is not None:
            text = _fenced(field.annotation, value, longer=True)
        else:
            text = _text_of(field, value)
            parts = text.splitlines()
            if len(parts) > 1 and any(is_marker(_as_seen(line), names) for line in parts):
                text = _LINE_BEGIN.sub(_BAR, text)
        lines.append(_field(name, text))
    return "\n".join(lines)


def _text_of(field: FieldInfo, value: Any) -> str:
    """A value as DSPy writes it. It makes a schema for each, and leaves a str as it is."""
    tools = [] if is_demonstrated() else tools_in(value)
    if tools:
        return "\n".join(map(tool_line, tools))
    return value if type(value) is str else str(format_field_value(field, value))


def _with_aliases(value: Any) -> Any:
    """A value in JSON with the keys that its type reads. DSPy writes the names of the fields."""
    if type(value) is str:
        return value
    try:
        return TypeAdapter(type(value)).dump_python(value, mode="json", by_alias=True, fallback=str)
    except Exception:  # as DSPy leaves what pydantic cannot write
        return value


def _as_seen(line: str) -> str:
    """A line without invisible characters, and with each letter and space in its plain form."""
    plain = unicodedata.normalize("NFKC", line)
    return "".join(one for one in plain if unicodedata.category(one) != "Cf")


def output_lines(
    fields: Mapping[str, FieldInfo],
    values: Mapping[str, Any],
    missing: str | None = None,
    below: Collection[str] = (),
) -> str:
    """Return one `name: value` line for each output that has a value, as a model writes them.

    A field without a value gets the text `missing`, or is left out if that is None. A line that
    would be read as another output gets a bar before it, since no model can write such a line.
    The values of the fields `below` begin on the line below their names.
    """
    lines = []
    for name, field in fields.items():
        if name in values:
            value = values[name]
            if is_dspy_type(field.annotation, Code) and value is not None:
                text = _fenced(field.annotation, value)
            else:
                text = _text_of(field, _with_aliases(value))
        elif missing is not None:
            text = missing.strip()
        else:
            continue
        lines.append(_field(name, _with_bars(text, tuple(fields)), below=name in below))
    return "\n".join(lines)


def _field(name: str, text: str, *, below: bool = False) -> str:
    separator = "\n" if below or "\n" in text or len(text.splitlines()) > 1 else " "
    return f"{name}:{separator}{text}"


def _fenced(annotation: Any, value: Any, *, longer: bool = False) -> str:
    """Code in a block, in which no line is read as the next field.

    Args:
        longer: use a fence that is longer than any fence in the code.
    """
    code = value if isinstance(value, Code) else annotation.model_validate(value)
    within = max(map(len, re.findall("`{3,}", code.code)), default=2) if longer else 2
    fence = "`" * (within + 1)
    return f"{fence}{annotation.language.lower()}\n{code.code}\n{fence}"


def _with_bars(text: str, names: tuple[str, ...]) -> str:
    if "\n" not in text:
        return text
    lines = []
    in_code = False
    for line in text.split("\n"):
        in_code ^= line.lstrip(" \t").startswith("```")
        lines.append(f"{_BAR}{line}" if not in_code and is_marker(line, names) else line)
    return "\n".join(lines)
