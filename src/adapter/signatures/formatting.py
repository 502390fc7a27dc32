"""Writes a signature and its values as short chat messages for small models.

The system message holds the instructions and the form of the answer. Values, also of
demonstrations, are lines of `field: value` (field_lines.py): a small model must read and imitate
every token of the form.
"""

from __future__ import annotations

import datetime
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, get_args, get_origin

import pydantic
from dspy.adapters.types import Code, Reasoning, Type
from dspy.adapters.utils import annotation_allows_none
from dspy.signatures import Signature
from pydantic.fields import FieldInfo

from adapter.context_variables import assigned
from adapter.signatures.shapes import shape_of
from adapter.signatures.typed_values import allowed_values, union_members
from adapter.signatures.values import is_dspy_type, is_of_calls

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


MAX_LISTED = 50
"""How many values of a type are listed if all of them leave no room for an answer."""

_shortened: ContextVar[bool] = ContextVar("shortened", default=False)
_demonstrated: ContextVar[bool] = ContextVar("demonstrated", default=False)


def long_lists(signature: type[Signature]) -> list[str]:
    """Return the outputs that have more than MAX_LISTED values to choose from."""
    return [
        name
        for name, field in signature.output_fields.items()
        if _most_values(field.annotation) > MAX_LISTED
    ]


def shortened_lists() -> AbstractContextManager[None]:
    """Within a block, name only MAX_LISTED of a type's values, spread over all of them."""
    return assigned(_shortened, True)


def is_shortened() -> bool:
    """Whether this is within such a block."""
    return _shortened.get()


def _most_values(annotation: Any) -> int:
    """How many values of one kind a type's description would list."""
    parts = [*(union_members(annotation) or ()), *get_args(annotation)]
    inner = [_most_values(part) for part in parts if part is not annotation and _is_type(part)]
    return max([len(allowed_values(annotation) or ()), *inner])


def _is_type(part: Any) -> bool:
    return isinstance(part, type) or get_origin(part) is not None


