"""A scheduler's request, seen from its caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar

from adapter.errors import ModelNotLoadedError, RequestTimeoutError
from adapter.generation.failures import for_one_caller
from adapter.generation.outcomes import NobodyComputes, Outcomes
from adapter.generation.pending import Pending, Taken

T = TypeVar("T")


class Arrival(Protocol[T]):
    """What the caller uses of a Sequence or a ScoringJob."""

    events: Outcomes[T | BaseException]
    abandoned: bool

    def fail(self, error: BaseException) -> None: ...
    def out_of_time(self) -> RequestTimeoutError: ...


class Computing(Protocol):
    """What the caller of a request uses of a Scheduler."""

    @property
    def forked(self) -> bool: ...
    def lives(self) -> bool: ...
    def refuse(self) -> NoReturn: ...


class Submitted(Pending[T], Generic[T]):
    """A request in a scheduler. See ``Pending``.

    Args:
        enqueue: adds the request to the queue.
    """

    def __init__(
        self, scheduler: Computing, arrival: Arrival[T], enqueue: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._arrival = arrival
        self._enqueue = enqueue
        self._enqueued = False

    def take(self, *, wait: bool = False) -> Taken[T]:
        """Return what comes next; the first call enqueues the request."""
        if not self._enqueued:
            self._enqueue()
            self._enqueued = True
        if self._scheduler.forked:
            self._scheduler.refuse()
        try:
            outcome = self._arrival.events.take(self._scheduler.lives, wait=wait)
        except TimeoutError:
            raise self._arrival.out_of_time() from None
        except NobodyComputes:
            self._arrival.fail(closed_error())  # as that thread would have done
            self._scheduler.refuse()
        if isinstance(outcome, BaseException):
            raise for_one_caller(outcome)
        return outcome

    def listen(self, ready: Callable[[], object]) -> None:
        """Call a function once, when there is something to take or at ``wake``."""
        self._arrival.events.listen(ready)

    def wake(self) -> None:
        """Call the function that listens, if there is one that was not called yet."""
        self._arrival.events.wake()

    def stop(self) -> None:
        """Stop the computation within a step, if it has not ended."""
        self._arrival.abandoned = True


def closed_error() -> ModelNotLoadedError:
    """The error of requests to a closed scheduler."""
    return ModelNotLoadedError("", "it was closed; load it again")
