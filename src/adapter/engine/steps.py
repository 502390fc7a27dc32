"""An answer in steps, so that its caller may wait for it in either way.

A step is something to wait for, or a part of the answer. A sync caller's thread sleeps until it can
take the next step. An async caller is called back.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from adapter.generation.pending import NOT_YET, Pending

T = TypeVar("T")
R = TypeVar("R")

Steps: TypeAlias = Generator[Pending[Any] | T, None, None]
"""Parts of an answer, and things to wait for between them."""

Waits: TypeAlias = Generator[Pending[Any], None, R]
"""Things to wait for until there is a result."""


def outcome_of(pending: Pending[T]) -> Waits[T | None]:
    """Return what a request gives next; None once it was cancelled."""
    while (outcome := pending.take()) is NOT_YET:
        yield pending
    return outcome


def waited_for(steps: Steps[T]) -> Generator[T, None, None]:
    """Take the steps in the calling thread, which waits. Yields the parts of the answer."""
    try:
        for step in steps:
            if isinstance(step, Pending):
                step.wait()
            else:
                yield step
    finally:
        steps.close()
