"""Members by their keys, in trees.

At each character a sampler follows every option that still fits: a hundred options for a hundred
keys. In a tree, a beginning that several keys share is one option. Adding a member makes a new
tree, which shares the parts of the old one that did not change.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from adapter.grammar.gbnf.rules import (
    Concatenation,
    Expression,
    Rules,
    Text,
    choice,
    common_beginning,
    sequence,
)

MAX_MEMBERS = 300
"""Of a tree: each new one copies the places that its key passes."""

_DEEPEST = 16  # places within each other


class _Branch(NamedTuple):
    """What follows a place in the tree.

    text     what is read next
    then     what stands behind it
    below    the branches there; None where the key is complete
    """

    text: str
    then: Expression
    below: Branches | None


Branches: TypeAlias = dict[str, _Branch]
"""Ways on from a place, by their first characters."""


def with_member(
    rules: Rules, hint: str, branches: Branches, member: Expression, on: Expression
) -> Branches | None:
    """The branches, and a member followed by `on`. None for a member without a plain key."""
    if not (isinstance(member, Concatenation) and isinstance(member.parts[0], Text)):
        return None
    rest = sequence(*member.parts[1:], on)
    then = rules.add(f"{hint}-then", ("then", rest), lambda: rest)  # each new tree refers to it
    return _with_key(rules, hint, branches, member.parts[0].text, then, 0)


def _with_key(
    rules: Rules, hint: str, branches: Branches, key: str, then: Expression, depth: int
) -> Branches:
    known = branches.get(key[:1])
    if known is None:
        return {**branches, key[:1]: _Branch(key, then, None)}
    text = common_beginning(known.text, key)
    if depth == _DEEPEST or text == key:
        both = choice([sequence(known.text, known.then), sequence(key, then)])
        return {**branches, key[:1]: _Branch("", both, None)}
    if text == known.text and known.below is not None:
        below = _with_key(rules, hint, known.below, key[len(text) :], then, depth + 1)
    else:
        rest, other = known.text[len(text) :], key[len(text) :]
        below = {
            rest[:1]: _Branch(rest, known.then, known.below),
            other[:1]: _Branch(other, then, None),
        }
    place = rules.reserve(f"{hint}-key")
    rules.define(place, any_of(below))
    return {**branches, key[:1]: _Branch(text, place, below)}


def any_of(branches: Branches) -> Expression:
    """Any one of the members."""
    return choice([sequence(one.text, one.then) for one in branches.values()])
