"""Grammars while they are made: expressions, the rules they are in, and their GBNF."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import TypeAlias

from adapter.grammar.gbnf.characters import Characters

MAX_REPEAT = 1000
"""The largest count in a repetition. llama.cpp writes each count out as a rule of its own."""


_MAX_NESTED = 20  # depth of nested parentheses


@dataclass(slots=True)
class _Hashed:
    """Keeps the hash of an expression of others: it is asked for often, and each is a tree.

    Expressions do not change once they are made. Their classes are not frozen, because it takes
    twice as long to make an object of a frozen one, and a grammar has thousands.
    """

    _hash: int = field(default=0, init=False, repr=False, compare=False)


@dataclass(slots=True)
class Text:
    """Exactly this text."""

    text: str

    def __hash__(self) -> int:
        return hash(self.text)


@dataclass(slots=True)
class OneOf:
    """One character of a set."""

    characters: Characters

    def __hash__(self) -> int:
        return hash(self.characters)


@dataclass(slots=True)
class Concatenation(_Hashed):
    """One expression after the other. Without any, the empty text."""

    parts: tuple[Expression, ...]

    def __hash__(self) -> int:
        if not self._hash:
            self._hash = hash(self.parts)
        return self._hash


@dataclass(slots=True)
class Choice(_Hashed):
    """Any one of several expressions. Without any, nothing fits."""

    options: tuple[Expression, ...]

    def __hash__(self) -> int:
        if not self._hash:
            self._hash = hash((Choice, self.options))
        return self._hash


@dataclass(slots=True)
class Repeat(_Hashed):
    """An expression `least` to `most` times. None for `most` means any number."""

    part: Expression
    least: int
    most: int | None

    def __hash__(self) -> int:
        if not self._hash:
            self._hash = hash((self.part, self.least, self.most))
        return self._hash


@dataclass(slots=True)
class Pairs(_Hashed):
    """Any one of several pairs of rules, given by name, one rule after the other.

    It is a choice for thousands of pairs, which take little time in this form.
    """

    pairs: tuple[tuple[str, str], ...]

    def __hash__(self) -> int:
        if not self._hash:
            self._hash = hash(self.pairs)
        return self._hash


@dataclass(slots=True)
class Rule:
    """What the rule of this name describes."""

    name: str

    def __hash__(self) -> int:
        return hash(self.name)


Expression: TypeAlias = "Text | OneOf | Concatenation | Choice | Repeat | Pairs | Rule"

EMPTY = Concatenation(())
IMPOSSIBLE = Choice(())


def sequence(*parts: Expression | str) -> Expression:
    """Expressions one after the other. Texts stand for themselves."""
    flat: list[Expression] = []
    for part in parts:
        if type(part) is str:
            if part:
                flat.append(Text(part))
        elif type(part) is Concatenation:
            flat += part.parts
        elif type(part) is not Text or part.text:
            flat.append(part)  # type: ignore[arg-type]
    return flat[0] if len(flat) == 1 else Concatenation(tuple(flat))


def choice(options: Iterable[Expression | str]) -> Expression:
    """Any one of several expressions."""
    flat: dict[Expression, None] = {}
    for option in options:
        one = Text(option) if isinstance(option, str) else option
        if type(one) is Choice:
            flat |= dict.fromkeys(one.options)
        else:
            flat[one] = None
    return next(iter(flat)) if len(flat) == 1 else Choice(tuple(flat))


def any_text(texts: Iterable[str], depth: int = 0) -> Expression:
    """Any one of several texts, with common beginnings written once.

    A sampler follows every option that still fits, perhaps hundreds of them, at each character.
    """
    by_first: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        by_first.setdefault(text[:1], []).append(text)
    options: list[Expression] = []
    for same in by_first.values():
        begin = common_beginning(min(same), max(same))
        if len(same) == 1 or depth == _MAX_NESTED:
            options += map(Text, same)
        else:
            rest = any_text((text[len(begin) :] for text in same), depth + 1)
            options.append(sequence(begin, rest))
    return choice(sequence() if option == Text("") else option for option in options)


def common_beginning(one: str, other: str) -> str:
    """What two texts both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return one[:least]


def repeat(part: Expression | str, least: int = 0, most: int | None = None) -> Expression:
    """An expression several times."""
    one = Text(part) if isinstance(part, str) else part
    if most == 0:
        return EMPTY
    return one if least == most == 1 else Repeat(one, least, most)


