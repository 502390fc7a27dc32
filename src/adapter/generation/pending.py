"""A request that is being computed, as whoever asked for it sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Generic, Literal, TypeAlias, TypeVar

T = TypeVar("T")


class NotYet(Enum):
    """The type of NOT_YET."""

    NOT_YET = "nothing yet"


NOT_YET: Literal[NotYet.NOT_YET] = NotYet.NOT_YET
"""What there is to take while nothing was computed."""

Taken: TypeAlias = T | Literal[NotYet.NOT_YET] | None


class Pending(ABC, Generic[T]):
    """A request to a generator: either a thread waits for what it gives, or is called back.

    Only ``take`` is needed for the result. ``wait`` and ``listen`` are the two ways to know when to
    call it again.
    """

    @abstractmethod
    def take(self) -> Taken[T]:
        """Return what comes next, without waiting for it. The first call starts the computation.

        Returns:
            None once the request was cancelled; NOT_YET if nothing is there.

        Raises:
            ContextTooLongError: on the first call, the request does not fit into the context.
            QueueFullError: on the first call, too many requests wait.
            LlamaCppError: what the request failed with.
        """

    @abstractmethod
    def wait(self) -> None:
        """Wait until there is something to take, or for LOOK_SECONDS."""

    @abstractmethod
    def listen(self, ready: Callable[[], object]) -> None:
        """Have a function called once: when there is something to take, or by ``wake``.

        It is called by the thread that computes, which waits for it meanwhile; or at once.
        """

    @abstractmethod
    def wake(self) -> None:
        """Call the function that listens, if there is one and it was not called yet."""

    @abstractmethod
    def close(self) -> None:
        """Have the computation stop within a step, if it has not ended."""


def taken_from(pending: Pending[T]) -> T | None:
    """Wait for what comes next; None once the request was cancelled."""
    while (outcome := pending.take()) is NOT_YET:
        pending.wait()
    return outcome
