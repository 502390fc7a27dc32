"""Tools among the inputs of a call, as lines that a small model follows.

    add(a: integer, b: integer): Add two numbers.
    price(product: string, currency: "EUR" or "USD", optional): Tell what a product costs.

A small model calls the right tool, once and with arguments of the question, far more often than if
it reads the tools as DSPy writes them, with JSON schemas in a list of texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dspy.adapters.types import Tool

_SAID = {
    *("type", "enum", "const", "items", "properties", "required", "anyOf", "additionalProperties"),
    *("title", "description", "default", "format"),
}
"""Keywords that words can express, or that say nothing about a value."""


def tools_in(value: Any) -> list[Tool]:
    """The tools that a value is made of; none if anything else is among them."""
    tools = [*value] if isinstance(value, (list, tuple)) else [value]
    return tools if all(isinstance(tool, Tool) for tool in tools) else []


def tool_line(tool: Tool) -> str:
    """One line for a tool: its name, arguments and description."""
    arguments = [_argument(name, schema) for name, schema in (tool.args or {}).items()]
    line = f"{_on_one_line(str(tool.name))}({', '.join(arguments)})"
    description = _on_one_line(tool.desc or "")
    return f"{line}: {description}" if description else line


def _argument(name: str, schema: Any) -> str:
    text = f"{_on_one_line(name)}: {_type(schema)}"
    if not _has_words(schema):
        return text
    if "default" in schema:
        default = schema["default"]
        text += ", optional" if default is None else f", optional, else {_json(default)}"
    description = _on_one_line(str(schema.get("description") or ""))
    return f"{text} ({description})" if description else text


def _has_words(schema: Any) -> bool:
    return isinstance(schema, Mapping) and _SAID.issuperset(schema)


def _type(schema: Any) -> str:
    """A schema in words, or as JSON if words do not express all of it."""
    if not _has_words(schema):
        return _json(schema)
    if "enum" in schema or "const" in schema:
        return " or ".join(map(_json, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    if kind == "object" and schema.get("properties"):
        return "{" + ", ".join(_member(name, schema) for name in schema["properties"]) + "}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_type(schema['additionalProperties'])}"
    kinds = " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
    return f"{kinds} ({schema['format']})" if "format" in schema else kinds


def _member(name: str, schema: Mapping[str, Any]) -> str:
    text = _argument(name, schema["properties"][name])
    is_left_out = name not in schema.get("required", ()) and ", optional" not in text
    return f"{text}, optional" if is_left_out else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
