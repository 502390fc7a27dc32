"""Records what each rule of a schema leaves out.

A rule that is made once may be referred to from several places, some of which are dropped. So what
a grammar leaves out is recorded by rule, and reported only for the rules that it still refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from adapter.grammar.gbnf.rules import Expression
from adapter.grammar.schema.limits import Effort


class _Part:
    """What a part of a grammar leaves out itself, and the rules that it refers to."""

    def __init__(self) -> None:
        self.what: dict[str, None] = {}
        self.rules: dict[Hashable, None] = {}


class LeftOut:
    """Keywords that are left out, by rule."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._now = _Part()
        self._by_rule: dict[Hashable, _Part] = {}

    def leave(self, what: str) -> None:
        """Record that the rule that is being made leaves something out."""
        self._now.what[what] = None

    def refer(self, rule: Hashable) -> None:
        """Record that the rule that is being made refers to another one."""
        self._now.rules[rule] = None

    def making(self, rule: Hashable, body: Callable[[], Expression]) -> Expression:
        """Make the body of a rule. What is recorded meanwhile belongs to the rule."""
        part = self._by_rule[rule] = _Part()
        before, self._now = self._now, part
        try:
            return body()
        finally:
            self._now = before

    @contextmanager
    def aside(self) -> Iterator[_Part]:
        """What is recorded in the block counts only if it is added."""
        before, self._now = self._now, _Part()
        try:
            yield self._now
        finally:
            self._now = before

    def add(self, part: _Part) -> None:
        """Count what was recorded aside."""
        self._now.what |= part.what
        self._now.rules |= part.rules

    def all_of(self, part: _Part | None = None) -> dict[str, None]:
        """Everything that a part leaves out, including the rules that it reaches."""
        todo = [self._now if part is None else part]
        found: dict[str, None] = {}
        seen: set[Hashable] = set()
        for one in todo:
            found |= one.what
            new = one.rules.keys() - seen
            seen |= new
            todo += [self._by_rule[rule] for rule in one.rules if rule in new]
        self._effort.spend(len(seen) // 4)
        return found
