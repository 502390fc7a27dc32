"""The members of JSON objects: which may follow which, and the keys that are left for others."""

from __future__ import annotations

from typing import NamedTuple

from adapter.grammar.json_text import JsonText
from adapter.grammar.rules import EMPTY, Expression, choice, optional, repeat, sequence


class Member(NamedTuple):
    """A declared key, and its text together with that of its value."""

    required: bool
    name: str
    text: Expression


def members_in_order(
    json: JsonText,
    hint: str,
    members: list[Member],
    extra: Expression | None,
    missing: int,
    room: int | None,
) -> Expression:
    """Members in their order, each that is not required left out or not.

    extra    any other member; these come last
    missing  how many of them there are at least: one is counted
    room     how many of them there are at most
    """
    first: Expression = EMPTY
    after: Expression = EMPTY
    if extra is not None:
        more = sequence(json.comma, extra)
        after = repeat(more, min(missing, 1), room)
        first = sequence(extra, repeat(more, 0, None if room is None else room - 1))
        first = first if missing else optional(first)
    for must, name, member in reversed(members):
        with_it, following = sequence(member, after), sequence(json.comma, member, after)
        if must:
            first, after = with_it, following
            continue
        key = (member, after)
        without, skipped = first, after
        rest = json.rules.add(
            f"{hint}-{name}-on",
            ("on", key),
            lambda f=following, s=skipped: choice([f, s]),  # type: ignore[misc]
        )
        begin = json.rules.add(
            f"{hint}-{name}-first",
            ("first", key, first),
            lambda w=with_it, o=without: choice([w, o]),  # type: ignore[misc]
        )
        first, after = begin, rest
    return first


def key_other_than(json: JsonText, declared: list[str]) -> Expression:
    """A string that is none of these, without escapes, so that it cannot be one in disguise."""
    raw = json.raw
    any_more = repeat(json.spelled(raw))

    def other_than(names: list[str]) -> Expression:
        following: dict[str, list[str]] = {}
        for name in names:
            if name and name[0] in raw:
                following.setdefault(name[0], []).append(name[1:])
        options: list[Expression] = [] if "" in names else [EMPTY]
        others = raw
        for character, rests in following.items():
            others -= type(raw).of(character)
            options.append(sequence(character, other_than(rests)))
        options.append(sequence(json.spelled(others), any_more))
        return choice(options)

    return json.quoted(other_than(declared))
