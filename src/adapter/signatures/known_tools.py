"""Calls of tools that a model writes as fields, because its template has no form for them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dspy
from dspy.adapters.types import Tool
from dspy.signatures import Signature

from adapter.engine.tool_arguments import closed_schema, impossible
from adapter.errors import ConfigurationError


def or_null(schema: str) -> str:
    """The schema of what fits another one, and of null; both as JSON."""
    return json.dumps({"anyOf": [json.loads(schema), {"type": "null"}]})


def calls_schema(inputs: Mapping[str, Any]) -> str | None:
    """The schema of calls of the tools among a call's inputs, as JSON; None if there are none.

    The form is that in which DSPy writes ToolCalls.
    """
    calls = _calls(inputs)
    return json.dumps(_as_dspy_writes(calls), default=str) if calls else None


def bare_calls_schema(inputs: Mapping[str, Any]) -> str:
    """The schema of one call, or of a list of calls, as JSON; of any tool if there is none.

    DSPy reads it as well. A small model that has begun a list goes on with calls that nobody asked
    for. The form in which DSPy writes calls fits too, because earlier turns may show it.
    """
    calls = _calls(inputs) or [_ANY_CALL]
    schema = {"anyOf": [*calls, _list_of(calls), _as_dspy_writes(calls)]}
    return json.dumps(schema, default=str)


def _list_of(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": calls}}


def _as_dspy_writes(calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"tool_calls": _list_of(calls)},
        "required": ["tool_calls"],
        "additionalProperties": False,
    }


_ANY_CALL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "args": {"type": "object"}},
    "required": ["name", "args"],
    "additionalProperties": False,
}


def _calls(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The schemas of calls of the tools among a call's inputs, by tool."""
    tools = {str(tool.name): tool for value in inputs.values() for tool in _tools_in(value)}
    return [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "args": _arguments(tool)},
            "required": ["name", "args"],
            "additionalProperties": False,
        }
        for name, tool in tools.items()
    ]


def calling_agent(signature: type[Signature]) -> dspy.ReAct | None:
    """The dspy.ReAct that makes a call: for one of its steps, or for the answer at the end."""
    if "trajectory" not in signature.input_fields:
        return None
    modules = reversed(dspy.settings.caller_modules or [])
    return next((module for module in modules if isinstance(module, dspy.ReAct)), None)


def step_schemas(agent: dspy.ReAct, signature: type[Signature]) -> tuple[tuple[str, str], ...]:
    """The schemas of `next_tool_args` in a step of an agent, as JSON, by `next_tool_name`.

    Empty if the call is none of an agent's steps.
    """
    if [*signature.output_fields][-2:] != ["next_tool_name", "next_tool_args"]:
        return ()
    tools: dict[str, Tool] = agent.tools
    if not all(re.fullmatch(r"\w[\w.-]*", name) for name in tools):
        return ()
    return tuple((name, json.dumps(_arguments(tool), default=str)) for name, tool in tools.items())


def _tools_in(value: Any) -> Iterator[Tool]:
    for one in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(one, Tool):
            yield one


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments. Raises ConfigurationError if nothing fits it."""
    schema = _described(tool)
    reason = impossible(json.dumps(schema, default=str))
    if reason is not None:
        raise ConfigurationError(f"the tool {tool.name!r} can never be called: {reason}")
    return schema


def _described(tool: Tool) -> dict[str, Any]:
    described: dict[str, Any] = tool.format_as_litellm_function_call()["function"]["parameters"]
    if not tool.has_kwargs:
        return closed_schema(described)
    # DSPy treats the name of "**others" as one more argument, which is required.
    others = {
        name
        for name, parameter in inspect.signature(tool.func).parameters.items()
        if parameter.kind is inspect.Parameter.VAR_KEYWORD
    }
    properties = {
        name: schema
        for name, schema in described.get("properties", {}).items()
        if name not in others
    }
    required = [name for name in described.get("required", ()) if name not in others]
    return {**described, "properties": properties, "required": required}