def optional(part: Expression | str) -> Expression:
    """An expression, or the empty text."""
    return repeat(part, 0, 1)


def one_of(characters: Characters) -> Expression:
    """One character of a set."""
    return OneOf(characters) if characters else IMPOSSIBLE


def may_be_empty(part: Expression) -> bool:
    """Whether the empty text fits an expression without rules."""
    if isinstance(part, Concatenation):
        return all(map(may_be_empty, part.parts))
    if isinstance(part, Choice):
        return any(map(may_be_empty, part.options))
    if isinstance(part, Repeat):
        return part.least == 0 or may_be_empty(part.part)
    return part == Text("")


class Rules:
    """The rules of one grammar, by name.

    Attributes:
        n_states: the states of the automata that were made for it.
    """

    def __init__(self) -> None:
        self.n_states = 0
        self._rules: dict[str, Expression] = {}
        self._by_key: dict[Hashable, Rule] = {}
        self._counts: dict[str, int] = {}  # the last of each name's numbers

    def add(self, hint: str, key: Hashable, body: Callable[[], Expression]) -> Rule:
        """The rule that stands for `key`. If it is new, `body` makes it, and may refer to it."""
        rule = self._by_key.get(key)
        if rule is None:
            rule = self._by_key[key] = self.reserve(hint)
            self.define(rule, body())
        return rule

    def reserve(self, hint: str) -> Rule:
        """A new rule, to be defined later."""
        name = self._new_name(hint)
        self._rules[name] = IMPOSSIBLE
        return Rule(name)

    def define(self, rule: Rule, body: Expression) -> None:
        """Define a reserved rule."""
        self._rules[rule.name] = body

    def gbnf(self, root: Expression, known: frozenset[str] = frozenset()) -> str | None:
        """The grammar whose root is `root`; None if no text can ever fit it.

        Rules that nothing fits are left out, with everything that leads to them.

        Args:
            known: rules that are defined elsewhere.
        """
        possible, whole = self._possible(known)
        body = _pruned(root, possible)
        if body is None:
            return None
        kept: dict[str, Expression] = {"root": body}
        todo = [body]
        while todo:
            for name in _rules_in(todo.pop()):
                if name not in kept and name not in known:
                    rule: Expression | None = self._rules[name]
                    if name not in whole and _fit(self._rules[name], possible) != _ALL:
                        rule = _pruned(self._rules[name], possible)
                    assert rule is not None  # it is possible, or would not be referred to
                    kept[name] = rule
                    todo.append(rule)
        return "".join(f"{name} ::= {_gbnf(rule)}\n" for name, rule in kept.items())

    def is_possible(self, root: Expression) -> bool:
        """Whether some text fits an expression."""
        possible, _ = self._possible(frozenset())
        return _fit(root, possible) != _NONE

    def _new_name(self, hint: str) -> str:
        base = _base_name(hint)
        name, count = base, self._counts.get(base, 1)
        while name in self._rules or name == "root":
            count += 1
            name = f"{base}-{count}"
        self._counts[base] = count
        return name

    def _possible(self, known: frozenset[str]) -> tuple[set[str], set[str]]:
        """The rules that some finite text fits, and those that need no pruning."""
        possible, whole = set(known), set[str]()

        def decide(name: str) -> bool:
            found = _fit(self._rules[name], possible)
            if found is not _NONE:
                possible.add(name)
                if found is _ALL:
                    whole.add(name)
            return found is not _NONE

        # A rule may refer to rules that were made before all others, or after it.
        first = [name for name in self._rules if not decide(name)]
        undecided = [name for name in reversed(first) if not decide(name)]
        users: dict[str, list[str]] = {}
        for name in undecided:
            for used in _rules_in(self._rules[name]):
                users.setdefault(used, []).append(name)
        while undecided:
            name = undecided.pop()
            if name not in possible and decide(name):
                undecided += users.get(name, ())
        return possible, whole


@lru_cache(4096)
def _base_name(hint: str) -> str:
    return re.sub("[^a-zA-Z0-9]+", "-", hint).strip("-").lower()[:40] or "rule"


