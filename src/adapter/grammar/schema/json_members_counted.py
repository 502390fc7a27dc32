"""The members of JSON objects in the schema's order, counted."""

from __future__ import annotations

from adapter.grammar.gbnf.rules import (
    EMPTY,
    IMPOSSIBLE,
    Expression,
    Rule,
    choice,
    repeat,
    sequence,
)
from adapter.grammar.schema.json_members import Member
from adapter.grammar.schema.json_text import JsonText

_MAX_STATES = 1000
"""The most places of an object: how many members have come, before each declared one."""


def counted_members(
    json: JsonText,
    hint: str,
    members: list[Member],
    extra: Expression | None,
    least: int,
    most: int | None,
) -> Expression | None:
    """`least` to `most` members in their order; None if that takes too many rules.

    Args:
        extra: any other member; these come last. They may have the same key, and are counted as one
            for the minimum.
    """
    counted = least if most is None else most  # as far as members are counted
    n_usable = len(members) + (extra is not None)
    if least > n_usable or len(members) * counted > _MAX_STATES:
        return None
    counted = min(counted, len(members) + 1)
    places: dict[tuple[int, int], Rule] = {}

    def following(index: int, count: int) -> Expression:
        """What follows `count` members, from the declared one at `index` on."""
        if index == len(members):
            return _others(json, extra, count, least, most)
        place = places.get((index, count))
        if place is None:
            place = places[index, count] = json.rules.reserve(f"{hint}-{count}")
            todo.append((index, count))
        return place

    todo: list[tuple[int, int]] = []
    begin = following(0, 0)
    while todo:
        index, count = todo.pop()
        member = members[index]
        options: list[Expression] = []
        if most is None or count < most:
            comma = json.comma if count else EMPTY
            on = following(index + 1, min(count + 1, counted))
            options.append(sequence(comma, member.text, on))
        if not member.required:
            options.append(following(index + 1, count))
        json.rules.define(places[index, count], choice(options))
    return begin


def _others(
    json: JsonText, extra: Expression | None, count: int, least: int, most: int | None
) -> Expression:
    """The members that no property declares, behind `count` others."""
    missing = max(0, least - count)
    room = None if most is None else most - count
    if extra is None or room == 0:
        return IMPOSSIBLE if missing else EMPTY
    if missing > 1:
        return IMPOSSIBLE
    more = sequence(json.comma, extra)
    if count:
        return repeat(more, missing, room)
    some = sequence(extra, repeat(more, 0, None if room is None else room - 1))
    return some if missing else repeat(some, 0, 1)
