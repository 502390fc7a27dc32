"""A request that is being computed, seen from its caller."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Generic, Literal, TypeAlias, TypeVar

T = TypeVar("T")


class NotYet(Enum):
    """The type of NOT_YET."""

    NOT_YET = "nothing yet"


NOT_YET: Literal[NotYet.NOT_YET] = NotYet.NOT_YET
"""What ``take`` returns while there is nothing to take."""

Taken: TypeAlias = T | Literal[NotYet.NOT_YET] | None


class Pending(ABC, Generic[T]):
    """A request to a generator. Its caller waits in ``take``, or is called back by ``listen``."""

    #: What the request needs until it is closed.
    held: AbstractContextManager[object] = nullcontext()

    @abstractmethod
    def take(self, *, wait: bool = False) -> Taken[T]:
        """Return what comes next. The first call starts the computation.

        Args:
            wait: have the calling thread wait for it.

        Returns:
            None once the request was cancelled; NOT_YET if nothing is there, and it is not waited
            for.

        Raises:
            ContextTooLongError: on the first call, the request does not fit into the context.
            QueueFullError: on the first call, too many requests wait.
            LlamaCppError: what the request failed with.
        """

    @abstractmethod
    def listen(self, ready: Callable[[], object]) -> None:
        """Call a function once, when there is something to take or at ``wake``.

        The computing thread calls it and waits for it. If there is something already, it is called
        at once.
        """

    @abstractmethod
    def wake(self) -> None:
        """Call the function that listens, if there is one that was not called yet."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the computation within a step, if it has not ended."""

    def close(self) -> None:
        """Stop the computation, and give back what it needs."""
        with self.held:
            self.stop()


def taken_from(pending: Pending[T]) -> T | None:
    """Wait for what comes next; None once the request was cancelled."""
    outcome = pending.take(wait=True)
    assert outcome is not NOT_YET
    return outcome
