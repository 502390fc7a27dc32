"""The members of JSON objects: their order, and the keys that are left for others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.rules import (
    EMPTY,
    IMPOSSIBLE,
    Choice,
    Concatenation,
    Expression,
    Rule,
    Text,
    choice,
    optional,
    repeat,
    sequence,
)
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.key_tree import MAX_MEMBERS, Branches, any_of, with_member

_MAX_PARTS = 60  # of a sequence: each further member would copy it


_FEW = 32  # members of which a sampler may follow each at once


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
    """Members in their order. Those that are not required may be left out.

    Args:
        extra: any other member; these come last.
        missing: the least number of them; a required one counts.
        room: the largest number of them.
    """
    first: Expression | None = None  # from here on, one member at least
    is_open = True  # whether there may be none
    if extra is not None:
        more = sequence(json.comma, extra)
        first = sequence(extra, repeat(more, 0, None if room is None else room - 1))
        is_open = not missing
        if members:
            body = first
            first = json.rules.add(f"{hint}-more", ("more", body), lambda: body)
    tree: Branches = {}  # of the members just behind, where none of them must be there
    n_in_tree, behind = 0, first
    for must, name, member in reversed(members):
        on: Expression = EMPTY
        if first is not None:
            on = sequence(json.comma, first)
            on = optional(on) if is_open else on
        if must:
            first, is_open = sequence(member, on), False
            if isinstance(first, Concatenation) and len(first.parts) > _MAX_PARTS:
                body = first
                first = json.rules.add(f"{hint}-{name}-on", ("on", body), lambda b=body: b)  # type: ignore[misc]
            tree, n_in_tree, behind = {}, 0, first
            continue
        grown = None
        if len(members) > _FEW and n_in_tree < MAX_MEMBERS:
            grown = with_member(json.rules, hint, tree, member, on)
        with_it = sequence(member, on) if grown is None else any_of(grown)
        without = first if grown is None else behind
        first = json.rules.add(
            f"{hint}-{name}-on",
            ("on", member, IMPOSSIBLE if first is None else first, is_open),
            lambda w=with_it, o=without: w if o is None else choice([w, o]),  # type: ignore[misc]
        )
        if grown is None:
            tree, n_in_tree, behind = {}, 0, first
        else:
            tree, n_in_tree = grown, n_in_tree + 1
    if first is None:
        return EMPTY
    return optional(first) if is_open else first


def key_other_than(json: JsonText, declared: list[str]) -> Expression:
    """A string that is none of these, without escapes, in which it could be one of them."""
    root = _Names()
    for name in declared:
        node = root
        for character in name:
            if character not in json.raw:
                break  # only an escape would write it
            node = node.following.setdefault(character, _Names())
        else:
            node.ends = True
            node.only = name, len(name)
    for node in root.deepest_first():
        children = node.following
        if len(children) == 1 and not node.ends:
            [child] = children.values()
            if child.only is not None:
                name, at = child.only
                node.only = name, at - 1
                continue
        elif not children and node.ends:
            continue
        node.only = None
        options: list[Expression] = [] if node.ends else [EMPTY]
        for one, child in children.items():
            if child.only is not None:
                name, at = child.only
                child.others = _other_than(json, name, at)
            options.append(Concatenation((Text(one), child.others)))
        others = _others(json, "".join(sorted(children)))
        node.others = Choice((*options, Concatenation((others, _any_more(json)))))
        node.depth = 1 + max((child.depth for child in children.values()), default=0)
        if node.depth == _MAX_NESTED:
            # A name may be of any length, and expressions are walked recursively.
            body = node.others
            node.others = json.rules.add("other-key", object(), lambda body=body: body)  # type: ignore[misc]
            node.depth = 0
    if root.only is not None:
        root.others = _other_than(json, *root.only)
    whole = json.quoted(root.others)
    # llama.cpp limits what stands within a repetition, as other members do.
    return (
        whole
        if len(declared) <= _MAX_NESTED
        else json.rules.add("other-key", object(), lambda: whole)
    )


def _other_than(json: JsonText, name: str, begin: int) -> Rule:
    """A text that is not the rest of a name. Ends that many names share are rules."""
    end = len(name)
    following = json.rules.add(
        "key-more",
        ("key-more", json.raw),
        lambda: Concatenation((_others(json, ""), _any_more(json))),
    )
    while end > begin:
        first = max(begin, end - _STEP)
        is_short = len(name) - first <= _SHARED
        key = ("not", json.raw, name[first:]) if is_short else object()
        following = json.rules.add(
            "not-key", key, partial(_not_begun, json, name[first:end], following)
        )
        end = first
    return following


def _not_begun(json: JsonText, text: str, following: Expression) -> Expression:
    """A text that does not begin so, or goes on differently."""
    for character in reversed(text):
        other = Concatenation((_others(json, character), _any_more(json)))
        following = Choice((EMPTY, Concatenation((Text(character), following)), other))
    return following


_STEP = 4  # characters of a name's end that are written into a rule

_SHARED = 64  # characters of a name's end for which an equal one is looked for


def _any_more(json: JsonText) -> Rule:
    """Any characters of a key."""
    return json.rules.add(
        "key-rest", ("key-rest", json.raw), lambda: repeat(json.spelled(json.raw))
    )


def _others(json: JsonText, characters: str) -> Rule:
    """A character of a key that is none of these."""
    known = json.other_characters.get(characters)
    if known is None:
        known = json.other_characters[characters] = json.rules.add(
            "key-other",
            ("key-other", json.raw, characters),
            lambda: json.spelled(json.raw - Characters.of(characters)),
        )
    return known


_MAX_NESTED = 16  # characters of names, within one rule


class _Names:
    """Names with a common beginning, by what follows it.

    Attributes:
        ends: whether the beginning itself is a name.
        only: the only name that begins so, and how much of it; None if there are several.
        others: what may follow it to make another name.
        depth: how deep that nests within its rule.
    """

    def __init__(self) -> None:
        self.following: dict[str, _Names] = {}
        self.ends = False
        self.only: tuple[str, int] | None = None
        self.others: Expression = EMPTY
        self.depth = 0

    def deepest_first(self) -> Iterator[_Names]:
        """Return this one and all that follow, each after those that follow it."""
        nodes = [self]
        for node in nodes:
            nodes += node.following.values()
        return reversed(nodes)
