"""The values of a type as expressions: bare words, JSON, or free text."""

from __future__ import annotations

import contextlib
import copy
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_origin

import pydantic
from dspy.adapters.types import Code, Reasoning, ToolCalls, Type

from adapter.grammar.gbnf.automata import TooLarge
from adapter.grammar.gbnf.characters import NONE, Characters
from adapter.grammar.gbnf.free_text import LINE
from adapter.grammar.gbnf.rules import (
    EMPTY,
    MAX_REPEAT,
    Expression,
    Rules,
    any_text,
    choice,
    one_of,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema.annotations import annotated, annotation_schema
from adapter.grammar.schema.json_schema import SchemaText
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.merging import SchemaError, same
from adapter.grammar.schema.string_texts import StringTexts
from adapter.grammar.schema.whole_constraints import may_fit
from adapter.signatures.typed_values import TEMPORAL, allowed_values, union_members

Reader = Callable[[str, Any], Any]
"""Reads a text as a value of a type, or raises an error."""


TOOL_CALLS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tool_calls": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "args": {"type": "object"}},
                "required": ["name", "args"],
            },
        }
    },
    "required": ["tool_calls"],
}
"""How DSPy writes calls if the model has no format for them."""


@dataclass(frozen=True)
class Values:
    """How the values of a type are written.

    Attributes:
        expression: None for free text.
        is_json: it is JSON, which may begin on a line of its own.
        unchecked: what the expression does not check of the type.
    """

    expression: Expression | None
    is_json: bool = False
    unchecked: tuple[str, ...] = ()


FREE = Values(None)

_NONE = "None"


def values_of(
    annotation: Any,
    metadata: tuple[Any, ...],
    json_text: JsonText,
    read: Reader,
    *,
    code: Callable[[type[Code]], Expression] | None = None,
    bare_strings: bool = True,
    line: Characters = LINE,
    whole: Any = None,
) -> Values:
    """How values of a type are written so that `read` gets them back.

    Args:
        metadata: constraints of the field, as pydantic keeps them.
        code: how a block of code is written; None if any text will do.
        bare_strings: dates and times stand without quotes.
        line: the characters of a line of text.
        whole: the union that the type is a member of.
    """
    if annotation is Any or annotation is Reasoning or (annotation is str and not metadata):
        return FREE
    if annotation is str:
        return _constrained_text(metadata, line, json_text.rules)
    if is_dspy_type(annotation, Code):
        return FREE if code is None else Values(code(annotation))
    if annotation is type(None):
        return Values(sequence(_NONE))
    if annotation is bool and not metadata:
        return Values(choice(["True", "False"]))
    if allowed := allowed_values(annotation):
        reading = annotation if whole is None else whole
        return _options(allowed, metadata, reading, json_text, read, line)
    if members := union_members(annotation):
        if type(None) in members and not _is_read(_NONE, annotation, metadata, read):
            members = tuple(one for one in members if one is not type(None))
        metadata = of_members(metadata)
        members = members_that_may_fit(members, metadata)
        found = [
            values_of(
                member,
                () if member is type(None) else metadata,
                json_text,
                read,
                code=code,
                bare_strings=bare_strings,
                line=line,
                whole=annotation if whole is None else whole,
            )
            for member in members
        ]
        expressions = [one.expression for one in found if one.expression is not None]
        unchecked = tuple(what for one in found for what in one.unchecked)
        if len(expressions) < len(found):
            return Values(None, unchecked=unchecked)
        return Values(choice(expressions), all(one.is_json for one in found), unchecked)
    try:
        if annotation is ToolCalls:
            schema = TOOL_CALLS
        elif is_dspy_type(annotation, Type):
            return Values(None, unchecked=("a form of its own",))
        else:
            schema = annotation_schema(annotation, metadata)
        if annotation in TEMPORAL and bare_strings:
            texts = StringTexts(json_text.rules, one_of)
            texts.add_format(
                schema["format"], schema.get("formatMinimum"), schema.get("formatMaximum")
            )
            unsaid = (*schema.get("x-unchecked", ()), *texts.unchecked)
            return Values(texts.expression(), unchecked=unsaid)
        text = SchemaText(json_text, schema)
        return Values(text.root(), schema.get("type") not in ("integer", "number"), text.unchecked)
    except SchemaError as reason:
        return Values(None, unchecked=(str(reason),))


