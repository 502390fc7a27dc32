"""The arguments of a function, each between tags: strings as they are, the rest as JSON.

The format determines the order, the tags, and which arguments may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.free_text import LINE
from adapter.grammar.gbnf.rules import Expression, Rules, one_of
from adapter.grammar.schema import merging
from adapter.grammar.schema.json_schema import SchemaText
from adapter.grammar.schema.json_text import JsonText, characters
from adapter.grammar.schema.merging import Schema, SchemaError

MAX_FORMS = 16
"""The most forms of one function's arguments, if its schema has alternatives."""

_SAID_BY_TAGS = {"type", "properties", "required", "additionalProperties", "maxProperties"}


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        is_text: it is written as it stands, not as JSON.
        gbnf: the grammar of its value; None for any text.
    """

    name: str
    required: bool
    is_text: bool
    gbnf: str | None


@dataclass(frozen=True)
class TaggedArguments:
    """The arguments of a function, in each form that its schema allows.

    Attributes:
        unchecked: the parts of the schema that must be checked afterwards.
    """

    forms: tuple[tuple[Argument, ...], ...]
    unchecked: tuple[str, ...]


def tagged_arguments(document: Mapping[str, Any], tag_signs: str) -> TaggedArguments:
    """The arguments that a function's schema describes.

    Args:
        tag_signs: characters that begin a tag. No constrained text may contain them.

    Raises:
        SchemaError: nothing fits, or no grammar can follow the schema.
    """
    return _Arguments(document, LINE - Characters.of(tag_signs)).made()


class _Arguments:
    def __init__(self, document: Mapping[str, Any], line: Characters) -> None:
        self._document = document
        self._line = line
        self._unchecked: dict[str, None] = {}

    def made(self) -> TaggedArguments:
        whole = SchemaText(JsonText(Rules()), self._document)
        forms = []
        for plain in whole.alternatives({"allOf": [dict(self._document), {"type": "object"}]}):
            form = self._form(plain)
            if form is not None:
                forms.append(form)
        self._unchecked |= dict.fromkeys(whole.unchecked)
        if not forms or len(forms) > MAX_FORMS:
            raise SchemaError(f"its arguments have {len(forms)} forms, and not 1 to {MAX_FORMS}")
        kinds: dict[str, bool] = {}
        for argument in (argument for form in forms for argument in form):
            if kinds.setdefault(argument.name, argument.is_text) != argument.is_text:
                raise SchemaError(f"{argument.name} is a string in some forms only")
        return TaggedArguments(tuple(forms), tuple(self._unchecked))

    def _form(self, plain: Schema) -> tuple[Argument, ...] | None:
        """The arguments of one alternative; None if it allows none."""
        if "object" not in (merging.types_of(plain) or ()):
            return None
        declared: dict[str, Any] = plain.get("properties", {})
        required: list[str] = plain.get("required", [])
        unsaid = set(plain) - _SAID_BY_TAGS
        if plain.get("minProperties", 0) <= len(required):
            unsaid -= {"minProperties"}
        self._unchecked |= dict.fromkeys(sorted(unsaid))
        arguments = []
        for name in dict.fromkeys([*declared, *required]):
            argument = self._argument(name, declared.get(name, True), required=name in required)
            if argument is not None:
                arguments.append(argument)
            elif name in required:
                return None
        most = plain.get("maxProperties")
        if most is not None:
            must = sum(argument.required for argument in arguments)
            if must > most:
                return None
            room = most - must
            optional = [argument for argument in arguments if not argument.required][:room]
            arguments = [one for one in arguments if one.required or one in optional]
        return tuple(arguments)

    def _argument(self, name: str, schema: Any, *, required: bool) -> Argument | None:
        probe = SchemaText(JsonText(Rules()), self._document)
        plains = probe.alternatives(schema)
        kinds = [merging.types_of(plain) for plain in plains]
        is_text = any(map(_may_be_text, plains))
        if is_text and all(
            kind is not None and "string" in kind and set(plain) == {"type"}
            for kind, plain in zip(kinds, plains, strict=True)
        ):
            return Argument(name, required, True, None)
        rules = Rules()
        json_text = _PlainText(rules, self._line) if is_text else JsonText(rules)
        text = SchemaText(json_text, self._document)
        schemas = [schema, {"type": "string"}] if is_text else [schema]
        gbnf = rules.gbnf(text.rule("value", *schemas))
        if gbnf is None:
            return None
        self._unchecked |= dict.fromkeys(text.unchecked)
        return Argument(name, required, is_text, gbnf)


def _may_be_text(plain: Schema) -> bool:
    if "enum" in plain:
        return any(isinstance(value, str) for value in plain["enum"])
    kinds = merging.types_of(plain)
    return kinds is None or "string" in kinds


class _PlainText(JsonText):
    """Strings without quotes and escapes, on one line."""

    def __init__(self, rules: Rules, line: Characters) -> None:
        super().__init__(rules)
        self._line = line

    def spelled(self, characters: Characters) -> Expression:
        return one_of(characters & self._line)

    def string(self, least: int = 0, most: int | None = None) -> Expression:
        return characters(self.rules, one_of(self._line), least, most)

    def quoted(self, content: Expression) -> Expression:
        return content

    def written(self, value: Any) -> str:
        if not isinstance(value, str) or any(one not in self._line for one in value):
            raise ValueError("it cannot be written on one line")
        return value
