"""Checks of the integers that a pool and the placement of a model are given."""

from __future__ import annotations

from adapter.errors import InvalidParameterError

MAX_CONTEXT_LENGTH = 2**24
"""Tokens of the longest context that memory_use() measures."""

MAX_LAYERS = 2**31 - 1


def require_integer(
    name: str, value: int | None, *, least: int | None = None, most: int | None = None
) -> None:
    """Raise InvalidParameterError unless the value is None or an integer in these limits."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or (
        whole and (least is None or value >= least) and (most is None or value <= most)
    ):
        return
    limits = [] if least is None else [f"at least {least}"]
    limits += [] if most is None else [f"at most {most}"]
    of_limits = f" of {' and '.join(limits)}" if limits else ""
    raise InvalidParameterError(name, value, f"an integer{of_limits}, or None")
