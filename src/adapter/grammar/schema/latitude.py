"""Where a text may depart from the schema's own order of keys, because it remains valid.

Models write what they were taught, and some was written by hand: a file of settings begins with the
address of its schema, and keys that may be left out stand where their author thought of them.
"""

from __future__ import annotations

from typing import Any

_MOST_DECLARED = 100
"""The most declared keys of a schema in which some may come ahead of their order."""

_MOST_AHEAD = 1000
"""The most rules of a schema that let them."""

_LONGEST_NAME = 200

_ELSEWHERE = frozenset(("$ref", "anyOf", "oneOf"))
"""Keywords with which a schema leaves it to others what its texts are."""


def room_ahead(document: Any) -> int:
    """How many rules may let keys come ahead of a schema's order. A large schema has none, so that
    only small grammars grow.
    """
    n_declared = 0
    todo = [document]
    while todo and n_declared <= _MOST_DECLARED:
        value = todo.pop()
        if isinstance(value, dict):
            properties = value.get("properties")
            n_declared += len(properties) if isinstance(properties, dict) else 0
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return _MOST_AHEAD if n_declared <= _MOST_DECLARED else 0


def own_names(document: Any) -> list[str]:
    """How a text may name its schema in a member "$schema": by the schema's own one, or by its
    address. Empty if the schema has no "$schema", or says which order of keys it wants.
    """
    if not isinstance(document, dict) or not _ELSEWHERE.isdisjoint(document):
        return []
    if document.get("x-key-order") is not None:
        return []
    named = [document.get(keyword) for keyword in ("$schema", "$id", "id")]
    texts = [one for one in named if isinstance(one, str) and 0 < len(one) <= _LONGEST_NAME]
    return [*dict.fromkeys(texts)] if isinstance(named[0], str) else []
