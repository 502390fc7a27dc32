"""The members of JSON objects in the schema's order, a few of them ahead of it."""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import NamedTuple

from adapter.grammar.gbnf.rules import (
    EMPTY,
    Choice,
    Expression,
    Pairs,
    Rule,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema.json_members import Member
from adapter.grammar.schema.json_text import JsonText


class Order(NamedTuple):
    """How the members of an object may be ordered.

    Attributes:
        fixed: those that keep their order among each other. All of them must be there.
        free: the others, which may come anywhere among the fixed ones.
        n_ahead: how many of the free ones may have come while one that stands before them in the
            schema may still come.
    """

    fixed: list[Member]
    free: list[Member]
    n_ahead: int

    @property
    def n_states(self) -> int:
        """An upper bound of the rules that such an order takes."""
        return _n_states(len(self.fixed), len(self.free), self.n_ahead)


def freest_order(fixed: list[Member], free: list[Member], most_states: int) -> Order | None:
    """The order with the most freedom in so many states; None if there is none to give."""
    n_ahead = -1
    while n_ahead < len(free) - 1:
        if _n_states(len(fixed), len(free), n_ahead + 1) > most_states:
            break
        n_ahead += 1
    is_free = n_ahead > 0 or (n_ahead == 0 and fixed and free)
    return Order(fixed, free, n_ahead) if is_free else None


@lru_cache(1024)
def _n_states(n_fixed: int, n_free: int, n_ahead: int) -> int:
    # For each free member that is the first to come still: the sets of those behind it.
    of_free = sum(comb(n, k) for n in range(n_free) for k in range(min(n, n_ahead) + 1))
    return (n_fixed + 1) * (of_free + 1)


def members_in(
    json: JsonText, hint: str, order: Order, extra: Expression | None, *, is_filled: bool
) -> Expression:
    """Members in such an order, each at most once. Those that are not required may be left out.

    A free member that comes too far ahead leaves the ones before it no place any more, so it can
    come only where none of these is required.

    Args:
        extra: any other member; these come last.
        is_filled: whether there is at least one member.
    """
    rules = json.rules
    others = EMPTY if extra is None else repeat(sequence(json.comma, extra))
    texts = [
        rules.add(hint, ("member", member.text), lambda text=member.text: text)  # type: ignore[misc]
        for member in (*order.fixed, *order.free)
    ]
    must = tuple(member.required for member in order.free)
    places = _places(len(order.fixed), must, order.n_ahead)
    # The last ones first: rules are cheapest where they refer to those that were made before them.
    following = [rules.reserve("on") if place.steps else others for place in reversed(places)]
    following.reverse()
    names = {at: one.name for at, one in enumerate(following) if type(one) is Rule}
    begin: Expression = EMPTY
    for number, place in enumerate(places):
        pairs = [(texts[member].name, names[to]) for member, to in place.steps if to in names]
        last = [sequence(texts[member], others) for member, to in place.steps if to not in names]
        # No two are alike, which `choice` would have to find out.
        steps: list[Expression] = [*([Pairs(tuple(pairs))] if pairs else []), *last]
        if number == 0:
            if extra is not None and place.is_end:
                steps.append(sequence(extra, others))
            begin = Choice(tuple(steps))
            begin = optional(begin) if place.is_end and not is_filled else begin
        elif steps:
            more = sequence(json.comma, Choice(tuple(steps)) if len(steps) > 1 else steps[0])
            if place.is_end:
                more = optional(more) if extra is None else Choice((more, others))
            rules.define(following[number], more)  # type: ignore[arg-type]
    return begin


class _Place(NamedTuple):
    """What may follow some members.

    Attributes:
        steps: by number, the members that may come next, and the places behind them.
        is_end: whether all that is required has come.
    """

    steps: tuple[tuple[int, int], ...]
    is_end: bool


@lru_cache(256)
def _places(n_fixed: int, must: tuple[bool, ...], n_ahead: int) -> list[_Place]:
    """All places, the beginning first. Members are numbered, the fixed ones first.

    What has come is the number of fixed members; the first free one that may still come; and those
    that have come behind it, as bits from that one on.
    """
    begin = (0, 0, 0)
    known = {begin: 0}
    todo = [begin]
    places = []
    for fixed, first, ahead in todo:
        following = [(fixed, (fixed + 1, first, ahead))] if fixed < n_fixed else []
        is_end = fixed == n_fixed
        for at in range(first, len(must)):
            if ahead >> (at - first) & 1:
                continue
            is_end &= not must[at]
            then = _with(must, n_ahead, first, ahead | 1 << (at - first))
            if then is not None:
                following.append((n_fixed + at, (fixed, *then)))
        steps = []
        for member, state in following:
            if state not in known:
                known[state] = len(known)
                todo.append(state)
            steps.append((member, known[state]))
        places.append(_Place(tuple(steps), is_end))
    return places


def _with(must: tuple[bool, ...], n_ahead: int, first: int, ahead: int) -> tuple[int, int] | None:
    """What has come with one more free member; None if a required one would be passed over."""
    while ahead & 1 or ahead.bit_count() > n_ahead:
        if not ahead & 1 and must[first]:
            return None
        first += 1
        ahead >>= 1
    return first, ahead
