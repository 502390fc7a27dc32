"""The members of JSON objects in the schema's order, a few of them ahead of it."""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import NamedTuple

from adapter.grammar.gbnf.rules import EMPTY, Expression, choice, optional, repeat, sequence
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


class _State(NamedTuple):
    """What has come so far.

    Attributes:
        n_fixed: how many of the fixed members.
        first: the first of the free ones that may still come.
        ahead: those behind it that have come.
    """

    n_fixed: int
    first: int
    ahead: frozenset[int]


def members_in(
    json: JsonText, hint: str, order: Order, extra: Expression | None, *, is_filled: bool
) -> Expression:
    """Members in such an order, each at most once. Those that are not required may be left out.

    A free member that comes too far ahead leaves the ones before it no place any more, so it can
    come only where none of these is required.

    Attributes:
        extra: any other member; these come last.
        is_filled: whether there is at least one member.
    """
    rules = json.rules
    others = EMPTY if extra is None else repeat(sequence(json.comma, extra))
    texts = {
        member: rules.add(
            f"{hint}-{member.name}",
            ("member", member.text),
            lambda text=member.text: text,  # type: ignore[misc]
        )
        for member in (*order.fixed, *order.free)
    }
    start = _State(0, 0, frozenset())
    known = {start: EMPTY}
    todo = [start]
    begin: Expression = EMPTY
    for state in todo:
        steps = []
        for member, then in _steps(order, state):
            if then not in known:
                is_last = then.n_fixed == len(order.fixed) and then.first == len(order.free)
                known[then] = others if is_last else rules.reserve(f"{hint}-on")
                if not is_last:
                    todo.append(then)
            steps.append(sequence(texts[member], known[then]))
        may_end = _may_end(order, state)
        if state is start:
            if extra is not None and may_end:
                steps.append(sequence(extra, others))
            begin = choice(steps)
            begin = optional(begin) if may_end and not is_filled else begin
            continue
        more = sequence(json.comma, choice(steps))
        rules.define(known[state], choice([more, others]) if may_end else more)  # type: ignore[arg-type]
    return begin


def _steps(order: Order, state: _State) -> list[tuple[Member, _State]]:
    """The members that may come next, and what has come then."""
    found = []
    if state.n_fixed < len(order.fixed):
        found.append((order.fixed[state.n_fixed], state._replace(n_fixed=state.n_fixed + 1)))
    for at in range(state.first, len(order.free)):
        if at not in state.ahead:
            then = _with(order, state, at)
            if then is not None:
                found.append((order.free[at], then))
    return found


def _with(order: Order, state: _State, at: int) -> _State | None:
    """What has come with one more free member; None if a required one would be passed over."""
    first, ahead = state.first, state.ahead | {at}
    while first in ahead or len(ahead) > order.n_ahead:
        if first in ahead:
            ahead -= {first}
        elif order.free[first].required:
            return None
        first += 1
    return _State(state.n_fixed, first, ahead)


def _may_end(order: Order, state: _State) -> bool:
    return state.n_fixed == len(order.fixed) and not any(
        order.free[at].required
        for at in range(state.first, len(order.free))
        if at not in state.ahead
    )
