"""Holding several locks, whatever Ctrl-C meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")

_NONE: AbstractContextManager[Any] = nullcontext()


def holding(locks: Sequence[AbstractContextManager[Any]], work: Callable[[], T]) -> T:
    """Do something while all locks are held, taken in their order.

    By ``with`` alone, which a signal's handler cannot part from the lock that it took. One that
    raises in ``ExitStack.enter_context()`` leaves it locked for ever.
    """
    if not locks:
        return work()
    a, b, c, d, e, f, g, h = [*locks[:8], *[_NONE] * (8 - len(locks))]
    with a, b, c, d, e, f, g, h:
        return holding(locks[8:], work)
