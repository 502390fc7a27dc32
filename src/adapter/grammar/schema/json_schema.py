"""JSON schemas as expressions of a grammar.

llama.cpp's own converter is made to guide a model. It leaves out keywords that it does not know,
copies patterns into strings unchanged, and allows keys in other spellings. Here everything that
fits the expression is valid, and what a grammar cannot express is reported (see
`SchemaText.unchecked`).
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from adapter.grammar.collections_paused import collections_paused
from adapter.grammar.gbnf.automata import TooLarge
from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.rules import (
    EMPTY,
    IMPOSSIBLE,
    MAX_REPEAT,
    Expression,
    Rule,
    Rules,
    any_text,
    choice,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema import merging
from adapter.grammar.schema.alternatives import Alternatives
from adapter.grammar.schema.contradictions import first_contradiction
from adapter.grammar.schema.formats import format_expression
from adapter.grammar.schema.json_members import key_other_than
from adapter.grammar.schema.json_objects import ObjectText
from adapter.grammar.schema.json_text import MAX_CHARACTERS, HeldJsonText, JsonText
from adapter.grammar.schema.latitude import own_names, room_ahead
from adapter.grammar.schema.left_out import LeftOut
from adapter.grammar.schema.limits import Effort, require_short, too_deep
from adapter.grammar.schema.merging import ImpossibleSchemaError, Schema, SchemaError
from adapter.grammar.schema.number_texts import integer_text, number_text
from adapter.grammar.schema.once_each import once_each
from adapter.grammar.schema.schema_numbers import SchemaNumbers
from adapter.grammar.schema.string_texts import STRIPPED, StringTexts
from adapter.grammar.schema.widest import widest

_HINT = 40
"""The most characters of a rule's name."""

