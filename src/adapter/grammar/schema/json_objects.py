"""The JSON objects that a schema describes: which members they may have, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import combinations
from typing import Any

from adapter.grammar.gbnf.automata import Automaton, TooLarge, automaton_of, both, counted, without
from adapter.grammar.gbnf.parsed_patterns import InvalidPattern, UnsupportedPattern
from adapter.grammar.gbnf.pattern_search import is_found
from adapter.grammar.gbnf.patterns import pattern_expression
from adapter.grammar.gbnf.rules import (
    IMPOSSIBLE,
    MAX_REPEAT,
    Expression,
    Rule,
    any_text,
    choice,
    one_of,
    repeat,
    sequence,
)
from adapter.grammar.schema import merging
from adapter.grammar.schema.json_members import Member, key_other_than, members_in_order
from adapter.grammar.schema.json_members_any_order import members_in_any_order
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.limits import Effort
from adapter.grammar.schema.merging import Schema, SchemaError
from adapter.grammar.schema.once_each import once_each

_MAX_PATTERNS = 3
"""The most patterns of keys that are distinguished. Each key may fit any of them, or several."""

_MAX_KEY_STATES = 300
"""The most states of the automaton of such keys."""

_NAMING = ("properties", "required", "patternProperties")


class ObjectText:
    """The JSON objects that a schema without references and unions describes.

    Args:
        rule: the rule of the values that several schemas describe, under a name.
        key_of: the keys that a schema of propertyNames describes.
        listed: the texts of all keys that such a schema describes, if these are few.
        leave: gets what the grammar leaves out.
        any_order: declared keys come in any order, mixed with others, unless a schema has its own
            order.
    """

    def __init__(
        self,
        json: JsonText,
        effort: Effort,
        *,
        rule: Callable[..., Rule],
        key_of: Callable[[str, Any], Expression],
        listed: Callable[[Any], list[str] | None],
        leave: Callable[[str], None],
        any_order: bool,
    ) -> None:
        self._json = json
        self._effort = effort
        self._rule = rule
        self._key_of = key_of
        self._listed = listed
        self._leave = leave
        self._any_order = any_order

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
        if most is not None and len(members) > most:
            # Only as many as there is room for, the required ones first.
            kept = sorted(members, key=lambda member: not member.required)[:most]
            members = [member for member in members if member in kept]
        missing = max(0, least - n_required)
        for index, member in enumerate(members):
            if missing and not member.required:
                members[index] = member._replace(required=True)
                missing -= 1
        extra = None
        room = None if most is None else most - len(members)
        is_closed = any(one is not False for one in declared.values())
        if room != 0 and (missing or not is_closed or "additionalProperties" in schema):
            names = [*dict.fromkeys([*declared, *schema.get("required", [])])]
            extra = self._other_members(hint, schema, names)
        if missing > 1 and extra is not None:
            self._leave("minProperties")  # the same key could be given twice
        if missing and extra is None:
            return IMPOSSIBLE
        if room is not None and room > MAX_REPEAT:
            self._leave("maxProperties")
            room = None
        return self._json.object(members_in_order(self._json, hint, members, extra, missing, room))

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
        keys = self._listed(schema.get("propertyNames", True))
        if keys is None:
            return None
        other = self._rule(f"{hint}-value", value)
        texts = [
            self._json.member(sequence(key), other)
            for key in keys
            if key.startswith(self._json.quote)
        ]
        if keys and not texts:
            return None  # numbers or the like, which keys have in quotes
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
            value = IMPOSSIBLE if allowed is False else self._rule(f"{hint}-{name}", *schemas)
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
            return self._of_patterns(hint, schema, declared) if names is True else None
        if by_pattern:
            # Keys of one pattern, if no other can match.
            if self._is_any_order(schema) and value is not False:
                return self._of_patterns(hint, schema, declared)
            [(pattern, value)] = by_pattern.items()
            names = {"type": "string", "pattern": pattern}
        if value is False:
            return None
        self._effort.spend(30 * sum(map(len, declared)))
        member_value = self._rule(f"{hint}-value", value)
        if names is True:
            key = key_other_than(self._json, declared) if declared else self._json.string()
        elif not declared:
            key = self._key_of(hint, names)
        else:
            return None
        return self._json.member(key, member_value)

    def _of_patterns(self, hint: str, schema: Schema, declared: list[str]) -> Expression | None:
        """Members whose keys fit some of the patterns of patternProperties, or none."""
        by_pattern: dict[str, Any] = schema["patternProperties"]
        value: Any = schema.get("additionalProperties", True)
        if len(by_pattern) > _MAX_PATTERNS:
            return None
        options = []
        rules = self._json.rules
        try:
            automata = [_automaton(one) for one in by_pattern]
            free = automaton_of(repeat(one_of(self._json.raw)))
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
                options.append(self._json.member(self._json.quoted(key), self._rule(name, *values)))
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


@lru_cache(256)
def _automaton(pattern: str) -> Automaton:
    return automaton_of(pattern_expression(pattern, one_of))


def _subsets(count: int) -> Iterator[frozenset[int]]:
    for size in range(count, -1, -1):
        yield from map(frozenset, combinations(range(count), size))


def _keys(free: Automaton, automata: list[Automaton], kept: frozenset[int]) -> Automaton:
    """The keys that fit these automata and no others."""
    for at, automaton in enumerate(automata):
        free = both(free, automaton) if at in kept else without(free, automaton)
    return free
