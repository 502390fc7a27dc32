"""How much work a schema may take: some schemas are made to take very long.

The limits count work and not time, so a schema is refused everywhere or nowhere.
"""

from __future__ import annotations

from adapter.grammar.schema.merging import SchemaError

MAX_CHARACTERS = 2**21
"""The most characters of a schema's JSON."""

MAX_LEVELS = 100
"""How deep objects, arrays, unions and references may nest."""

MAX_WORK = 2_000_000
"""The most steps of about a microsecond: keywords read, values written, texts matched."""

MAX_COMPARED = 100_000
"""The most pairs of a oneOf's options that are compared."""


class Effort:
    """Counts the work on one schema."""

    def __init__(self) -> None:
        self._work = 0
        self._level = 0

    def spend(self, steps: int) -> None:
        """Count steps. Raises SchemaError once there are more than MAX_WORK."""
        self._work += steps
        if self._work > MAX_WORK:
            raise SchemaError(
                f"it takes more than {MAX_WORK:,} steps to make a grammar of it; give it fewer or "
                "smaller schemas, unions and enums"
            )

    def __enter__(self) -> None:
        self._level += 1
        if self._level > MAX_LEVELS:
            raise too_deep()

    def __exit__(self, *exc_info: object) -> None:
        self._level -= 1


def require_short(text: str) -> None:
    """Refuse a schema whose JSON is too long. Raises SchemaError."""
    if len(text) > MAX_CHARACTERS:
        raise SchemaError(f"its JSON has more than {MAX_CHARACTERS:,} characters: {len(text):,}")


def too_deep() -> SchemaError:
    """The error of a schema that nests too deep, for the limit or for Python's stack."""
    return SchemaError(
        f"it nests too deep: more than {MAX_LEVELS} objects, arrays, unions and references lie "
        "within each other, or more than the thread's stack has room for"
    )