_NOT_EXPRESSED = {
    "object": ("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
    "array": ("contains", "unevaluatedItems"),
}
_ALL_TYPES = [kind for kind in merging.TYPES if kind != "integer"]
_ALONE = frozenset(("$ref", "anyOf", "oneOf"))
"""Keywords that are not merged with anything where a schema has nothing else."""

_EVERYWHERE = ("not", "if", "x-unchecked")


KEPT = 256
"""How many grammars are cached: a program uses the same few again and again."""


@dataclass(frozen=True)
class SchemaGrammar:
    """A schema's grammar in GBNF, and the keywords that must be checked after."""

    gbnf: str
    unchecked: tuple[str, ...]


class SchemaText:
    """The JSON texts that a schema describes, within the rules of a grammar.

    Attributes:
        unchecked: the keywords that the grammar leaves out. They must be checked after.

    Args:
        effort: counts the work on the schema.
        says_conditions: whether the grammar expresses conditions if it can. Otherwise they are left
            out.
        any_order: the keys of objects come in any order, unless their schema has "x-key-order":
            "schema".
    """

    def __init__(
        self,
        json_text: JsonText,
        document: Mapping[str, Any],
        *,
        any_order: bool = False,
        room: int = 0,
        effort: Effort | None = None,
        says_conditions: bool = True,
    ) -> None:
        self._json = json_text
        self._document = document
        self._identity = object()  # "$ref" means something else in another document
        self._effort = effort or Effort()
        self._within: SchemaText | None = None  # what strings hold
        self._numbers = SchemaNumbers(self._effort)
        self._left_out = LeftOut(self._effort)
        self._alternatives = Alternatives(
            document, self._effort, self._left_out.leave, says_conditions=says_conditions
        )
        merging.assertions(document)
        merging.require_no_other_base(document)
        if document.get("x-key-order") is not None:
            any_order = document["x-key-order"] == "any"
            room = 0
        self._objects = ObjectText(
            json_text,
            self._effort,
            schemas=weakref.proxy(self),  # no reference cycle: all is freed at once
            leave=self._left_out.leave,
            any_order=any_order,
            room=room,
        )

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What the grammar leaves out."""
        return tuple(self._left_out.all_of())

    def root(self, names: list[str] | None = None) -> Rule:
        """Texts that the whole document describes.

        Args:
            names: how an object may name its schema, in a member "$schema".

        Raises:
            SchemaError: it is not a schema, or cannot become a grammar.
        """
        try:
            named = {"x-schema-names": names} if names else {}
            return self.rule("answer", {**self._document, **named})
        except RecursionError:
            raise too_deep() from None

    def alternatives(self, *schemas: Any) -> list[Schema]:
        """Schemas without references and unions. Each value of the given ones fits one of these."""
        with self._effort:
            return self._alternatives.of(schemas)

    def rule(self, hint: str, *schemas: Any) -> Rule:
        """Texts that all of the schemas describe."""
        self._effort.spend(20)
        key = ("schema", self._identity, frozenset([self._numbers.of(one) for one in schemas]))
        self._left_out.refer(key)
        with self._effort:
            return self._json.rules.add(
                hint[:_HINT],
                key,
                lambda: self._left_out.making(key, lambda: self._body(hint[:_HINT], schemas)),
            )

    def key(self, hint: str, names: Any) -> Expression:
        """A key that a schema describes. A number or the like is put in quotes."""
        found = []
        for plain in self._alternatives.of([names]):
            kinds = merging.types_of(plain) or ["string"]
            if "enum" in plain or kinds == ["string"]:
                found.append(self._typed(hint, {**plain, "type": ["string"]}))
            elif set(kinds) <= {"integer", "number", "boolean"}:
                found.append(self._json.quoted(self._typed(hint, plain)))
            else:
                self._leave("propertyNames")
                found.append(self._json.string())
        return choice(found)

    def listed(self, schema: Any) -> list[str] | None:
        """The texts of all values of a schema, if these are few; otherwise None."""
        found: dict[str, None] = {}
        for plain in self._alternatives.of([schema]):
            values = merging.few_values(plain)
            if values is None:
                return None
            try:
                found |= dict.fromkeys(map(self._json.written, values))
            except ValueError:
                return None  # no JSON text stands for one of them
        return [*found]

    def _body(self, hint: str, schemas: tuple[Any, ...]) -> Expression:
        if len(schemas) == 1 and isinstance(schemas[0], dict) and not _ALONE.isdisjoint(schemas[0]):
            keywords = merging.assertions(schemas[0])
            [first, *others] = keywords or [""]
            if first == "$ref" and not others:
                return self.rule(hint, self._alternatives.resolved(keywords["$ref"]))
            if first in ("anyOf", "oneOf") and not others:
                options = merging.schemas_in(keywords, first)
                if first == "oneOf":
                    options = self._alternatives.exclusive(options)
                return choice(
                    self._preferred([(f"{hint}-{i}", option) for i, option in enumerate(options)])
                )
        plain = widest(self._alternatives.of(schemas))
        return choice(self._typed(hint, one) for one in plain)

    def _preferred(self, options: list[tuple[str, Any]]) -> list[Expression]:
        """The options, except those that are expressed only in part where others make up for them.

        These others are of the same types, or numbers in the place of strings.
        """
        found = []
        for hint, option in options:
            with self._left_out.aside() as part:
                rule = self.rule(hint, option)
            tells = any(not _is_private(what) for what in self._left_out.all_of(part))
            found.append((rule, option, part, tells))
        said: set[str] = set()
        for _, option, _, tells in found:
            said |= set() if tells else self._types(option)
        said |= {"string"} if "number" in said else set()
        said -= {"object", "array"}  # one kind of these says nothing of another
        kept = []
        for rule, option, part, tells in found:
            types = self._types(option)
            if not tells or not types or not types <= said:
                kept.append(rule)
                self._left_out.add(part)
        return [*kept]

    def _types(self, option: Any) -> set[str]:
        """The types that an option names itself. A union within it is not searched."""
        meant = self._alternatives.meant(option)
        if not isinstance(meant, dict):
            return set(_ALL_TYPES)
        plain = merging.assertions(meant)
        if "enum" in plain:
            return {merging.type_of(value) for value in plain["enum"]}
        kinds = merging.types_of(plain)
        if kinds is None:
            return set() if plain else set(_ALL_TYPES)
        return {*kinds, *(["integer"] if "number" in kinds else [])}

    def _leave(self, what: str) -> None:
        self._left_out.leave(what)

    # For one schema without references and unions

    def _typed(self, hint: str, schema: Schema) -> Expression:
        for keyword in _EVERYWHERE:
            if keyword in schema:
                if keyword == "not" and schema["not"] is True:
                    return IMPOSSIBLE
                if keyword == "if" and not ("then" in schema or "else" in schema):
                    continue
                for what in schema[keyword] if keyword == "x-unchecked" else (keyword,):
                    self._leave(what)
        if "enum" in schema:
            return self._enumerated(schema)
        types = merging.types_of(schema)
        others = schema.get("x-not-enum")
        if others is not None:
            types = _ALL_TYPES if types is None else types
        if types is None:
            return self._json.value
        options = []
        for kind in types:
            for keyword in _NOT_EXPRESSED.get(kind, ()):
                if keyword in schema:
                    self._leave(keyword)
            if others is None:
                options.append(getattr(self, f"_{kind}")(hint, schema))
            else:
                options.append(self._other_than(hint, kind, schema, others))
        return choice(options)

    def _other_than(self, hint: str, kind: str, schema: Schema, values: list[Any]) -> Expression:
        """What a schema describes of one type, except some values."""
        own = [one for one in values if merging.is_of(one, kind)]
        if kind == "boolean":
            return any_text(text for text in ("true", "false") if (text == "true") not in own)
        if kind == "null" and own:
            return IMPOSSIBLE
        if kind == "string" and own and not schema.keys() & merging.KEYWORDS_OF_TYPE["string"]:
            return key_other_than(self._json, own)
        if own:
            self._leave("not")
        described: Expression = getattr(self, f"_{kind}")(hint, schema)
        return described

    def _enumerated(self, schema: Schema) -> Expression:
        values = []
        others = {keyword: schema[keyword] for keyword in schema if keyword != "enum"}
        self._effort.spend(5 * len(schema["enum"]))
        for value in schema["enum"]:
            fits = merging.scalar_fits(value, others)
            if fits is None:
                self._leave("enum beside " + ", ".join(sorted(set(others) - {"type"})))
            if fits is not False:
                try:
                    values.append(self._json.written(value))
                except ValueError:
                    continue  # no JSON text stands for it
        return any_text(values)

    def _null(self, hint: str, schema: Schema) -> Expression:
        return sequence("null")

    def _boolean(self, hint: str, schema: Schema) -> Expression:
        return choice(["true", "false"])

    def _integer(self, hint: str, schema: Schema) -> Expression:
        return integer_text(self._json.rules, schema, self._leave)

    def _number(self, hint: str, schema: Schema) -> Expression:
        return number_text(self._json.rules, schema, self._leave)

    def _string(self, hint: str, schema: Schema) -> Expression:
        least, most = _counts(schema, "minLength", "maxLength")
        if most is not None and least > most:
            return IMPOSSIBLE
        if "x-json" in schema:
            return self._held(hint, schema)
        kind = schema.get("format")
        if kind is not None and format_expression(kind) is None:
            self._leave(f"format {kind}")
            kind = None
        patterns = schema.get("pattern", [])
        if patterns or kind is not None:
            content = self._content(schema, kind, patterns, least, most)
            if content is not None:
                return self._json.quoted(content)
        if most is not None and most > MAX_CHARACTERS:
            self._leave("maxLength")
            most = None
        return self._json.string(_repeated("minLength", least), most)

    def _held(self, hint: str, schema: Schema) -> Expression:
        """A string that holds JSON of another schema of the same document."""
        self._leave_given(schema, "minLength", "maxLength", "pattern", "format")
        if isinstance(self._json, HeldJsonText):
            self._leave("JSON in a string in a string")
            return self._json.string()
        if self._within is None:
            self._within = SchemaText(
                HeldJsonText(self._json.rules, self._json.raw), self._document, effort=self._effort
            )
        content = self._within.rule(hint, schema["x-json"])
        for what in self._within.unchecked:
            self._leave(what)
        return self._json.quoted(content)

    def _content(
        self,
        schema: Schema,
        kind: str | None,
        patterns: list[str],
        least: int,
        most: int | None,
    ) -> Expression | None:
        """The text of a string with a format and patterns; None if neither can be expressed."""
        texts = StringTexts(self._json.rules, self._json.spelled)
        if kind is not None:
            ends = [schema.get(end) for end in ("formatMinimum", "formatMaximum")]
            texts.add_format(kind, *(one if isinstance(one, str) else None for one in ends))
        for pattern in patterns:
            texts.add_pattern(pattern)
        if schema.get("x-stripped"):
            texts.add("strip_whitespace", STRIPPED)
        try:
            found = texts.expression(least, most)
        except TooLarge:
            raise SchemaError(
                f"minLength of {least} is more than the {MAX_REPEAT} a grammar can count"
            ) from None
        for what in texts.unchecked:
            self._leave(what)
        return found

    def _array(self, hint: str, schema: Schema) -> Expression:
        least, most = _counts(schema, "minItems", "maxItems")
        prefix = schema.get("prefixItems", [])
        rest = schema.get("items", not prefix or least > len(prefix))
        if rest is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        if "minItems" not in schema and prefix:
            least = len(prefix) if most is None else min(most, len(prefix))
        if most is not None and least > most:
            return IMPOSSIBLE
        if schema.get("uniqueItems") is True or schema.get("x-set"):
            listed = None if prefix or rest is False else self.listed(rest)
            texts = [sequence(text) for text in listed or ()]
            once = once_each(self._json.rules, hint, texts, self._json.comma, least, most)
            if listed is not None and once is not None:
                return self._json.array(once)
            if schema.get("uniqueItems") is True and (most is None or most > 1):
                self._leave("uniqueItems")
            elif least > 1:
                self._leave("minItems of a set")
        if most is not None and most > MAX_REPEAT:
            self._leave("maxItems")
            most = None
        _repeated("minItems", least)
        first = [self.rule(f"{hint}-{i}", schema) for i, schema in enumerate(prefix[:most])]
        items: Expression = EMPTY
        if rest is not False and (most is None or most > len(first)):
            item = self.rule(f"{hint}-item", rest)
            room = None if most is None else most - len(first)
            if first:
                items = repeat(sequence(self._json.comma, item), max(0, least - len(first)), room)
            else:
                more = repeat(
                    sequence(self._json.comma, item),
                    max(0, least - 1),
                    None if room is None else room - 1,
                )
                items = sequence(item, more)
                items = items if least else optional(items)
        for index in reversed(range(len(first))):
            items = sequence(self._json.comma if index else EMPTY, first[index], items)
            items = items if index < least else optional(items)
        return self._json.array(items)

    def _object(self, hint: str, schema: Schema) -> Expression:
        return self._objects.expression(hint, schema)

    def _leave_given(self, schema: Schema, *keywords: str) -> None:
        for keyword in keywords:
            if schema.get(keyword):
                self._leave(keyword)


def _is_private(what: str) -> bool:
    """Whether something that is left out is a format that no validator checks."""
    kind, _, name = what.partition(" ")
    return kind == "format" and merging.is_private_format(name)


def _counts(schema: Schema, least: str, most: str) -> tuple[int, int | None]:
    return schema.get(least, 0), schema.get(most)


def _repeated(keyword: str, count: int) -> int:
    if count > MAX_REPEAT:
        raise SchemaError(f"{keyword} of {count} is more than the {MAX_REPEAT} a grammar can count")
    return count


def contradiction(schema: Mapping[str, Any]) -> str | None:
    """Where a schema contradicts itself, in words; None if nowhere that a grammar can tell."""
    rules = Rules()
    try:
        text = SchemaText(JsonText(rules, ~Characters.of()), schema)
        return first_contradiction(schema, lambda part: rules.is_possible(text.rule("part", part)))
    except (SchemaError, RecursionError):
        return None  # it has another fault


def _impossible(schema: Mapping[str, Any]) -> ImpossibleSchemaError:
    found = contradiction(schema)
    why = "" if found is None else f": {found}"
    return ImpossibleSchemaError(f"no text can ever fit it{why}")


@lru_cache(KEPT)
@collections_paused
def json_schema_grammar(schema: str, *, any_order: bool = False) -> SchemaGrammar:
    """The grammar of the JSON texts that a schema, given as JSON, describes.

    Args:
        any_order: the keys of objects may come in any order, mixed with others; otherwise in the
            schema's. "x-key-order" in a schema, "any" or "schema", overrides this: for all objects
            in the whole document, or for a schema's own.

    Raises:
        ImpossibleSchemaError: no text fits it.
        SchemaError: it is not a schema, or cannot become a grammar.
    """
    require_short(schema)
    try:
        document = json.loads(schema)
        if document is False:
            raise ImpossibleSchemaError("no text can ever fit it")
        document = {} if document is True else document
        for says_conditions in (True, False):
            rules = Rules()
            text = SchemaText(
                JsonText(rules),
                document,
                any_order=any_order,
                room=room_ahead(document),
                says_conditions=says_conditions,
            )
            gbnf = rules.gbnf(text.root(own_names(document)))
            if gbnf is not None:
                break
    except RecursionError:
        raise too_deep() from None
    if gbnf is None:
        raise _impossible(document)
    return SchemaGrammar(gbnf, text.unchecked)
