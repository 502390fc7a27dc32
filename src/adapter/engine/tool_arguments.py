"""Calls of functions whose arguments follow our own grammar of their schemas.

llama.cpp constrains arguments by its own conversion of schemas, which leaves out the keywords that
it does not know. To replace that part, this module renders the conversation with functions whose
schemas are fixed values, and looks for these values in the grammar. So it finds where a format has
the arguments or, in formats with tags, each argument.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dspy.lm15 import Adaptation

import pyllama
from adapter.engine.call_ids import with_call_ids
from adapter.engine.call_or_answer import prefixed_rules
from adapter.errors import PromptError, TemplateAbortedError
from adapter.grammar.schema.json_schema import KEPT, contradiction, json_schema_grammar
from adapter.grammar.schema.merging import ImpossibleSchemaError, SchemaError
from adapter.grammar.schema.tagged_arguments import Argument, TaggedArguments, tagged_arguments

Render = Callable[..., pyllama.RenderedChat]
Tools = Sequence[Mapping[str, Any]]

_PLACE = "the arguments of function {} stand here"
_FIRST_NUMBER = 70_000_001
_INEXPRESSIBLE = "a grammar cannot express these, so a call may break them: check it"
_NO_PLACE = "this chat template's form of calls has no place for a grammar of arguments: check them"


@lru_cache(1024)
def impossible(schema: str) -> str | None:
    """Why no call can fit a function's schema, given as JSON; None if one can, or the schema has
    another fault, or a grammar may just not express what it allows.
    """
    try:
        json_schema_grammar(schema)
    except ImpossibleSchemaError as error:
        return None if contradiction(json.loads(schema)) is None else str(error)
    except SchemaError:
        return None
    return None


class BoundCalls:
    """Renders conversations whose calls have arguments that fit the functions' own schemas.

    Args:
        schemas: the closed schema of each function's arguments, as JSON.

    Attributes:
        adaptations: what the last rendering leaves out of the schemas.
    """

    def __init__(self, render: Render, schemas: Sequence[str]) -> None:
        self._render = render
        self._schemas = schemas
        self.adaptations: tuple[Adaptation, ...] = ()

    def __call__(self, **options: Any) -> pyllama.RenderedChat:
        """Render with the options of ``pyllama.ChatTemplate.apply``."""
        rendered = self._render(**options)
        tools: Tools = options.get("tools") or ()
        # With a JSON schema a format forbids calls, or leaves them to call_or_answer.
        if not tools or "json_schema" in options or options.get("tool_choice") == "none":
            return rendered
        if not rendered.grammar:
            self.adaptations = _unbound(tools).adaptations
            return rendered
        key = json.dumps([rendered.grammar, rendered.generation_prompt, options], default=str)
        bound = _bound.get(key)
        if bound is None:
            bound = self._as_json(options) or self._as_tags(options, rendered) or _unbound(tools)
            _bound.put(key, bound)
        self.adaptations = bound.adaptations
        made = replace(
            rendered,
            grammar=_as_it_is_read(bound.grammar or rendered.grammar),
            parser=bound.parser or rendered.parser,
        )
        return with_call_ids(made, [tool["function"]["name"] for tool in tools])

    def _probed(self, options: Mapping[str, Any], tools: Tools) -> pyllama.RenderedChat | None:
        """The conversation with other functions, if it can be rendered so."""
        try:
            return self._render(**{**options, "tools": list(tools)})
        except (pyllama.ChatTemplateAborted, TemplateAbortedError):
            raise  # a failure for want of memory, say, must not be cached as a result
        except (pyllama.ChatTemplateError, PromptError):
            return None

    def _as_json(self, options: Mapping[str, Any]) -> _Bound | None:
        """The constraint of each function's arguments as one JSON text."""
        probes, grammars, adaptations = [], {}, []
        functions = zip(options["tools"], self._schemas, strict=True)
        for index, (tool, schema) in enumerate(functions):
            try:
                found = json_schema_grammar(schema)
            except ValueError as error:
                probes.append(tool)
                adaptations.append(_dropped(index, (str(error),), _INEXPRESSIBLE))
                continue
            place = _PLACE.format(index)
            probes.append(_with(tool, {"type": "object", "properties": {}, "const": place}))
            grammars[index] = found.gbnf
            if found.unchecked:
                adaptations.append(_dropped(index, found.unchecked, _INEXPRESSIBLE))
        probed = self._probed(options, probes)
        if probed is None:
            return None
        grammar, rules = probed.grammar, []
        for index, gbnf in grammars.items():
            literal = f'"\\"{_PLACE.format(index)}\\""'
            if literal not in grammar:
                return None
            grammar = grammar.replace(literal, f"arguments-{index}-root")
            rules.append(prefixed_rules(gbnf, f"arguments-{index}-"))
        return _Bound("\n".join([grammar.rstrip("\n"), *rules]), None, tuple(adaptations))

    def _as_tags(self, options: Mapping[str, Any], rendered: pyllama.RenderedChat) -> _Bound | None:
        """The constraint of each argument between its tags."""
        signs = "<]" if "]<]" in rendered.grammar else "<"
        plan = _TagPlan(options["tools"], self._schemas, signs)
        probed = self._probed(options, plan.probes)
        grammar = None if probed is None else plan.filled(probed.grammar)
        read = None if grammar is None else self._probed(options, plan.readable)
        if probed is None or read is None:
            return None
        adaptations = [*plan.adaptations]
        free = self._probed(options, [_with(tool, _free(tool)) for tool in plan.probes])
        if free is not None and free.grammar == probed.grammar:
            # This format allows arguments in any order, and any number of them.
            adaptations += plan.required_adaptations()
        return _Bound(grammar, read.parser, tuple(adaptations))


