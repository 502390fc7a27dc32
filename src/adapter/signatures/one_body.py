"""One body for a call that blocks and its twin that is awaited.

The body is a coroutine that awaits what its caller gives it. If that blocks, the coroutine runs
from its beginning to its end without a pause, and needs no event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Answers: TypeAlias = list[dict[str, Any]]
"""The output fields of each candidate."""

Ask: TypeAlias = Callable[..., Awaitable[Any]]
"""Awaits the answers of an adapter, or the response of an lm."""


def blocking(call: Callable[..., Any]) -> Ask:
    """A call that blocks, to be awaited."""
    return partial(_at_once, call)


async def _at_once(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)


def completed(body: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits only calls that block."""
    try:
        body.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it awaits something that does not block")
