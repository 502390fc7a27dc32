"""The form of JSON values as a model is shown it: an example made from the type.

    ["..."]

    [
      {
        "product": "...",
        "quantity": <a number>
      }
    ]

A small model follows it better than a JSON schema, and ends a list sooner than where dots say that
items follow. It writes objects as the example does, and makes up fewer of them if each key has a
line of its own. There a number is said in words, because a small model copies a 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_EXAMPLES = {
    "string": '"..."',
    "integer": "0",
    "number": "0.0",
    "boolean": "true or false",
    "null": "null",
}
_KEYWORDS = {
    *("$defs", "$ref", "additionalProperties", "anyOf", "const", "default", "description"),
    *("enum", "items", "properties", "required", "title", "type"),
}


def shape_of(schema: Mapping[str, Any]) -> str | None:
    """What a schema describes, if a shape can express all of it; None for other keywords."""
    try:
        return _shape(schema, schema.get("$defs", {}), (), indentation="")
    except _NoShape:
        return None


class _NoShape(Exception):
    """A schema that a shape cannot express."""


def _shape(
    schema: Any,
    definitions: Mapping[str, Any],
    within: tuple[str, ...],
    indentation: str | None = None,
    *,
    in_words: bool = False,
) -> str:
    """The shape of a schema.

    Args:
        within: names of the definitions that it is part of.
        indentation: of the line that it stands on, for a list of objects on several lines; None if
            all of it stands on one.
        in_words: whether the shape begins with words for a number, and not with an example.
    """
    if not isinstance(schema, Mapping) or not _KEYWORDS.issuperset(schema):
        raise _NoShape
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        if name in within or name not in definitions:
            raise _NoShape
        shape = _shape(definitions[name], definitions, (*within, name), indentation)
    elif "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        shape = " or ".join(json.dumps(value, ensure_ascii=False) for value in values)
    elif "anyOf" in schema:
        shape = " or ".join(
            _shape(one, definitions, within, in_words=in_words and index == 0)
            for index, one in enumerate(schema["anyOf"])
        )
    elif schema.get("type") == "array":
        shape = _list(schema.get("items"), definitions, within, indentation)
    elif schema.get("type") == "object":
        shape = _object(schema, definitions, within, indentation)
    elif in_words and schema.get("type") in ("integer", "number"):
        shape = "<a number>"
    elif schema.get("type") in _EXAMPLES:
        shape = _EXAMPLES[schema["type"]]
    else:
        raise _NoShape
    description = schema.get("description")
    return f"{shape} ({description})" if description else shape


def _list(
    items: Any, definitions: Mapping[str, Any], within: tuple[str, ...], indentation: str | None
) -> str:
    if indentation is None or not _is_object(items, definitions):
        return f"[{_shape(items, definitions, within)}]"
    indented = f"{indentation}  "
    return f"[\n{indented}{_shape(items, definitions, within, indented)}\n{indentation}]"


def _is_object(schema: Any, definitions: Mapping[str, Any]) -> bool:
    if not isinstance(schema, Mapping):
        return False
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    return bool(definitions.get(name, schema).get("properties"))


def _object(
    schema: Mapping[str, Any],
    definitions: Mapping[str, Any],
    within: tuple[str, ...],
    indentation: str | None,
) -> str:
    others = schema.get("additionalProperties", False)
    if others is True:
        raise _NoShape
    members = []
    for name, member in schema.get("properties", {}).items():
        shape = _shape(member, definitions, within, in_words=bool(indentation))
        left_out = "" if name in schema.get("required", ()) else " (may be left out)"
        members.append(f"{json.dumps(name, ensure_ascii=False)}: {shape}{left_out}")
    if others is not False:
        members.append(f'"...": {_shape(others, definitions, within)}')
    if not indentation:  # an object that is no item stands on one line
        return "{" + ", ".join(members) + "}"
    lines = [f"\n{indentation}  {member}" for member in members]
    return "{" + ",".join(lines) + f"\n{indentation}}}"
