"""An answer in steps, so that its caller may wait for it in either way.

A step is something to wait for, or a part of the answer. The thread of a sync caller waits within
the steps. An async caller is called back.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar, cast

from adapter.generation.pending import NOT_YET, Pending

T = TypeVar("T")
R = TypeVar("R")

Steps: TypeAlias = Generator[Pending[Any] | T, None, None]
"""Parts of an answer, and things to wait for between them."""

Waits: TypeAlias = Generator[Pending[Any], None, R]
"""Things to wait for until there is a result."""


def outcome_of(pending: Pending[T], *, wait: bool) -> Waits[T | None]:
    """Return what a request gives next; None once it was cancelled."""
    while (outcome := pending.take(wait=wait)) is NOT_YET:
        yield pending
    return outcome


def parts_of(steps: Steps[T]) -> Generator[T, None, None]:
    """The steps of a caller whose thread waits: parts of the answer alone."""
    return cast("Generator[T, None, None]", steps)
