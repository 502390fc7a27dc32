"""A signature and its values as short chat messages, made for small models.

The system message holds the instructions and the form of the answer. Values, those of the
demonstrations too, are lines of `field: value` (adapter.field_lines): every token spent on form is
one that a small model must read and imitate.
"""

from __future__ import annotations

import datetime
import inspect
import json
from typing import Any, get_args, get_origin

import pydantic
from dspy.adapters.types import Code, Reasoning, Type
from dspy.signatures import Signature
from pydantic.fields import FieldInfo

from adapter.grammar.values import is_dspy_type
from adapter.typed_values import allowed_values, union_members

_PLAIN_FORMS: dict[object, str] = {
    str: "text",
    Any: "text",
    Reasoning: "text",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    datetime.date: "a date, as YYYY-MM-DD",
    datetime.datetime: "a date and time, as YYYY-MM-DDTHH:MM:SS",
}


def system_message(signature: type[Signature]) -> str:
    """Return the instructions, what is known about the inputs, and the form of the answer."""
    paragraphs = [inspect.cleandoc(signature.instructions)]
    described = [
        f"{name}: {description}"
        for name, field in signature.input_fields.items()
        if (description := _description(name, field))
    ]
    if described:
        paragraphs.append("You are given:\n" + "\n".join(described))
    answer = [
        f"{name}: ({_output_form(name, field)})" for name, field in signature.output_fields.items()
    ]
    paragraphs.append("Answer in this form:\n" + "\n".join(answer))
    return "\n\n".join(paragraphs)


def describe_form(annotation: Any) -> str:
    """Say in words how a value of a type is written.

    Simple types get a phrase, a dspy type its own description, anything else its JSON schema.
    """
    if annotation in _PLAIN_FORMS:
        return _PLAIN_FORMS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if allowed := allowed_values(annotation):
        return "one of: " + ", ".join(str(value) for value in allowed)
    if members := union_members(annotation):
        # None comes last, whatever its place: it is what remains when nothing else fits.
        choices = [describe_form(choice) for choice in members if choice is not type(None)]
        return " or ".join(choices + ["None"] * (type(None) in members))
    if origin is list and arguments and _has_phrase(arguments[0]):
        return f"a JSON list, each item {describe_form(arguments[0])}"
    if (origin or annotation) is dict:
        if arguments[1:] in ((), (Any,)):
            return "a JSON object"
        if _has_phrase(arguments[1]):
            return f"a JSON object, each value {describe_form(arguments[1])}"
    if is_dspy_type(annotation, Code):
        return f"{annotation.language} code in a ```{annotation.language.lower()} block"
    if is_dspy_type(annotation, Type) and (own_words := annotation.description()):
        return str(own_words)
    return "JSON with this schema: " + json.dumps(_schema(annotation), ensure_ascii=False)


def _has_phrase(annotation: Any) -> bool:
    return annotation in _PLAIN_FORMS or bool(allowed_values(annotation))


def _output_form(name: str, field: FieldInfo) -> str:
    form = describe_form(field.annotation)
    description = _description(name, field)
    if not description:
        return form
    return description if form == "text" else f"{description}; {form}"


def _description(name: str, field: FieldInfo) -> str:
    """Return what the signature's author wrote about a field, and its constraints."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)  # dspy's fields always keep their description there
    description = extra.get("desc") or ""
    if description == f"${{{name}}}":  # dspy's placeholder for "nothing said"
        description = ""
    return "; ".join(str(part) for part in (description, extra.get("constraints")) if part)


def _schema(annotation: Any) -> object:
    """Return a type's JSON schema without the titles, which only repeat the names."""

    def untitled(node: object) -> object:
        if isinstance(node, dict):
            return {
                key: untitled(value)
                for key, value in node.items()
                if not (key == "title" and isinstance(value, str))
            }
        if isinstance(node, list):
            return [untitled(item) for item in node]
        return node

    return untitled(pydantic.TypeAdapter(annotation).json_schema())
