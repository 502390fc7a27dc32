"""The JSON objects that a schema describes: which members they may have, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from typing import Any, Protocol

from adapter.grammar.gbnf.automata import Automaton, TooLarge, automaton_of, both, counted, without
from adapter.grammar.gbnf.parsed_patterns import InvalidPattern, UnsupportedPattern
from adapter.grammar.gbnf.pattern_automata import pattern_automaton
from adapter.grammar.gbnf.pattern_search import is_found
from adapter.grammar.gbnf.rules import (
    IMPOSSIBLE,
    MAX_REPEAT,
    Expression,
    Repeat,
    Rule,
    any_text,
    choice,
    one_of,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema import merging
from adapter.grammar.schema.json_members import Member, key_other_than, members_in_order
from adapter.grammar.schema.json_members_ahead import Order, freest_order, members_in
from adapter.grammar.schema.json_members_any_order import members_in_any_order
from adapter.grammar.schema.json_members_counted import counted_members
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.limits import Effort
from adapter.grammar.schema.merging import Schema, SchemaError
from adapter.grammar.schema.once_each import once_each

_MAX_PATTERNS = 3
"""The most patterns of keys that are distinguished. Each key may fit any of them, or several."""

_MAX_KEY_STATES = 300
"""The most states of the automaton of such keys."""

_NAMES_OTHERS = ("additionalProperties", "patternProperties")
"""Keywords that say which keys an object may have beside its declared ones."""

_MAX_STATES = 130
"""The most rules that let the keys of one object come ahead of the schema's order."""

_OWN = "$schema"
"""The key by which a JSON text names its schema."""

_SAY_OF_KEYS = {
    "additionalProperties", "propertyNames", "unevaluatedProperties", "maxProperties",
    "minProperties",
}  # fmt: skip
"""Keywords beside which no member names the schema."""


class SchemaTexts(Protocol):
    """The texts of other schemas of the same document."""

    def rule(self, hint: str, *schemas: Any) -> Rule:
        """The values that all of the schemas describe, under a name."""

    def key(self, hint: str, names: Any) -> Expression:
        """The keys that a schema of propertyNames describes."""

    def listed(self, schema: Any) -> list[str] | None:
        """The texts of all values of a schema, if these are few; otherwise None."""


