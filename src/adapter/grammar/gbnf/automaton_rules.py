"""Automata as rules of a grammar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.rules import EMPTY, Expression, Rule, Rules, choice, sequence

_SHORT = 4
"""The most ranges of a set of characters that is written out each time."""

_MAX_INLINED = 12  # depth of nested parentheses

Steps: TypeAlias = tuple[tuple[Characters, int], ...]
"""What leads on from a state: characters, and the state behind them."""


class AutomatonRules:
    """Writes an automaton as rules. A state that only one step leads to is written in place."""

    def __init__(
        self,
        steps: tuple[Steps, ...],
        accepting: frozenset[int],
        rules: Rules,
        spelled: Callable[[Characters], Expression],
    ) -> None:
        self._steps = steps
        self._accepting = accepting
        self._rules = rules
        self._spelled = spelled
        self._arrivals = [0] * len(steps)
        for leaving in steps:
            for _, to in leaving:
                self._arrivals[to] += 1
        self._spellings: dict[Characters, Expression] = {}
        self._names: dict[int, Rule] = {}
        self._todo: list[int] = []

    def whole(self) -> Expression:
        """The texts that the automaton takes."""
        begin = self._rule(0)
        for state in self._todo:
            self._rules.define(self._names[state], self._body(state, 0))
        return begin

    def _rule(self, state: int) -> Rule:
        if state not in self._names:
            self._names[state] = self._rules.reserve("state")
            self._todo.append(state)
        return self._names[state]

    def _body(self, state: int, depth: int) -> Expression:
        options: list[Expression] = [EMPTY] if state in self._accepting else []
        for characters, to in self._steps[state]:
            if self._arrivals[to] == 1 and to != 0 and to != state and depth < _MAX_INLINED:
                rest = self._body(to, depth + 1)
            else:
                rest = self._rule(to)
            options.append(sequence(self._written(characters), rest))
        return choice(options)

    def _written(self, characters: Characters) -> Expression:
        """One character of a set. A set that is long to write gets a rule of its own."""
        if characters not in self._spellings:
            spelling = self._spelled(characters)
            if len(characters.ranges) > _SHORT:
                key = ("one of", characters, spelling)
                spelling = self._rules.add("one-of", key, lambda: self._spelled(characters))
            self._spellings[characters] = spelling
        return self._spellings[characters]
