"""Holds several locks, even if Ctrl-C comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")

_NONE: AbstractContextManager[Any] = nullcontext()


def holding(locks: Sequence[AbstractContextManager[Any]], work: Callable[[], T]) -> T:
    """Run a block while all locks are held, acquired in their order.

    Only ``with`` is used: a signal handler cannot separate it from the lock that it acquired. An
    exception within ``ExitStack.enter_context()`` would leave the lock held for ever.
    """
    if not locks:
        return work()
    a, b, c, d, e, f, g, h = [*locks[:8], *[_NONE] * (8 - len(locks))]
    with a, b, c, d, e, f, g, h:
        return holding(locks[8:], work)