class ObjectText:
    """The JSON objects that a schema without references and unions describes.

    Args:
        schemas: the texts of the schemas of members and their keys.
        leave: gets what the grammar leaves out.
        any_order: declared keys come in any order, mixed with others, unless a schema has its own
            order.
        room: how many rules may let keys come ahead of the schema's order. Objects get theirs in
            turn.
    """

    def __init__(
        self,
        json: JsonText,
        effort: Effort,
        *,
        schemas: SchemaTexts,
        leave: Callable[[str], None],
        any_order: bool,
        room: int,
    ) -> None:
        self._json = json
        self._effort = effort
        self._schemas = schemas
        self._leave = leave
        self._any_order = any_order
        self._room = room

    def expression(self, hint: str, schema: Schema) -> Expression:
        """The texts of these objects."""
        declared: dict[str, Any] = schema.get("properties", {})
        least: int = schema.get("minProperties", 0)
        most: int | None = schema.get("maxProperties")
        if most is not None and least > most:
            return IMPOSSIBLE
        once = self._once_each(hint, schema, least, most)
        if once is not None:
            return self._json.object(once)
        members = self._declared(hint, schema)
        n_required = sum(member.required for member in members)
        if most is not None and n_required > most:
            return IMPOSSIBLE
        # In any order, keys may be repeated, so they cannot be counted.
        if self._is_any_order(schema) and most is None and least <= max(1, n_required):
            extra = self._other_members(hint, schema, [member.name for member in members])
            found = members_in_any_order(
                self._json, hint, members, extra, is_filled=least > 0, effort=self._effort
            )
            return self._json.object(found)
        extra = None
        n_possible = sum(declared.get(member.name) is not False for member in members)
        is_open = not _names_some(declared) or any(one in schema for one in _NAMES_OTHERS)
        own_name = self._own_name(schema)
        if most != n_required and (is_open or n_possible < least):
            names = [*declared, *schema.get("required", []), *([] if own_name is None else [_OWN])]
            extra = self._other_members(hint, schema, [*dict.fromkeys(names)])
        if extra is None and most is not None and most >= len(members):
            most = None
        if extra is not None and most is not None:
            # llama.cpp limits what stands within a repetition, and a rule counts as one thing.
            body = extra
            extra = self._json.rules.add(f"{hint}-other", ("other", body), lambda: body)
        found = self._in_order(hint, schema, members, extra, least, most)
        return self._json.object(self._with_own_name(hint, found, own_name))

    def _in_order(
        self,
        hint: str,
        schema: Schema,
        members: list[Member],
        extra: Expression | None,
        least: int,
        most: int | None,
    ) -> Expression:
        """`least` to `most` members in the schema's order, or nearly in it."""
        n_required = sum(member.required for member in members)
        if most is None and least <= max(1, n_required):
            order = self._order(schema, members)
            if order is not None:
                self._room -= order.n_states
                self._effort.spend(20 * order.n_states)
                return members_in(self._json, hint, order, extra, is_filled=least > 0)
        if members and (most is not None or least > n_required):
            counted = counted_members(self._json, hint, members, extra, least, most)
            if counted is not None:
                return counted
        if most is not None and len(members) > most:
            # Only as many as there is room for, the required ones first.
            kept = sorted(members, key=lambda member: not member.required)[:most]
            members = [member for member in members if member in kept]
        missing = max(0, least - n_required)
        for index, member in enumerate(members):
            if missing and not member.required:
                members[index] = member._replace(required=True)
                missing -= 1
        room = None if most is None else most - len(members)
        if room == 0:
            extra = None
        if missing > 1 and extra is not None:
            self._leave("minProperties")  # the same key could be given twice
        if missing and extra is None:
            return IMPOSSIBLE
        if room is not None and room > MAX_REPEAT:
            self._leave("maxProperties")
            room = None
        return members_in_order(self._json, hint, members, extra, missing, room)

    def _order(self, schema: Schema, members: list[Member]) -> Order | None:
        """The order that is not quite the schema's, if these members may have one."""
        if schema.get("x-key-order") == "schema":
            return None
        required = [member.name for member in members if member.required]
        # The order of required keys has a meaning where the schema says it twice.
        is_meant = required == [*dict.fromkeys(schema.get("required", []))]
        fixed = [member for member in members if member.required and is_meant]
        free = [member for member in members if not (member.required and is_meant)]
        return freest_order(fixed, free, min(_MAX_STATES, self._room))

    def _own_name(self, schema: Schema) -> Expression | None:
        """The member by which an answer names its schema; None if it may have none."""
        names = schema.get("x-schema-names")
        if not names or schema.keys() & _SAY_OF_KEYS:
            return None
        declared = schema.get("properties", {})
        is_said = _OWN in declared or _OWN in schema.get("required", [])
        if (
            is_said
            or not _names_some(declared)
            or schema.get("additionalProperties", True) is not True
        ):
            return None
        if any(self._applies(one, _OWN) for one in schema.get("patternProperties", {})):
            return None
        key = sequence(self._json.written(_OWN))
        return self._json.member(key, any_text(map(self._json.written, names)))

    def _with_own_name(
        self, hint: str, members: Expression, own_name: Expression | None
    ) -> Expression:
        """Members, and before or behind them the one that names the schema."""
        if own_name is None:
            return members
        may_be_none = isinstance(members, Repeat) and (members.least, members.most) == (0, 1)
        some = members.part if isinstance(members, Repeat) and may_be_none else members
        both = sequence(some, optional(sequence(self._json.comma, own_name)))
        return optional(both) if may_be_none else both

    def _once_each(
        self, hint: str, schema: Schema, least: int, most: int | None
    ) -> Expression | None:
        """Members whose keys are a few that propertyNames lists; None otherwise."""
        value = schema.get("additionalProperties", True)
        names_others = any(
            schema.get(one) for one in ("properties", "required", "patternProperties")
        )
        if names_others or value is False:
            return None
        keys = self._schemas.listed(schema.get("propertyNames", True))
        if keys is None:
            return None
        other = self._schemas.rule(f"{hint}-value", value)
        if _are_of_type(schema.get("propertyNames"), "integer"):
            keys = [f"{self._json.quote}{key}{self._json.quote}" for key in keys]
        texts = [
            self._json.member(sequence(key), other)
            for key in keys
            if key.startswith(self._json.quote)
        ]
        if keys and not texts:
            return None  # booleans or the like, which keys have in quotes
        return once_each(self._json.rules, hint, texts, self._json.comma, least, most)

    def _declared(self, hint: str, schema: Schema) -> list[Member]:
        """The members that a schema names."""
        declared: dict[str, Any] = schema.get("properties", {})
        required: list[str] = schema.get("required", [])
        by_pattern: dict[str, Any] = schema.get("patternProperties", {})
        others = schema.get("additionalProperties", True)
        names = schema.get("propertyNames", True)
        self._effort.spend((200 + 20 * len(by_pattern)) * len(declared))
        must = set(required)
        members: list[Member] = []
        for name in dict.fromkeys([*declared, *required]):
            schemas = [declared[name]] if name in declared else []
            schemas += [by_pattern[one] for one in by_pattern if self._applies(one, name)]
            schemas = schemas or [others]
            allowed = True if names is True else merging.scalar_fits(name, names)
            if allowed is None:
                self._leave("propertyNames")
            value = (
                IMPOSSIBLE if allowed is False else self._schemas.rule(f"{hint}-{name}", *schemas)
            )
            try:
                text = self._json.member(sequence(self._json.written(name)), value)
            except ValueError:
                text = IMPOSSIBLE  # no JSON text stands for the name
            members.append(Member(name in must, name, text))
        return members

    def _other_members(self, hint: str, schema: Schema, declared: list[str]) -> Expression | None:
        """Members that no property declares."""
        by_pattern: dict[str, Any] = schema.get("patternProperties", {})
        names = schema.get("propertyNames", True)
        value: Any = schema.get("additionalProperties", True)
        if by_pattern and (len(by_pattern) > 1 or declared or names is not True):
            return self._of_patterns(hint, schema, declared)
        if by_pattern:
            # Keys of one pattern, if the schema does not mention others.
            is_open = self._is_any_order(schema) or "additionalProperties" in schema
            if is_open and value is not False:
                return self._of_patterns(hint, schema, declared)
            [(pattern, value)] = by_pattern.items()
            names = {"type": "string", "pattern": pattern}
        if value is False:
            return None
        self._effort.spend(30 * sum(map(len, declared)))
        member_value = self._schemas.rule(f"{hint}-value", value)
        if names is True:
            key = key_other_than(self._json, declared) if declared else self._json.string()
        elif not declared:
            key = self._schemas.key(hint, names)
        else:
            return None
        return self._json.member(key, member_value)

    def _of_patterns(self, hint: str, schema: Schema, declared: list[str]) -> Expression | None:
        """Members whose keys fit some of the patterns of patternProperties, or none."""
        by_pattern: dict[str, Any] = schema["patternProperties"]
        says_all = _names_some(schema.get("properties", {})) and not self._is_any_order(schema)
        value: Any = schema.get("additionalProperties", not says_all)
        names = schema.get("propertyNames", True)
        patterns = [] if names is True else _patterns_of(names)
        if len(by_pattern) > _MAX_PATTERNS or patterns is None:
            return None
        options = []
        rules = self._json.rules
        try:
            automata = [pattern_automaton(one) for one in by_pattern]
            free = automaton_of(repeat(one_of(self._json.raw)))
            for pattern in patterns:
                free = both(free, pattern_automaton(pattern))
            if declared:
                free = without(free, automaton_of(any_text(declared)))
            for kept in _subsets(len(automata)):
                values = [one for at, one in enumerate(by_pattern.values()) if at in kept]
                values = values or [value]
                if any(one is False for one in values):
                    continue
                keys = counted(rules, partial(_keys, free, automata, kept))
                if not keys.accepting:
                    continue
                if len(keys.steps) > _MAX_KEY_STATES:
                    return None
                self._effort.spend(20 * len(keys.steps))
                key = keys.expression(rules, self._json.spelled)
                name = f"{hint}-{'value' if kept else 'other'}"
                options.append(
                    self._json.member(self._json.quoted(key), self._schemas.rule(name, *values))
                )
        except (TooLarge, UnsupportedPattern):
            return None
        return choice(options) if options else None

    def _is_any_order(self, schema: Schema) -> bool:
        own = schema.get("x-key-order")
        return self._any_order if own is None else own == "any"

    def _applies(self, pattern: str, name: str) -> bool:
        """Whether a pattern of patternProperties matches a key."""
        try:
            return is_found(pattern, name)
        except InvalidPattern as error:
            raise SchemaError(f"patternProperties has {pattern!r}, {error}") from None
        except UnsupportedPattern as reason:
            self._leave(f"patternProperties {pattern} ({reason})")
            return False


def _are_of_type(names: Any, kind: str) -> bool:
    """Whether a schema of keys is one of another type, whose values keys have in quotes."""
    return isinstance(names, dict) and names.get("type") == kind and "enum" not in names


def _names_some(declared: dict[str, Any]) -> bool:
    """Whether there are properties that an object may have."""
    return any(one is not False for one in declared.values())


def _patterns_of(names: Any) -> list[str] | None:
    """The patterns that are all a schema of keys asks for; None if it asks for more."""
    if not isinstance(names, dict):
        return None
    plain = merging.assertions(names)
    is_plain = plain.keys() <= {"type", "pattern"} and "string" in plain.get("type", ["string"])
    return plain.get("pattern", []) if is_plain else None


def _subsets(count: int) -> Iterator[frozenset[int]]:
    for size in range(count, -1, -1):
        yield from map(frozenset, combinations(range(count), size))


def _keys(free: Automaton, automata: list[Automaton], kept: frozenset[int]) -> Automaton:
    """The keys that fit these automata and no others."""
    for at, automaton in enumerate(automata):
        free = both(free, automaton) if at in kept else without(free, automaton)
    return free