_UNREAD_TEXT = re.compile(r'\("all\\n" until-\d+ tools \| tools\)')
"""Text before a call that must come, in functionary's format.

Behind it stands the call without the sign that its parser looks for, so both are read as text.
"""

_CALLS = re.compile(r"\(([\w-]+(?: \| [\w-]+)*)\) space (?=\")")


def _as_it_is_read(grammar: str) -> str:
    """The grammar without what its parser does not read: white space before the end of a call, and
    text before one that must come.

    In the formats of GLM and Spark no tag of the function stands behind its last argument. There
    the format's own grammar has white space, at which its parser fails.
    """
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines() if " ::= " in line)

    def ending(match: re.Match[str]) -> str:
        functions = [rules.get(name, '"') for name in match[1].split(" | ")]
        is_tight = not any(one.endswith('"') for one in functions)
        return f"({match[1]}) " if is_tight else match[0]

    tools = re.compile(r"^tool-calls? ::= .*$", re.MULTILINE)
    tight = tools.sub(lambda rule: _CALLS.sub(ending, rule[0]), grammar)
    return _UNREAD_TEXT.sub("tools", tight)


@dataclass(frozen=True)
class _Bound:
    """The grammar and the parser of calls, if they differ from the template's own.

    Attributes:
        adaptations: what they leave out of the functions' schemas.
    """

    grammar: str | None
    parser: pyllama.ChatParser | None
    adaptations: tuple[Adaptation, ...]


def _unbound(tools: Tools) -> _Bound:
    described = [index for index, tool in enumerate(tools) if _demands(_schema_of(tool))]
    adaptations = tuple(_dropped(index, ("parameters",), _NO_PLACE) for index in described)
    return _Bound(None, None, adaptations)


def _demands(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says more about arguments than that they are an object."""
    keywords = {key for key, value in schema.items() if value not in ({}, [])}
    return bool(keywords - {"type", "title", "description", "$schema", "additionalProperties"})


class _Kept:
    """Results for recent conversations: an agent asks with the same tools each time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: dict[str, _Bound] = {}

    def get(self, key: str) -> _Bound | None:
        """Return a result, if it is still cached."""
        with self._lock:
            found = self._kept.pop(key, None)
            if found is not None:
                self._kept[key] = found  # the next to be dropped is the first
            return found

    def put(self, key: str, bound: _Bound) -> None:
        """Cache a result, and drop the one that was used least recently."""
        with self._lock:
            self._kept[key] = bound
            while len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]


_bound = _Kept(32)


