"""The members of JSON objects in any order."""

from __future__ import annotations

from adapter.grammar.gbnf.rules import (
    IMPOSSIBLE,
    Choice,
    Concatenation,
    Expression,
    Rule,
    Text,
    choice,
    common_beginning,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema.json_members import Member
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.limits import Effort

MAX_TRACKED = 5
"""The most keys of an object whose presence is tracked. Each doubles the states."""

_MAX_NESTED = 16  # depth of nested parentheses


def members_in_any_order(
    json: JsonText,
    hint: str,
    members: list[Member],
    extra: Expression | None,
    *,
    is_filled: bool,
    effort: Effort,
) -> Expression:
    """Members in any order, with other ones among them.

    Each of up to MAX_TRACKED members comes at most once. If there are more, the required ones do,
    in groups that follow each other. The rest may be repeated, which is still valid since each
    value is.

    Args:
        extra: any other member.
        is_filled: whether there is at least one member.
    """
    is_exact = len(members) <= MAX_TRACKED
    tracked = [one for one in members if is_exact or one.required]
    free = [one.text for one in members if not (is_exact or one.required)]
    others = choice([*([] if extra is None else [extra]), by_key(free)])
    if others != IMPOSSIBLE:
        body = others
        others = json.rules.add(f"{hint}-other", ("other", others), lambda: body)
    after = repeat(sequence(json.comma, others))
    if not tracked:
        first = sequence(others, after)
        return first if is_filled else optional(first)
    begin: Expression = IMPOSSIBLE
    for start in reversed(range(0, len(tracked), MAX_TRACKED)):
        group = tracked[start : start + MAX_TRACKED]
        effort.spend(20 * 2 ** len(group))
        begin, after = _in_any_order(json, hint, group, others, after)
    if is_filled or any(member.required for member in tracked):
        return begin
    return optional(begin)


def _in_any_order(
    json: JsonText, hint: str, group: list[Member], others: Expression, last: Expression
) -> tuple[Rule, Expression]:
    """Members of a group and what follows the last one, and the same after another member."""
    following: dict[int, Expression] = {0: last}
    texts = [
        json.rules.add(hint, ("member", member.text), lambda text=member.text: text)  # type: ignore[misc]
        for member in group
    ]
    for left in range(1, 1 << len(group)):  # those that are still missing, as bits
        rule = json.rules.reserve("any")
        to_come = [at for at in range(len(group)) if left >> at & 1]
        more: Expression = sequence(json.comma, rule)
        if not any(group[at].required for at in to_come):
            more = optional(more)
        following[left] = more
        # No two of these are alike, which `choice` would have to find out.
        options = [] if others == IMPOSSIBLE else [sequence(others, more)]
        options += [sequence(texts[at], following[left & ~(1 << at)]) for at in to_come]
        json.rules.define(rule, Choice(tuple(options)) if len(options) > 1 else options[0])
    return rule, more


def by_key(members: list[Expression], depth: int = 0) -> Expression:
    """Any one of several members, with common beginnings of keys written once.

    A sampler follows every option that still fits, at each character.
    """
    by_first: dict[str, list[tuple[str, Expression]]] = {}
    options: list[Expression] = []
    for member in members:
        if isinstance(member, Concatenation) and isinstance(member.parts[0], Text):
            key, rest = member.parts[0].text, Concatenation(member.parts[1:])
            by_first.setdefault(key[:1], []).append((key, rest))
        else:
            options.append(member)
    for same in by_first.values():
        keys = [key for key, _ in same]
        begin = common_beginning(min(keys), max(keys))
        if len(same) == 1 or depth == _MAX_NESTED or begin in keys:
            options += [sequence(key, rest) for key, rest in same]
        else:
            options.append(
                sequence(
                    begin,
                    by_key([sequence(key[len(begin) :], rest) for key, rest in same], depth + 1),
                )
            )
    return choice(options) if options else IMPOSSIBLE
