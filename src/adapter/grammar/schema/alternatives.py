"""Resolves a JSON schema into alternatives, without unions, references and conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from adapter.grammar.schema import merging
from adapter.grammar.schema.limits import MAX_COMPARED, Effort
from adapter.grammar.schema.merging import Schema, SchemaError
from adapter.grammar.schema.negation import (
    CONDITIONS,
    MAX_OPTIONS,
    exclusive_options,
    single,
    union_of_condition,
)

MAX_ALTERNATIVES = 5000
"""The most alternatives of all unions in a schema."""

MAX_CONDITIONAL = 128
"""The most alternatives of a whole schema that stand for conditions. Further conditions are
reported.
"""


class Alternatives:
    """Turns schemas into others without references, unions and conditions.

    Args:
        leave: gets what the alternatives leave out.
        says_conditions: whether conditions become alternatives if these are few. Otherwise they are
            left out.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        effort: Effort,
        leave: Callable[[str], None],
        *,
        says_conditions: bool = True,
    ) -> None:
        self._document = document
        self._effort = effort
        self._leave = leave
        self._count = 0
        self._conditional = 0 if says_conditions else MAX_CONDITIONAL

    def of(self, schemas: Iterable[Any]) -> list[Schema]:
        """Schemas without references and unions. Each value of the given ones fits one of these."""
        self._count += 1
        if self._count > MAX_ALTERNATIVES:
            raise SchemaError(f"its unions have more than {MAX_ALTERNATIVES} combinations")
        merged: Schema = {}
        unions: list[list[Any]] = []
        conditions: list[Schema] = []
        todo = list(schemas)
        followed: set[str] = set()
        while todo:
            schema = todo.pop(0)
            self._effort.spend(50 + len(todo) // 10 + len(merged.get("properties", ())))
            if schema is False:
                return []
            if schema is True:
                continue
            rest = merging.assertions(schema)
            before, after = self._included(rest, followed)
            if before:
                todo[:0] = [*before, rest, *after]  # keys come in the order of the text
                continue
            todo[:0] = after
            for keyword in ("anyOf", "oneOf"):
                if keyword in rest:
                    options = merging.schemas_in(rest, keyword)
                    if keyword == "oneOf":
                        options = self.exclusive(options)
                    unions.append(options)
                    del rest[keyword]
            conditions += [
                one
                for condition in CONDITIONS
                if condition[0] in rest
                for one in self._single(
                    {word: rest.pop(word) for word in condition if word in rest}
                )
            ]
            merged = merging.merged(merged, rest)
        for condition in conditions:
            union = union_of_condition(condition, self.meant)
            n_alternatives = math.prod(map(len, unions)) * len(union or ())
            if union is None or n_alternatives > MAX_OPTIONS or not self._may_add(len(union)):
                merged = merging.merged(merged, condition)  # it is reported
            else:
                unions.append(union)
        if not unions:
            return [merged]
        others = [{"anyOf": union} for union in unions[1:]]
        return [plain for option in unions[0] for plain in self.of([merged, option, *others])]

    def _included(self, schema: Schema, followed: set[str]) -> tuple[list[Any], list[Any]]:
        """Take the schemas out of a schema that it includes: those before its own properties, and
        those behind them. References that were followed already are left out.
        """
        before: list[Any] = []
        after: list[Any] = []
        found = before if "properties" in schema else after
        for keyword in [*schema]:
            if keyword == "properties":
                found = after
            elif keyword == "allOf":
                found += merging.schemas_in(schema, "allOf")
                del schema["allOf"]
            elif keyword == "$ref":
                reference = schema.pop("$ref")
                target = self.resolved(reference)
                if reference not in followed:
                    followed.add(reference)
                    found.append(target)
        return before, after

    def resolved(self, reference: Any) -> Any:
        """The schema that a reference stands for. Raises SchemaError if there is none."""
        address, _, fragment = (
            reference.partition("#") if isinstance(reference, str) else ("?", "", "")
        )
        if address not in ("", self._address):
            raise SchemaError(f"$ref {reference!r} does not refer into the same schema")
        found: Any = self._document
        if fragment and not fragment.startswith("/"):
            if fragment not in self._anchors:
                raise SchemaError(f"$ref {reference!r} does not refer into the same schema")
            return self._anchors[fragment]
        for step in filter(None, fragment.split("/")[1:]):
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise SchemaError(f"$ref {reference!r} refers to nothing: {key!r} is not there")
        return found

    def _single(self, condition: Schema) -> list[Schema]:
        """The keywords of one condition as several of one key each, except where values may hold
        values of the same schema: a sampler follows all alternatives, at each level.
        """
        several = single(condition)
        return several if len(several) == 1 or not self._is_recursive else [condition]

    @cached_property
    def _is_recursive(self) -> bool:
        """Whether a reference leads to a schema that contains it."""
        open_ones: dict[str, bool] = {}  # whether a reference is being followed, or is done
        todo = [(reference, False) for reference in self._references_in(self._document)]
        while todo:
            reference, is_left = todo.pop()
            if is_left:
                open_ones[reference] = False
            elif open_ones.get(reference):
                return True
            elif reference not in open_ones:
                open_ones[reference] = True
                within = self._references_in(self.resolved(reference))
                todo += [(reference, True), *((one, False) for one in within)]
        return False

    def _references_in(self, schema: Any) -> dict[str, None]:
        found: dict[str, None] = {}
        todo = [schema]
        while todo:
            value = todo.pop()
            self._effort.spend(1)
            if isinstance(value, Mapping):
                reference = value.get("$ref")
                if isinstance(reference, str):
                    found[reference] = None
                todo += [v for k, v in value.items() if k not in ("enum", "const")]
            elif isinstance(value, list):
                todo += value
        return found

    @cached_property
    def _address(self) -> str:
        """The document's own address, without its fragment; empty if it has none."""
        named = [self._document.get(keyword) for keyword in ("$id", "id")]
        return next((one.partition("#")[0] for one in named if isinstance(one, str)), "")

    @cached_property
    def _anchors(self) -> dict[str, Any]:
        """The schemas in the document that have a name to refer to, by this name."""
        found: dict[str, Any] = {}
        todo: list[Any] = [self._document]
        while todo:
            value = todo.pop()
            self._effort.spend(1)
            if isinstance(value, Mapping):
                for keyword in ("$anchor", "$id", "id"):
                    name = value.get(keyword)
                    if isinstance(name, str) and (keyword == "$anchor" or name[:1] == "#"):
                        found.setdefault(name.removeprefix("#"), value)
                todo += [v for k, v in value.items() if k not in ("enum", "const")]
            elif isinstance(value, list):
                todo += value
        return found

    def exclusive(self, options: list[Any]) -> list[Any]:
        """The options of a oneOf, each without what fits another one, if that can be expressed."""
        if not self._may_overlap(options):
            return options
        parted = exclusive_options(options, self.meant)
        if parted is None or not self._may_add(2 * len(options)):
            self._leave("oneOf")
            return options
        return parted

    def _may_add(self, n_alternatives: int) -> bool:
        """Count alternatives that stand for conditions. Returns whether there is room for them."""
        self._conditional += n_alternatives
        return self._conditional <= MAX_CONDITIONAL

    def _may_overlap(self, options: list[Any]) -> bool:
        """Whether a text may fit several options of a oneOf. Reported if there are too many to
        compare.
        """
        kinds = [self.meant(option) for option in options]
        n_pairs = len(kinds) * (len(kinds) - 1) // 2
        if n_pairs > MAX_COMPARED:
            self._leave(f"oneOf (more than {MAX_COMPARED} pairs of options)")
            return False
        self._effort.spend(5 * n_pairs)
        return not all(
            merging.exclusive(one, other)
            for index, one in enumerate(kinds)
            for other in kinds[:index]
        )

    def meant(self, option: Any) -> Any:
        """The schema that an option refers to, through any number of references."""
        followed: set[str] = set()
        while isinstance(option, dict) and "$ref" in option:
            reference = option["$ref"]
            found = self.resolved(reference)
            if reference in followed:
                return True  # it refers to itself, so anything fits
            followed.add(reference)
            option = found
        return option
