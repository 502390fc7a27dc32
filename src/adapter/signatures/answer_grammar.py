"""The grammar of an answer: a signature's output fields in the form that an adapter reads."""

from __future__ import annotations

import contextlib
import datetime
import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Union

import pydantic
from dspy.adapters.types import Code, Type
from dspy.signatures import Signature

from adapter.errors import ConfigurationError
from adapter.grammar.gbnf.characters import NONE, PRINTABLE, Characters
from adapter.grammar.gbnf.field_places import place_of_field, with_field_names
from adapter.grammar.gbnf.free_text import LINE, Marker, case_spellings, line_without
from adapter.grammar.gbnf.rules import (
    EMPTY,
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
from adapter.grammar.schema.json_schema import KEPT, SchemaText
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.merging import SchemaError, same
from adapter.signatures.impossible_fields import require_possible
from adapter.signatures.typed_values import (
    allowed_values,
    dspy_value,
    typed_value,
    union_members,
)
from adapter.signatures.values import (
    SPACES,
    Reader,
    Values,
    is_dspy_type,
    member_names,
    members_that_may_fit,
    of_members,
    values_of,
)


@dataclass(frozen=True)
class Field:
    """An output field: its name, its type, and its constraints as pydantic keeps them.

    Attributes:
        schema: the JSON schema of its values, as JSON, if more is known than the type says.
        paragraph: whether its free text ends at a blank line.
        below: whether its free text begins on the line below its name.
        characters: the most characters of its free text of one line; None for no limit.
        required: whether its free text must have something visible.
        unwritten: texts that no free text begins with, such as a placeholder in the prompt.
        by_value: JSON schemas of its values, as JSON, by the value of the field before it.
    """

    name: str
    annotation: Any
    metadata: tuple[Any, ...]
    schema: str | None = None
    paragraph: bool = False
    below: bool = False
    characters: int | None = None
    required: bool = False
    unwritten: tuple[str, ...] = ()
    by_value: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AnswerGrammar:
    """A grammar in GBNF.

    Attributes:
        names: the fields, in their order.
        unchecked: what the grammar does not check of the fields' types, by field.
        last_text: what the last field begins with, if it is free text, which may end anywhere.
    """

    gbnf: str
    names: tuple[str, ...]
    unchecked: tuple[tuple[str, tuple[str, ...]], ...]
    last_text: str | None


FieldValues = list[tuple[str, Values]]


@dataclass(frozen=True)
class Form:
    """The form in which an adapter has the fields of an answer.

    Attributes:
        write: makes the whole, and each field's values.
        opening: what a field begins with, if its text may end with the answer; None if fields are
            closed.
    """

    write: Callable[[Rules, tuple[Field, ...]], tuple[Expression, FieldValues]]
    opening: Callable[[str], str] | None = None


def answer_grammar(
    signature: type[Signature], form: Form, known: Mapping[str, Mapping[str, Any]] | None = None
) -> AnswerGrammar | None:
    """The grammar of a signature's answers; None if there is nothing to answer.

    It is cached: the same fields in the same form are looked up.

    Args:
        known: attributes of Field for fields of which more is known than their types say.
    """
    fields = tuple(
        Field(name, field.annotation, tuple(field.metadata), **(known or {}).get(name, {}))
        for name, field in signature.output_fields.items()
    )
    if not fields:
        return None
    today = datetime.date.today()  # noqa: DTZ011 - as pydantic compares
    try:
        return _kept(fields, form, today)
    except TypeError:  # a constraint that has no hash
        return _made(fields, form, today)


def _made(fields: tuple[Field, ...], form: Form, _today: datetime.date) -> AnswerGrammar | None:
    """The grammar of this day: dates may have to be in the past or in the future.

    Raises:
        ConfigurationError: a field's constraints contradict each other, or leave no value that can
            be written.
    """
    for field in fields:
        if field.schema is None:
            require_possible(field.name, field.annotation, field.metadata)
    rules = Rules()
    whole, values = form.write(rules, fields)
    gbnf = rules.gbnf(whole)
    if gbnf is None:
        for name, one in values:
            if one.expression is not None and not rules.is_possible(one.expression):
                raise ConfigurationError(
                    f"no value that can be written fits the output field {name!r}; change its type "
                    "or its constraints"
                )
        return None
    unchecked = tuple((name, one.unchecked) for name, one in values if one.unchecked)
    last, value = values[-1]
    ends_in_text = form.opening is not None and value.expression is None
    names = tuple(field.name for field in fields)
    gbnf = with_field_names(gbnf, names)
    return AnswerGrammar(gbnf, names, unchecked, form.opening(last) if ends_in_text else None)  # type: ignore[misc]


_kept = lru_cache(KEPT)(_made)


# LlamaCppAdapter: `field: value` lines.


def _field_lines(rules: Rules, fields: tuple[Field, ...]) -> tuple[Expression, FieldValues]:
    """`field: value` at the start of a line, as adapter.signatures.field_markers reads it."""
    fence = Marker(_INDENTATION, "```")
    markers = [_field_marker(field.name) for field in fields]
    # A code block is closed. It contains no marker, but one may follow it.
    in_block = line_without(rules, (fence,), may_be_empty=True)
    fence_line = sequence(repeat(one_of(_INDENTATION)), "```", repeat(one_of(LINE)))
    block = sequence(fence_line, repeat(sequence("\n", in_block)), "\n", fence_line)
    plain = line_without(rules, (*markers, fence), may_be_empty=False)

    def text(field: Field, *, is_last: bool) -> Expression:
        key = ("text", field.paragraph, field.below, field.required, field.unwritten)
        body = rules.add("text", key, lambda: text_body(field, field.paragraph))
        # The blank line at the end of the text, if no marker of another field follows.
        return sequence(body, optional("\n\n")) if field.paragraph and is_last else body

    def text_body(field: Field, paragraph: bool) -> Expression:
        never = [Marker(_INDENTATION, one) for one in field.unwritten]
        if field.required:
            never += [Marker(NONE, " "), Marker(NONE, "\t")]
        first = line_without(rules, tuple(never), may_be_empty=not field.required)
        first_below = line_without(rules, (*markers, fence, *never), may_be_empty=False)
        next_line = sequence(repeat("\n", 1, 1 if paragraph else 2), choice([plain, block]))
        breaks = "\n" if field.below else repeat("\n", 1, 2)
        begin = below = sequence(breaks, choice([first_below, block]))
        if not field.below:
            begin = sequence(" ", first)
            if not (paragraph and field.required):  # this one begins on the line of its marker
                begin = choice([begin, below])
        whole = sequence(begin, repeat(next_line))
        return whole if field.required else optional(whole)

    def code(kind: type[Code]) -> Expression:
        # On a line of its own, where FieldMarkers recognises a block.
        language = f"\n```{kind.language.lower()}"
        return sequence(language, repeat(sequence("\n", in_block)), "\n```")

    json_text = JsonText(rules)
    whole: list[Expression | str] = []
    values = []
    space = one_of(Characters.of(" \n"))
    for field in fields:
        found = _of_schema(field, json_text) or values_of(
            field.annotation, field.metadata, json_text, _as_written, code=code
        )
        values.append((field.name, found))
        value: Expression
        if found.expression is None and field.characters is not None:
            visible = one_of(LINE - _INDENTATION)
            value = sequence(" ", visible, repeat(one_of(LINE), 0, field.characters - 1))
        elif found.expression is None:
            value = text(field, is_last=field is fields[-1])
        elif is_dspy_type(field.annotation, Code):
            value = found.expression
        else:
            value = sequence(space if found.is_json else sequence(" "), found.expression)
        begin = sequence(repeat("\n", 1, 2) if whole else EMPTY, f"{field.name}:")
        if field.by_value:
            # The field before it is written together with this one.
            number = len(values)
            alternatives = []
            for one, schema in field.by_value:
                arguments = sequence(space, SchemaText(json_text, json.loads(schema)).root())
                before = place_of_field(rules, number - 1, sequence(f" {one}"), one)
                alternatives.append(
                    sequence(before, begin, place_of_field(rules, number, arguments, one))
                )
            whole[-1] = choice(alternatives)
        else:
            whole += [begin, place_of_field(rules, len(values), value)]
    return sequence(*whole), values


_as_written = partial(typed_value, as_written=True)
_INDENTATION = Characters.of(" \t")
_LINE_SIGNS = Characters.of(" \t#>-*+•`_.)0123456789")


def _field_marker(name: str) -> Marker:
    """A field's marker, with more signs around the name than make it one."""

    def spellings(letter: str) -> str:
        return " _-" if letter == "_" else case_spellings(letter)

    return Marker(
        _LINE_SIGNS,
        name.lstrip("_") or name,  # signs before it
        spellings,
        after=Characters.of("*_` \t"),
        ends=Characters.of(":\uff1a"),
    )


# DSPy's adapters.


def _chat(rules: Rules, fields: tuple[Field, ...]) -> tuple[Expression, FieldValues]:
    """`[[ ## field ## ]]` on a line of its own, as dspy.ChatAdapter reads it."""
    line = line_without(rules, (Marker(SPACES, "[[ ## "),), may_be_empty=False)
    text = optional(sequence(line, repeat(sequence(repeat("\n", 1, 2), line))))
    json_text = JsonText(rules)
    whole: list[Expression | str] = []
    values = []
    for field in fields:
        found = _dspy_values(field, json_text, read=_chat_value)
        values.append((field.name, found))
        value = text if found.expression is None else found.expression
        value = place_of_field(rules, len(values), value)
        whole += [f"[[ ## {field.name} ## ]]\n", value, repeat("\n", 1, 2)]
    return sequence(*whole, "[[ ## completed ## ]]"), values


def _chat_value(text: str, annotation: Any) -> Any:
    """A value that is no marker."""
    if text.startswith("[[ ## "):
        raise ValueError(f"{text!r} looks like a marker")
    return dspy_value(text, annotation)


def _xml(rules: Rules, fields: tuple[Field, ...]) -> tuple[Expression, FieldValues]:
    """`<field>` and `</field>`, as dspy.XMLAdapter reads it; lists and objects as JSON."""
    special = Characters.of("<&>")
    character = choice([one_of(LINE - special), "&lt;", "&amp;", "&gt;"])
    visible = choice([one_of(LINE - special - SPACES), "&lt;", "&amp;", "&gt;"])
    line = sequence(repeat(one_of(SPACES)), visible, repeat(character))
    some_text = sequence(line, repeat(sequence(repeat("\n", 1, 2), line)))
    text = optional(some_text)
    json_text = JsonText(rules, PRINTABLE - special)
    whole: list[Expression | str] = []
    values = []
    for field in fields:
        found = _dspy_values(field, json_text, line=LINE - special)
        values.append((field.name, found))
        # DSPy reads an element without text as an object without fields.
        free = some_text if is_dspy_type(field.annotation, Type) else text
        value = free if found.expression is None else found.expression
        value = place_of_field(rules, len(values), value)
        begin = "\n\n" if whole else ""
        whole += [f"{begin}<{field.name}>\n", value, f"\n</{field.name}>"]
    return sequence(*whole), values


def _json(rules: Rules, fields: tuple[Field, ...]) -> tuple[Expression, FieldValues]:
    """One JSON object with all fields, as dspy.JSONAdapter reads it."""
    json_text = JsonText(rules)
    members: list[Expression] = []
    values = []
    for field in fields:
        found = _dspy_values(field, json_text, in_json=True)
        values.append((field.name, found))
        value = json_text.string() if found.expression is None else found.expression
        value = place_of_field(rules, len(values), value)
        key = sequence(json_text.written(field.name))
        members += [json_text.comma if members else EMPTY, json_text.member(key, value)]
    return json_text.object(sequence(*members)), values


def _dspy_values(
    field: Field,
    json_text: JsonText,
    *,
    in_json: bool = False,
    line: Characters = LINE,
    read: Reader = dspy_value,
) -> Values:
    """The form of a value that dspy_value reads back."""
    if field.schema is not None:
        return _of_schema(field, json_text) or Values(json_text.value, is_json=True)
    annotation: Any = field.annotation
    members = union_members(annotation)
    is_free = annotation is Any or (annotation is str and not field.metadata)
    if in_json and not is_free and not is_dspy_type(annotation, Type):
        values = _json_values(field, json_text)
        if str not in members or type(None) in members:
            return values
    elif str not in members or type(None) in members:
        return values_of(annotation, field.metadata, json_text, read, bare_strings=False, line=line)
    # parse_value reads the text of such a union as JSON if it can.
    metadata = of_members(field.metadata)
    fitting = members_that_may_fit(members, metadata)
    others = tuple(member for member in fitting if member is not str)
    found = [_text_in_union(metadata, json_text, in_json=in_json)] if str in fitting else []
    if others:
        rest: Any = Union.__getitem__(others)
        if in_json:
            values = _json_values(replace(field, annotation=rest, metadata=metadata), json_text)
        else:
            values = values_of(rest, metadata, json_text, read, bare_strings=False, line=line)
        found.insert(0, values)
    expressions = [one.expression for one in found if one.expression is not None]
    unchecked = tuple(what for one in found for what in one.unchecked)
    return replace(found[0], expression=choice(expressions), unchecked=unchecked)


def _text_in_union(metadata: tuple[Any, ...], json_text: JsonText, *, in_json: bool) -> Values:
    """A text in JSON, which in a JSON object is none that is read as JSON of its own."""
    try:
        schema = annotation_schema(str, metadata)
    except SchemaError as reason:
        return Values(json_text.string(), is_json=True, unchecked=(str(reason),))
    text = SchemaText(json_text, schema)
    if not in_json or "pattern" in schema:
        return Values(text.root(), is_json=True, unchecked=text.unchecked)
    least, most = schema.get("minLength", 1), schema.get("maxLength")
    rest = repeat(one_of(_WORD), max(0, least - 1), None if most is None else max(0, most - 1))
    word = json_text.quoted(sequence(one_of(_WORD_BEGIN), rest))
    return Values(word, is_json=True, unchecked=text.unchecked)


def _of_schema(field: Field, json_text: JsonText) -> Values | None:
    """Values of a field whose schema is given."""
    if field.schema is None:
        return None
    text = SchemaText(json_text, json.loads(field.schema))
    return Values(text.root(), is_json=True, unchecked=text.unchecked)


def _json_values(field: Field, json_text: JsonText) -> Values:
    annotation: Any = field.annotation
    if allowed_values(annotation):
        return _json_options(annotation, field.metadata, annotation, json_text)
    members = union_members(annotation)
    if any(allowed_values(member) for member in members):
        # A text in a union is read as JSON of its own if possible.
        metadata = of_members(field.metadata)
        found = [
            _json_options(member, field.metadata, annotation, json_text)
            if allowed_values(member)
            else _json_values(replace(field, annotation=member, metadata=metadata), json_text)
            for member in members_that_may_fit(members, metadata)
        ]
        expressions = [one.expression or json_text.value for one in found]
        unchecked = tuple(what for one in found for what in one.unchecked)
        return Values(choice(expressions), is_json=True, unchecked=unchecked)
    try:
        schema = annotation_schema(field.annotation, field.metadata)
        text = SchemaText(json_text, schema)
        return Values(text.root(), is_json=True, unchecked=text.unchecked)
    except SchemaError as reason:
        return Values(json_text.value, is_json=True, unchecked=(str(reason),))


def _json_options(
    annotation: Any, metadata: tuple[Any, ...], whole: Any, json_text: JsonText
) -> Values:
    """The values of a Literal or Enum as JSON, or the names of members, whichever DSPy reads."""
    fits = pydantic.TypeAdapter(annotated(whole, metadata)).validate_python
    names = member_names(annotation)
    texts = []
    for value in allowed_values(annotation):
        spellings = [value, *(name for name, one in names.items() if same(one, value))]
        if isinstance(value, enum.Enum):  # in a Literal
            spellings.append(str(value))
        for spelling in spellings:
            with contextlib.suppress(Exception):  # of a validator of the user's
                text = json_text.written(spelling)
                fits(dspy_value(json.loads(text), whole))
                texts.append(text)
                break
    if not texts:
        return Values(json_text.value, is_json=True, unchecked=("its values",))
    return Values(any_text(texts), is_json=True)


# Text that neither JSON nor Python reads as another value.
_WORD_BEGIN = Characters.of((0x41, 0x5A), (0x61, 0x7A)) - Characters.of("NnI")
_WORD = PRINTABLE - Characters.of("[](){}\"'\\`")

FIELD_LINES = Form(_field_lines, opening=lambda name: f"{name}:")
"""LlamaCppAdapter's form."""

CHAT = Form(_chat, opening=lambda name: f"[[ ## {name} ## ]]")
"""dspy.ChatAdapter's form."""

XML = Form(_xml)
"""dspy.XMLAdapter's form."""

JSON = Form(_json)
"""dspy.JSONAdapter's form."""