def _rules_in(part: Expression) -> dict[str, None]:
    """The rules that an expression refers to."""
    found: dict[str, None] = {}
    todo: list[Expression] = [part]
    while todo:
        one = todo.pop()
        kind = type(one)
        if kind is Rule:
            found[one.name] = None  # type: ignore[union-attr]
        elif kind is Concatenation:
            todo += one.parts  # type: ignore[union-attr]
        elif kind is Choice:
            todo += one.options  # type: ignore[union-attr]
        elif kind is Pairs:
            found |= dict.fromkeys(chain.from_iterable(one.pairs))  # type: ignore[union-attr]
        elif kind is Repeat:
            todo.append(one.part)  # type: ignore[union-attr]
    return found


_NONE, _SOME, _ALL = range(3)
_LEAVES = (Text, OneOf)


def _fit(part: Expression, possible: set[str]) -> int:
    """Whether texts fit no part of an expression, some parts, or all."""
    kind = type(part)
    if kind is Rule:
        return _ALL if part.name in possible else _NONE  # type: ignore[union-attr]
    if kind is Concatenation:
        fits = _ALL
        for one in part.parts:  # type: ignore[union-attr]
            if type(one) is Rule:
                if one.name not in possible:
                    return _NONE
            elif type(one) not in _LEAVES:
                fit = _fit(one, possible)
                if fit == _NONE:
                    return _NONE
                fits = min(fits, fit)
        return fits
    if kind is Choice:
        most, least = _NONE, _ALL
        for one in part.options:  # type: ignore[union-attr]
            if type(one) is Rule:
                fit = _ALL if one.name in possible else _NONE
            else:
                fit = _ALL if type(one) in _LEAVES else _fit(one, possible)
            if fit > most:
                most = fit
            if fit < least:
                least = fit
        return most if most in (least, _NONE) else _SOME
    if kind is Repeat:
        fit = _fit(part.part, possible)  # type: ignore[union-attr]
        return _SOME if fit == _NONE and part.least == 0 else fit  # type: ignore[union-attr]
    if kind is Pairs:
        if possible.issuperset(chain.from_iterable(part.pairs)):  # type: ignore[union-attr]
            return _ALL
        return _NONE if _pruned(part, possible) is None else _SOME
    return _ALL


def _pruned(part: Expression, possible: set[str]) -> Expression | None:
    """The expression without parts that can never be completed; None if that is all of it."""
    if isinstance(part, Rule):
        return part if part.name in possible else None
    if isinstance(part, Concatenation):
        parts = [_pruned(one, possible) for one in part.parts]
        return None if None in parts else sequence(*(one for one in parts if one is not None))
    if isinstance(part, Choice):
        options = [_pruned(one, possible) for one in part.options]
        left = [one for one in options if one is not None]
        return choice(left) if left else None
    if isinstance(part, Repeat):
        inner = _pruned(part.part, possible)
        if inner is None:
            return EMPTY if part.least == 0 else None
        return Repeat(inner, part.least, part.most)
    if isinstance(part, Pairs):
        pairs = tuple(pair for pair in part.pairs if possible.issuperset(pair))
        return Pairs(pairs) if pairs else None
    return part


_OPEN = (Choice, Pairs)
"""What needs parentheses within a sequence."""


def _gbnf(part: Expression, *, nested: bool = False) -> str:
    kind = type(part)
    if kind is Rule:
        return part.name  # type: ignore[union-attr]
    if kind is Text:
        return f'"{_UNUSUAL(_escaped, part.text)}"'  # type: ignore[union-attr]
    if kind is OneOf:
        return part.characters.gbnf()  # type: ignore[union-attr]
    if kind is Concatenation:
        written = [
            one.name if type(one) is Rule else _gbnf(one, nested=type(one) in _OPEN)
            for one in part.parts  # type: ignore[union-attr]
        ]
        text = " ".join(written) or '""'
        return f"({text})" if nested and len(written) != 1 else text
    if kind is Choice:
        text = " | ".join(
            [
                one.name if type(one) is Rule else _gbnf(one)
                for one in part.options  # type: ignore[union-attr]
            ]
        )
        return f"({text})" if nested else text
    if kind is Pairs:
        text = " | ".join(map(" ".join, part.pairs))  # type: ignore[union-attr]
        return f"({text})" if nested else text
    assert isinstance(part, Repeat)
    return _gbnf(part.part, nested=True) + _count(part.least, part.most)


def _count(least: int, most: int | None) -> str:
    signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    if (least, most) in signs:
        return signs[least, most]
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"


_UNUSUAL = re.compile(r"[^\x20!\x23-\x5B\x5D-\x7E]").sub


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
