"""Descriptions of functions for chat templates that expect one type for each parameter.

Some templates write parameters as TypeScript or Python does. They fail on a schema that is `true`,
has several types or none, or is an array of anything. Command R+'s fails on every array. The
arguments still follow the given schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapter.grammar.schema.merging import type_of

_DEEPEST = 20  # schemas within each other


def plain_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same functions, with one type in each schema."""
    return _described(tools, lambda parameters: _plain(parameters, parameters, 0))


def without_arrays(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same functions, with each array among the parameters described in words."""
    return _described(tools, _in_words)


def _described(
    tools: Sequence[Mapping[str, Any]], describe: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    made = []
    for tool in tools:
        function = dict(tool["function"])
        parameters = function.get("parameters")
        if isinstance(parameters, Mapping):
            function["parameters"] = describe(parameters)
        made.append({**tool, "function": function})
    return made


def _in_words(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A plain schema of an object, in which nothing that a template shows is an array."""
    plain = _plain(schema, schema, 0)
    properties = plain.get("properties")
    if not isinstance(properties, dict):
        return plain
    for name, one in properties.items():
        if _has_array(one):
            given = one.get("description")
            parts = [given] if given and isinstance(given, str) else []
            parts.append(f"JSON of this schema: {json.dumps(one, ensure_ascii=False)}")
            properties[name] = {"description": ". ".join(parts)}
    return plain


def _has_array(schema: Any) -> bool:
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            if one.get("type") == "array":
                return True
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return False


def _plain(schema: Any, document: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return {"type": "string"}
    made = dict(schema)
    kind = made["type"] = _type(schema, document, 0)
    if isinstance(made.get("properties"), Mapping):
        made["properties"] = {
            name: _plain(one, document, depth + 1) for name, one in made["properties"].items()
        }
    if kind == "array":
        made["items"] = _plain(made.get("items"), document, depth + 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if isinstance(made.get(keyword), list):
            made[keyword] = [_plain(one, document, depth + 1) for one in made[keyword]]
    return made


def _type(schema: Any, document: Mapping[str, Any], depth: int) -> str:
    """One type of the values of a schema. It is null only if there is no other."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return "string"
    given = schema.get("type")
    kinds = [given] if isinstance(given, str) else [*given] if isinstance(given, list) else []
    if not kinds and "const" in schema:
        kinds = [type_of(schema["const"])]
    if not kinds and isinstance(schema.get("enum"), list):
        kinds = [type_of(value) for value in schema["enum"]]
    if not kinds and isinstance(schema.get("$ref"), str):
        kinds = [_type(_referred(schema["$ref"], document), document, depth + 1)]
    for keyword in ("anyOf", "oneOf", "allOf"):
        if not kinds and isinstance(schema.get(keyword), list):
            kinds = [_type(one, document, depth + 1) for one in schema[keyword]]
    if not kinds:
        kinds = ["object" if "properties" in schema else "array" if "items" in schema else "string"]
    return next((kind for kind in kinds if kind != "null"), kinds[0])


def _referred(reference: str, document: Mapping[str, Any]) -> Any:
    found: Any = document
    for step in reference.lstrip("#/").split("/"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found
