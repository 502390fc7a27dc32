"""The form of JSON values as a model is shown it: an example made from the type.

    [{"product": "...", "quantity": 0}]

A small model follows it better than a JSON schema, writes such a value on one line, and ends a list
sooner than where dots say that items follow.
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
        return _shape(schema, schema.get("$defs", {}), ())
    except _NoShape:
        return None


class _NoShape(Exception):
    """A schema that a shape cannot express."""


def _shape(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> str:
    if not isinstance(schema, Mapping) or not _KEYWORDS.issuperset(schema):
        raise _NoShape
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix("#/$defs/")
        if name in within or name not in definitions:
            raise _NoShape
        shape = _shape(definitions[name], definitions, (*within, name))
    elif "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        shape = " or ".join(json.dumps(value, ensure_ascii=False) for value in values)
    elif "anyOf" in schema:
        shape = " or ".join(_shape(one, definitions, within) for one in schema["anyOf"])
    elif schema.get("type") == "array":
        shape = f"[{_shape(schema.get('items'), definitions, within)}]"
    elif schema.get("type") == "object":
        shape = _object(schema, definitions, within)
    elif schema.get("type") in _EXAMPLES:
        shape = _EXAMPLES[schema["type"]]
    else:
        raise _NoShape
    description = schema.get("description")
    return f"{shape} ({description})" if description else shape


def _object(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], within: tuple[str, ...]
) -> str:
    others = schema.get("additionalProperties", False)
    if others is True:
        raise _NoShape
    members = []
    for name, member in schema.get("properties", {}).items():
        shape = _shape(member, definitions, within)
        left_out = "" if name in schema.get("required", ()) else " (may be left out)"
        members.append(f"{json.dumps(name, ensure_ascii=False)}: {shape}{left_out}")
    if others is not False:
        members.append(f'"...": {_shape(others, definitions, within)}')
    return "{" + ", ".join(members) + "}"