def _listed(values: list[Any]) -> str:
    if not _shortened.get() or len(values) <= MAX_LISTED:
        return "one of: " + ", ".join(str(value) for value in values)
    some = (values[index * len(values) // MAX_LISTED] for index in range(MAX_LISTED))
    return f"one of {len(values)}, such as: " + ", ".join(map(str, some))


def system_message(signature: type[Signature]) -> str:
    """Return the instructions, the descriptions of the inputs, and the form of the answer."""
    paragraphs = [inspect.cleandoc(signature.instructions)]
    described = [
        f"{name}: {description}"
        for name, field in signature.input_fields.items()
        if (description := description_of(name, field))
    ]
    if described:
        paragraphs.append("You are given:\n" + "\n".join(described))
    answer = [
        f"{name}: {placeholder(name, field)}" for name, field in signature.output_fields.items()
    ]
    paragraphs.append("Answer in this form:\n" + "\n".join(answer))
    return "\n\n".join(paragraphs)


def demonstrated(by_demos: bool) -> AbstractContextManager[None]:
    """Record, for a block, whether demonstrations show the form of the answer."""
    return assigned(_demonstrated, by_demos)


_CALLS = '{"name": <name of the tool>, "args": {...}} or a list of calls'
"""One call first: a small model that begins a list goes on with calls that nobody asked for."""


def is_demonstrated() -> bool:
    """Whether demonstrations show the form of the answer in the prompt that is being written."""
    return _demonstrated.get()


def placeholder(name: str, field: FieldInfo) -> str:
    """The placeholder for an output's value in the form of the answer.

    Without demonstrations, small models follow `<name>` better than `(text)`, and an example of a
    JSON value better than its schema.
    """
    description = description_of(name, field)
    if is_demonstrated():
        return f"({_output_form(field.annotation, description)})"
    if is_of_calls(field.annotation):
        calls = f"{_CALLS} or null" if annotation_allows_none(field.annotation) else _CALLS
        return f"{calls} ({description})" if description else calls
    form = describe_form(field.annotation)
    has_shape = form.startswith(_BY_SCHEMA) or _is_plain_list(field.annotation)
    if has_shape and (shape := shape_of(_schema(field.annotation))):
        return f"{shape} ({description})" if description else shape
    if form == "text":
        return f"<{description or name}>"
    if field.annotation in (int, float):
        # Measured: with fewer words a small model copies the number instead of inventing one.
        return f"<{description}, a number>" if description else "<a number>"
    return f"<{description}; {form}>" if description else f"<{form}>"


_BRACKETS = (
    ("[", "]"),
    ("(", ")"),
    ("{", "}"),
)  # a model that may not write <name> writes [name] or [your name]
_BY_SCHEMA = "JSON with this schema: "
_FIRST_LETTERS = 3


def beginnings_of_placeholders(
    signature: type[Signature], demos: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Beginnings of a text that repeat a placeholder or imitate one.

    Without demonstrations that is `<`, unless the signature mentions markup. What a demonstration's
    text begins with is allowed.
    """
    found: dict[str, None] = {}
    if not demos and not _MARKUP.search(_words_of(signature)):
        found = {"<": None}
    with demonstrated(bool(demos)):
        texts = [placeholder(name, field) for name, field in signature.output_fields.items()]
        if not demos:
            names = [
                name
                for name, field in signature.output_fields.items()
                if describe_form(field.annotation) == "text"
            ]
            words = [*names, "your", "insert"] if names else []
            texts += [f"{opening}{word}{end}" for word in words for opening, end in _BRACKETS]
        for text in texts:
            word = re.match(r".\w*", text, re.DOTALL)
            is_long = word is not None and len(word[0]) > _FIRST_LETTERS
            beginning = text[: _FIRST_LETTERS + 1] if is_long else text
            if not any(beginning.startswith(one) for one in found):
                found[beginning] = None
    shown = [str(demo[name]).strip() for demo in demos for name in demo]
    return tuple(text for text in found if not any(one.startswith(text) for one in shown))


_MARKUP = re.compile(r"(?<![a-z])(html|xml|svg|jsx|tags?|markup|markdown|code)", re.IGNORECASE)


def _words_of(signature: type[Signature]) -> str:
    fields = signature.output_fields.items()
    described = [f"{name} {description_of(name, field)}" for name, field in fields]
    return " ".join([signature.instructions, *described])


def describe_form(annotation: Any) -> str:
    """Describe in words how a value of a type is written.

    Simple types get a phrase, a dspy type its own description, anything else its JSON schema.
    """
    if annotation in _PLAIN_FORMS:
        return _PLAIN_FORMS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if allowed := allowed_values(annotation):
        return _listed(allowed)
    if members := union_members(annotation):
        # None comes last, wherever it stands: it applies if nothing else fits.
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
    return _BY_SCHEMA + json.dumps(_schema(annotation), ensure_ascii=False)


def _is_plain_list(annotation: Any) -> bool:
    return get_origin(annotation) is list and get_args(annotation)[0] in _PLAIN_FORMS


def _has_phrase(annotation: Any) -> bool:
    return annotation in _PLAIN_FORMS or bool(allowed_values(annotation))


def _output_form(annotation: Any, description: str) -> str:
    form = describe_form(annotation)
    if not description:
        return form
    return description if form == "text" else f"{description}; {form}"


def description_of(name: str, field: FieldInfo) -> str:
    """Return what the signature's author wrote about a field, and its constraints."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)  # dspy's fields always keep their description there
    description = extra.get("desc") or ""
    if description == f"${{{name}}}":  # dspy's placeholder for "nothing said"
        description = ""
    return "; ".join(str(part) for part in (description, extra.get("constraints")) if part)


def _schema(annotation: Any) -> Any:
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
