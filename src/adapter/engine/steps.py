"""An answer in steps, so that whoever waits for it may do so in its own way.

A step is something to wait for, or a part of the answer. A caller's thread sleeps until it can take
the next one. The async engine is called back instead.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from adapter.generation.pending import NOT_YET, Pending

T = TypeVar("T")
R = TypeVar("R")

Steps: TypeAlias = Generator[Pending[Any] | T, None, None]
"""Parts of an answer, and before each what is to be waited for."""

Waits: TypeAlias = Generator[Pending[Any], None, R]
"""What is to be waited for until there is a result."""


def outcome_of(pending: Pending[T]) -> Waits[T | None]:
    """Return what comes next of a request to a generator; None once it was cancelled."""
    while (outcome := pending.take()) is NOT_YET:
        yield pending
    return outcome


def waited_for(steps: Steps[T]) -> Generator[T, None, None]:
    """Take the steps in the calling thread, which waits; yield the parts of the answer."""
    try:
        for step in steps:
            if isinstance(step, Pending):
                step.wait()
            else:
                yield step
    finally:
        steps.close()
