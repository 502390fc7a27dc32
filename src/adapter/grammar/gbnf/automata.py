"""Deterministic automata: several conditions on one text, as one expression.

A grammar has alternatives, but no "and". The product of two automata fits what both expressions
fit. It is written back as rules, one for each state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adapter.grammar.gbnf.automaton_rules import AutomatonRules, Steps
from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.rules import (
    IMPOSSIBLE,
    Choice,
    Concatenation,
    Expression,
    OneOf,
    Repeat,
    Rules,
    Text,
    one_of,
)

MAX_STATES = 6000
"""The most states of an intermediate automaton. A large one takes a tenth of a second."""

MAX_STEPS = 60_000
"""The most steps that are followed to make one."""

MAX_ALL_STATES = 12_000
"""The most states of all automata of a grammar; one that is too large counts as MAX_RULES."""

_KEPT = 16
"""How many automata of expressions are cached: a schema repeats formats."""

MAX_RULES = 2000
"""The most states that are written into a grammar."""

_REFINED = 60_000  # states up to which equivalent ones are merged


class TooLarge(ValueError):
    """An automaton of more states than a grammar should have."""


@dataclass(frozen=True)
class Automaton:
    """Reads a text character by character. State 0 is the first. Each character leads to one state.

    Attributes:
        steps: for each state, the characters that lead on, and where to.
        accepting: the states in which the text may end.
    """

    steps: tuple[Steps, ...]
    accepting: frozenset[int]

    def takes(self, text: str) -> bool:
        """Whether a text may end where this one does."""
        state = 0
        for character in text:
            following = (to for characters, to in self.steps[state] if character in characters)
            state = next(following, -1)
            if state < 0:
                return False
        return state in self.accepting

    def expression(
        self,
        rules: Rules,
        spelled: Callable[[Characters], Expression],
        *,
        is_minimal: bool = False,
    ) -> Expression:
        """The same texts as an expression, with each character as `spelled` writes it.

        Args:
            is_minimal: no two states are equivalent, or it is not worth looking for them.

        Raises:
            TooLarge: the expression would have too many rules.
        """
        least = self if is_minimal else minimal(self)
        if not least.accepting:
            return IMPOSSIBLE
        if len(least.steps) > MAX_RULES:
            raise TooLarge(f"more than {MAX_RULES} states")
        return AutomatonRules(least.steps, least.accepting, rules, spelled).whole()


def counted(rules: Rules, make: Callable[[], Automaton]) -> Automaton:
    """The automaton that `make` returns, as one of a grammar's.

    Raises:
        TooLarge: it is too large, or those of the grammar are, taken together.
    """
    if rules.n_states > MAX_ALL_STATES:
        raise TooLarge(f"more than {MAX_ALL_STATES} states in one grammar")
    try:
        made = make()
    except TooLarge:
        rules.n_states += MAX_RULES
        raise
    rules.n_states += len(made.steps)
    return made


def automaton_of(expression: Expression) -> Automaton:
    """The automaton of an expression without rules.

    Raises:
        TooLarge: it has too many states.
        ValueError: the expression contains a rule.
    """
    made = _kept_automaton(expression)
    if made is None:
        raise TooLarge(f"more than {MAX_STATES} states")
    return made


@lru_cache(_KEPT)
def _kept_automaton(expression: Expression) -> Automaton | None:
    """The automaton of an expression; None if it is too large. Both results are cached."""
    try:
        return _automaton_of(expression)
    except TooLarge:
        return None


def _automaton_of(expression: Expression) -> Automaton:
    made = _Nondeterministic()
    end = made.state()
    begin = made.add(expression, end)
    classes, members = _classes(made.characters())
    # Where each class of characters leads from a state.
    leads: list[list[tuple[int, int]]] = [
        [(index, to) for sets, to in steps for index in members[sets]] for steps in made.steps
    ]

    def following(states: frozenset[int]) -> Iterable[tuple[Characters, frozenset[int]]]:
        found: dict[int, set[int]] = {}
        for state in states:
            for index, to in leads[state]:
                found.setdefault(index, set()).add(to)
        for index, reached in found.items():
            yield classes[index], made.closure(reached)

    return explored(made.closure({begin}), following, lambda states: end in states)


def both(one: Automaton, other: Automaton) -> Automaton:
    """The texts that both accept. Raises TooLarge."""
    common: dict[tuple[int, int], Characters] = {}
    ours, theirs = _numbered(one), _numbered(other)

    def following(pair: tuple[int, int]) -> Iterable[tuple[Characters, tuple[int, int]]]:
        for index, characters, to in ours[pair[0]]:
            for other_index, others, other_to in theirs[pair[1]]:
                key = (index, other_index)
                if key not in common:
                    common[key] = characters & others
                if common[key].ranges:
                    yield common[key], (to, other_to)

    return explored(
        (0, 0), following, lambda pair: pair[0] in one.accepting and pair[1] in other.accepting
    )


def without(one: Automaton, other: Automaton) -> Automaton:
    """The texts that the first accepts and the second does not. Raises TooLarge."""

    def following(pair: tuple[int, int | None]) -> Iterable[tuple[Characters, object]]:
        for characters, to in one.steps[pair[0]]:
            rest = characters
            for others, other_to in () if pair[1] is None else other.steps[pair[1]]:
                common = rest & others
                if common:
                    yield common, (to, other_to)
                    rest = rest - others
            if rest:
                yield rest, (to, None)

    return explored(
        (0, 0),
        following,
        lambda pair: pair[0] in one.accepting and pair[1] not in other.accepting,
    )


def _numbered(automaton: Automaton) -> list[list[tuple[int, Characters, int]]]:
    """The steps of each state, with a number for each set of characters."""
    numbers: dict[Characters, int] = {}
    return [
        [(numbers.setdefault(characters, len(numbers)), characters, to) for characters, to in steps]
        for steps in automaton.steps
    ]


def explored(
    begin: object,
    following: Callable[..., Iterable[tuple[Characters, object]]],
    accepts: Callable[..., bool],
) -> Automaton:
    """The automaton that is reachable from a state of any kind.

    States from which no text can end are left out.

    Raises:
        TooLarge: it has too many states.
    """
    numbers: dict[object, int] = {begin: 0}
    todo = [begin]
    n_steps = 0
    steps: list[list[tuple[Characters, int]]] = []
    for state in todo:
        by_target: dict[int, Characters] = {}
        for characters, to in following(state):
            n_steps += 1
            if to not in numbers:
                if len(numbers) == MAX_STATES:
                    raise TooLarge(f"more than {MAX_STATES} states")
                numbers[to] = len(numbers)
                todo.append(to)
            number = numbers[to]
            known = by_target.get(number)
            by_target[number] = characters if known is None else known | characters
        if n_steps > MAX_STEPS:
            raise TooLarge(f"more than {MAX_STEPS} steps")
        steps.append([(characters, to) for to, characters in by_target.items()])
    accepting = frozenset(numbers[state] for state in todo if accepts(state))
    return _pruned(steps, accepting)


def lengths(least: int, most: int | None) -> Automaton:
    """Texts with a number of characters."""
    last = least if most is None else most
    anything = ~Characters.of()

    def following(count: int) -> list[tuple[Characters, int]]:
        if count < last:
            return [(anything, count + 1)]
        return [(anything, count)] if most is None else []

    return explored(0, following, lambda count: count >= least)


def _pruned(steps: list[list[tuple[Characters, int]]], accepting: frozenset[int]) -> Automaton:
    """Without the states from which none that accepts can be reached, except the first."""
    before: list[list[int]] = [[] for _ in steps]
    for state, leaving in enumerate(steps):
        for _, to in leaving:
            before[to].append(state)
    alive, todo = set(accepting), list(accepting)
    while todo:
        for state in before[todo.pop()]:
            if state not in alive:
                alive.add(state)
                todo.append(state)
    if len(alive) == len(steps):
        return Automaton(tuple(map(tuple, steps)), accepting)
    kept = {state: index for index, state in enumerate(sorted(alive | {0}))}
    made = tuple(
        tuple((characters, kept[to]) for characters, to in steps[state] if to in alive)
        for state in kept
    )
    return Automaton(made, frozenset(kept[state] for state in accepting))


def minimal(automaton: Automaton) -> Automaton:
    """The smallest automaton that accepts the same texts, by partition refinement.

    If that would take long, as with states that only count, the automaton is returned unchanged.
    """
    sets = dict.fromkeys(one for steps in automaton.steps for one, _ in steps)
    classes, members = _classes(sets)
    n_states = len(automaton.steps)
    # Where each class of characters leads. After the last state comes one that nothing leaves.
    rows = []
    for steps in automaton.steps:
        row = [n_states] * len(classes)
        for one, to in steps:
            for index in members[one]:
                row[index] = to
        rows.append(row)
    leads = np.array(rows, np.int16)
    blocks = np.zeros(n_states + 1, np.int16)
    blocks[list(automaton.accepting)] = 1
    blocks[n_states] = -1
    count, found, looked_at = 0, len({*blocks[:n_states].tolist()}), 0
    while count != found:
        count = found
        looked_at += n_states
        if looked_at > _REFINED:
            return automaton
        found = _refine(blocks, leads)
    firsts: dict[int, int] = {}
    for state, block in enumerate(blocks[:n_states].tolist()):
        firsts.setdefault(block, state)
    unions: dict[tuple[int, ...], Characters] = {}
    merged: list[list[tuple[Characters, int]]] = []
    for state in firsts.values():
        by_target: dict[int, list[int]] = {}
        for index, to in enumerate(blocks[leads[state]].tolist()):
            if to >= 0:
                by_target.setdefault(to, []).append(index)
        for parts in map(tuple, by_target.values()):
            if parts not in unions:
                unions[parts] = Characters.of(*[ends for i in parts for ends in classes[i].ranges])
        merged.append([(unions[tuple(parts)], to) for to, parts in by_target.items()])
    return _pruned(merged, frozenset(blocks[list(automaton.accepting)].tolist()))


def _refine(blocks: NDArray[np.int16], leads: NDArray[np.int16]) -> int:
    """Split the states of a block by where they lead. Returns how many blocks there are.

    Blocks are numbered by their first states.
    """
    n_states = len(leads)
    rows = np.concatenate([blocks[:n_states, None], blocks[leads]], axis=1)
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, block = np.unique(keys, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int16)
    order[np.argsort(first)] = np.arange(len(first))
    blocks[:n_states] = order[block]
    return len(first)


def _classes(
    sets: Iterable[Characters],
) -> tuple[list[Characters], dict[Characters, list[int]]]:
    """Disjoint sets, and for each given set those that it consists of."""
    given = list(sets)
    turns: dict[int, int] = {}  # by character: the sets that begin or ended there, as bits
    for index, one in enumerate(given):
        for low, high in one.ranges:
            turns[low] = turns.get(low, 0) ^ 1 << index
            turns[high + 1] = turns.get(high + 1, 0) ^ 1 << index
    covered: dict[int, list[tuple[int, int]]] = {}  # ranges by the sets that have them
    codes = sorted(turns)
    now = 0
    for code, following in itertools.pairwise(codes):
        now ^= turns[code]
        if now:
            covered.setdefault(now, []).append((code, following - 1))
    members: dict[Characters, list[int]] = {one: [] for one in given}
    for number, those in enumerate(covered):
        for index, one in enumerate(given):
            if those >> index & 1:
                members[one].append(number)
    return [Characters(tuple(ranges)) for ranges in covered.values()], members


_ANYTHING = one_of(~Characters.of())


class _Nondeterministic:
    """States with steps, and with transitions that read nothing. State 0 is the last one."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[Characters, int]]] = []
        self._free: list[list[int]] = []
        self._closures: dict[int, frozenset[int]] = {}
        self._open: set[int] = set()  # from these on, any text may end the whole

    def state(self) -> int:
        if len(self.steps) == 4 * MAX_STATES:
            raise TooLarge(f"more than {4 * MAX_STATES} states")
        self.steps.append([])
        self._free.append([])
        return len(self.steps) - 1

    def characters(self) -> Iterable[Characters]:
        return dict.fromkeys(characters for steps in self.steps for characters, _ in steps)

    def closure(self, states: Collection[int]) -> frozenset[int]:
        """States with those that are reached without reading. Where any text fits, only those that
        say so.
        """
        closures = [self._closure(state) for state in states]
        found = closures[0] if len(closures) == 1 else closures[0].union(*closures[1:])
        return found if self._open.isdisjoint(found) else self._closure(min(self._open))

    def _closure(self, state: int) -> frozenset[int]:
        """A state with those that are reached from it without reading."""
        if state not in self._closures:
            self._closures[state] = self._reached(state)
        return self._closures[state]

    def _reached(self, state: int) -> frozenset[int]:
        found, todo = {state}, [state]
        while todo:
            for to in self._free[todo.pop()]:
                if to not in found:
                    found.add(to)
                    todo.append(to)
        return frozenset(found)

    def add(self, part: Expression, end: int) -> int:
        """The state from which `part` leads to `end`."""
        if isinstance(part, Text):
            for character in reversed(part.text):
                end = self._reading(Characters.of(character), end)
            return end
        if isinstance(part, OneOf):
            return self._reading(part.characters, end)
        if isinstance(part, Concatenation):
            for one in reversed(part.parts):
                end = self.add(one, end)
            return end
        if isinstance(part, Choice):
            begin = self.state()
            self._free[begin] = [self.add(option, end) for option in part.options]
            return begin
        if isinstance(part, Repeat):
            return self._repeated(part, end)
        raise ValueError(f"{part} is no expression without rules")

    def _reading(self, characters: Characters, end: int) -> int:
        begin = self.state()
        self.steps[begin] = [(characters, end)]
        return begin

    def _repeated(self, part: Repeat, end: int) -> int:
        if part.most is None:
            begin = self.state()
            self._free[begin] = [end, self.add(part.part, begin)]
            if end == 0 and part.part == _ANYTHING:
                self._open.add(begin)
        else:
            begin = end
            for _ in range(part.most - part.least):
                following, begin = begin, self.state()
                self._free[begin] = [end, self.add(part.part, following)]
        for _ in range(part.least):
            begin = self.add(part.part, begin)
        return begin


def characters_only(characters: Characters) -> Expression:
    """Characters that stand for themselves."""
    return one_of(characters)
