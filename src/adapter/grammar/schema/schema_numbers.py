"""Numbers the schemas of a document, so that equal ones can be recognised."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from adapter.grammar.schema.limits import Effort


class SchemaNumbers:
    """Gives two values one number if, and only if, they are written as the same JSON.

    Each object and list is visited once. They must not change after that.
    """

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[
            int, tuple[Any, int]
        ] = {}  # by identity, which holds as long as the object is kept

    def of(self, value: Any) -> int:
        """The number of a value of JSON. Raises SchemaError where there is too much of it."""
        kind = type(value)
        if kind is str:
            return self._numbers.setdefault(value, len(self._numbers))
        if not isinstance(value, (dict, list)):
            # 1 and True are the same to a dict, and so are 1 and 1.0.
            return self._number((kind, value if isinstance(value, str) else repr(value)))
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        self._effort.spend(1 + len(value) // 4)
        key: Hashable
        if isinstance(value, dict):
            key = frozenset([(name, self.of(one)) for name, one in value.items()])
        else:
            key = tuple([self.of(one) for one in value])
        number = self._number(key)
        self._known[id(value)] = value, number
        return number

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))
