"""Alternatives of numbers that others include.

A union of unions has a combination for every pair. Most combinations of multiples say nothing new:
multiples of 33 are multiples of 3. Each would take an automaton.
"""

from __future__ import annotations

from adapter.grammar.gbnf.digits import exact
from adapter.grammar.schema.merging import Schema, types_of

_COMPARED = 200
"""The most alternatives that are compared with each other."""

_WRITTEN = frozenset((
    "type", "enum", "x-not-enum", "x-digits", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
))  # fmt: skip
"""The keywords of numbers that a grammar expresses."""


def widest(alternatives: list[Schema]) -> list[Schema]:
    """The alternatives without numbers that the grammar of another one allows too."""
    numbers = [one for one in alternatives if _is_of_multiples(one)]
    if not 1 < len(numbers) <= _COMPARED:
        return alternatives
    kept: list[Schema] = []
    for one in sorted(numbers, key=lambda one: exact(one["multipleOf"])):
        if not any(_includes(other, one) for other in kept):
            kept.append(one)
    return [one for one in alternatives if not _is_of_multiples(one) or _is_in(one, kept)]


def _is_in(one: Schema, kept: list[Schema]) -> bool:
    return any(one is other for other in kept)


def _is_of_multiples(schema: Schema) -> bool:
    kinds = types_of(schema)
    return "multipleOf" in schema and bool(kinds) and set(kinds or ()) <= {"integer", "number"}


def _includes(one: Schema, other: Schema) -> bool:
    """Whether one schema's grammar allows whatever the other's does."""
    if exact(other["multipleOf"]) % exact(one["multipleOf"]) != 0:
        return False
    said = [schema.keys() & _WRITTEN - {"multipleOf"} for schema in (one, other)]
    return said[0] <= said[1] and all(one[keyword] == other[keyword] for keyword in said[0])