class _TagPlan:
    """Functions that stand for others in a grammar with tags, and what replaces their values.

    Attributes:
        probes: one function for each form of a function's arguments, with numbers for values.
        readable: the functions, with only as much of their schemas as a parser of tags reads.
    """

    def __init__(self, tools: Tools, schemas: Sequence[str], tag_signs: str) -> None:
        self.probes: list[Mapping[str, Any]] = []
        self.readable: list[Mapping[str, Any]] = []
        self.adaptations: list[Adaptation] = []
        self._requiring: set[int] = set()
        self._names: dict[str, str] = {}
        self._arguments: dict[int, Argument] = {}
        for index, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
            try:
                found = _tagged_arguments(schema, tag_signs)
            except ValueError as error:
                self.probes.append(tool)
                self.readable.append(tool)
                self.adaptations.append(_dropped(index, (str(error),), _INEXPRESSIBLE))
                continue
            if found.unchecked:
                self.adaptations.append(_dropped(index, found.unchecked, _INEXPRESSIBLE))
            self._add(index, tool, found)

    def _add(self, index: int, tool: Mapping[str, Any], found: TaggedArguments) -> None:
        readable: dict[str, Any] = {}
        for form, arguments in enumerate(found.forms):
            name = f"function_{index}_{form}_probe"
            self._names[name] = tool["function"]["name"]
            properties: dict[str, Any] = {}
            for argument in arguments:
                if argument.gbnf is None:
                    properties[argument.name] = {"type": "string", "description": ""}
                else:
                    number = _FIRST_NUMBER + len(self._arguments)
                    self._arguments[number] = argument
                    properties[argument.name] = {
                        "type": "integer", "const": number, "description": ""
                    }  # fmt: skip
                kind = "string" if argument.is_text else "integer"
                readable[argument.name] = {"type": kind, "description": ""}
            required = [argument.name for argument in arguments if argument.required]
            if required:
                self._requiring.add(index)
            schema = {"type": "object", "properties": properties, "required": required}
            probe = _with(tool, schema)
            self.probes.append({**probe, "function": {**probe["function"], "name": name}})
        self.readable.append(_with(tool, {"type": "object", "properties": readable}))

    def required_adaptations(self) -> list[Adaptation]:
        """The adaptations if a format does not ensure that required arguments are there."""
        return [_dropped(index, ("required",), _INEXPRESSIBLE) for index in sorted(self._requiring)]

    def filled(self, grammar: str) -> str | None:
        """The grammar with the functions' own names and values; None if one has no place."""
        rules = []
        for number, argument in self._arguments.items():
            assert argument.gbnf is not None
            literal, prefix = f'"{number}"', f"argument-{number - _FIRST_NUMBER}-"
            if literal not in grammar:
                return None
            if argument.is_text:
                grammar = _as_string(grammar, literal)
            grammar = grammar.replace(literal, f"{prefix}root")
            rules.append(prefixed_rules(argument.gbnf, prefix))
        for probe, name in self._names.items():
            if probe not in grammar:
                return None
            grammar = grammar.replace(probe, json.dumps(name, ensure_ascii=False)[1:-1])
        return "\n".join([grammar.rstrip("\n"), *rules])


def _as_string(grammar: str, literal: str) -> str:
    """Mark a value as a string in the tag before it, in formats whose tags do so."""
    rule = re.search(rf"^([a-zA-Z0-9-]+) ::= {literal}$", grammar, re.MULTILINE)
    if rule is None:
        return grammar
    before = rf'string=\\"false\\">"\) (?={re.escape(rule[1])}\b)'
    return re.sub(before, lambda found: found[0].replace("false", "true"), grammar)


def _schema_of(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = tool["function"].get("parameters") or {}
    return schema


def _with(tool: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**tool, "function": {**tool["function"], "parameters": schema}}


def _free(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _schema_of(tool).items() if key != "required"}


def closed_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An object's schema without further properties, unless it mentions them."""
    closed = _without_others(schema)
    for keyword in ("anyOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and not _SPEAK & schema.keys() - {keyword}:
            closed[keyword] = [
                _without_others(option) if isinstance(option, Mapping) else option
                for option in options
            ]
    if schema.get("type") == "object":
        return closed
    definitions: dict[str, Any] = {
        key: closed.pop(key) for key in ("$defs", "definitions") if key in closed
    }
    return {**definitions, "allOf": [closed, {"type": "object"}]} if closed else {"type": "object"}


_SPEAK = {"properties", "additionalProperties", "patternProperties", "propertyNames", "$ref",
          "allOf", "anyOf", "oneOf", "if"}  # fmt: skip


def _without_others(schema: Mapping[str, Any]) -> dict[str, Any]:
    speaks = _SPEAK & schema.keys() != {"properties"}
    return dict(schema) if speaks else {**schema, "additionalProperties": False}


_tagged_arguments = lru_cache(KEPT)(
    lambda schema, tag_signs: tagged_arguments(json.loads(schema), tag_signs)
)


def _dropped(index: int, asked: tuple[str, ...], reason: str) -> Adaptation:
    return Adaptation(f"tools[{index}].parameters", "dropped", reason, asked=asked)