def of_members(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    """The constraints of a union that are those of its members: all but how it is read."""
    found = []
    for constraint in metadata:
        given = getattr(constraint, "__dict__", {})
        if "union_mode" not in given:
            found.append(constraint)
        elif len(given) > 1:  # pydantic keeps several constraints in one object
            others = copy.copy(constraint)
            del others.union_mode
            found.append(others)
    return tuple(found)


def members_that_may_fit(members: tuple[Any, ...], metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    """The members of a union of whose values its constraints can be checked, or all of them."""
    fitting = [one for one in members if one is type(None) or may_fit(annotated(one, metadata))]
    return tuple(fitting) if any(one is not type(None) for one in fitting) else members


def is_dspy_type(annotation: Any, kind: type[Type]) -> bool:
    """Whether a type is one of DSPy's own."""
    # Python 3.10 takes list[int] for a class. Only its origin shows what it is.
    is_class = get_origin(annotation) is None and isinstance(annotation, type)
    return is_class and issubclass(annotation, kind)


def is_of_calls(annotation: Any) -> bool:
    """Whether a field holds calls of tools, or perhaps none."""
    members = [one for one in union_members(annotation) if one is not type(None)]
    return (members or [annotation]) == [ToolCalls]


def _options(
    allowed: list[Any],
    metadata: tuple[Any, ...],
    annotation: Any,
    json_text: JsonText,
    read: Reader,
    line: Characters,
) -> Values:
    """The words of a Literal or Enum as shown in the prompt, if each is read back as its value."""
    texts = []
    names = member_names(annotation)
    fits = pydantic.TypeAdapter(annotated(annotation, metadata)).validate_python
    for value in allowed:
        candidates = [str(value)]
        with contextlib.suppress(TypeError, ValueError):  # JSON has no such value
            candidates.append(json_text.written(value))
        # DSPy's own adapters read values that are not strings by their names.
        candidates += [name for name, member in names.items() if same(member, value)]
        for text in candidates:
            if not text or text != text.strip() or any(one not in line for one in text):
                continue
            try:
                fits(read(text, annotation))
            except Exception:  # a validator of the user's may raise anything
                continue
            texts.append(text)
            break
    return Values(any_text(texts)) if texts else Values(None, unchecked=("its values",))


def _is_read(text: str, annotation: Any, metadata: tuple[Any, ...], read: Reader) -> bool:
    """Whether a text is read as a value that its field allows."""
    try:
        pydantic.TypeAdapter(annotated(annotation, metadata)).validate_python(
            read(text, annotation)
        )
    except Exception:  # a validator of the user's may raise anything
        return False
    return True


def member_names(annotation: Any) -> dict[str, Any]:
    """The values of an Enum, or of those in a union, by the names of their members."""
    found: dict[str, Any] = {}
    for kind in union_members(annotation) or (annotation,):
        if isinstance(kind, enum.EnumMeta):
            members: list[Any] = list(kind)
            found |= {member.name: member.value for member in members}
    return found


def _constrained_text(metadata: tuple[Any, ...], line_of: Characters, rules: Rules) -> Values:
    """One line that fits a str's constraints, without space around it, which is not read."""
    try:
        schema = annotation_schema(str, metadata)
    except SchemaError:
        return FREE
    unchecked = list(schema.get("x-unchecked", ()))
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    kind = schema.get("format")
    if "pattern" in schema or kind is not None:
        entities = {sign: one for sign, one in _ENTITIES.items() if sign not in line_of}

        def spelled(characters: Characters) -> Expression:
            escaped = [one for sign, one in entities.items() if sign in characters]
            return choice([one_of(characters & line_of), *escaped])

        texts = StringTexts(rules, spelled)
        if kind is not None:
            texts.add_format(kind)
        if "pattern" in schema:
            texts.add_pattern(schema["pattern"])
        visible = one_of(~SPACES)
        texts.add("no space around it", optional(sequence(visible, optional(_ENDING_VISIBLY))))
        try:
            expression = texts.expression(least, most)
        except TooLarge:
            expression = None
        if expression is not None and not rules.is_possible(expression):
            return Values(None, unchecked=(*unchecked, _NOT_ON_A_LINE))
        return Values(expression, unchecked=(*unchecked, *texts.unchecked))
    if most == 0:
        return Values(EMPTY, unchecked=tuple(unchecked))
    if (most is None and least < 2) or least > MAX_REPEAT:
        return FREE
    visible = one_of(line_of - SPACES)
    inner_most = None if most is None or most > MAX_REPEAT else max(0, most - 2)
    if most == 1:
        line = visible
    elif least < 2:
        line = sequence(
            visible, optional(sequence(repeat(one_of(line_of), 0, inner_most), visible))
        )
    else:
        line = sequence(visible, repeat(one_of(line_of), least - 2, inner_most), visible)
    return Values(optional(line) if least == 0 else line, unchecked=tuple(unchecked))


_ENTITIES = {"<": "&lt;", "&": "&amp;", ">": "&gt;"}

_NOT_ON_A_LINE = "constraints that no single line of text without space around it fits"

SPACES = Characters.of(
    "\t ", (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F),
    (0x3000, 0x3000),
)  # fmt: skip
"""What str.strip() takes away of a line."""

_ENDING_VISIBLY = sequence(repeat(one_of(~NONE)), one_of(~SPACES))
