"""A request of a scheduler, as its caller sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NoReturn, Protocol, TypeVar

from adapter.errors import ModelNotLoadedError, RequestTimeoutError
from adapter.generation.failures import for_one_caller
from adapter.generation.outcomes import NobodyComputes, Outcomes
from adapter.generation.pending import Pending, Taken

T = TypeVar("T")


class Arrival(Protocol[T]):
    """A Sequence or a ScoringJob, as far as its caller uses it."""

    events: Outcomes[T | BaseException]
    abandoned: bool

    def fail(self, error: BaseException) -> None: ...
    def out_of_time(self) -> RequestTimeoutError: ...


class Computing(Protocol):
    """A Scheduler, as far as the callers of requests use it."""

    @property
    def forked(self) -> bool: ...
    def lives(self) -> bool: ...
    def refuse(self) -> NoReturn: ...


class Submitted(Pending[T], Generic[T]):
    """A request on its way through a scheduler. See ``Pending``.

    Args:
        enqueue: has the request wait for its turn.
    """

    def __init__(
        self, scheduler: Computing, arrival: Arrival[T], enqueue: Callable[[], None]
    ) -> None:
        self._scheduler = scheduler
        self._arrival = arrival
        self._enqueue = enqueue
        self._enqueued = False

    def take(self) -> Taken[T]:
        """Return what comes next; the first call enqueues the request."""
        if not self._enqueued:
            self._enqueue()
            self._enqueued = True
        if self._scheduler.forked:
            self._scheduler.refuse()
        try:
            outcome = self._arrival.events.take(self._scheduler.lives)
        except TimeoutError:
            raise self._arrival.out_of_time() from None
        except NobodyComputes:
            self._arrival.fail(closed_error())  # as that thread would have
            self._scheduler.refuse()
        if isinstance(outcome, BaseException):
            raise for_one_caller(outcome)
        return outcome

    def wait(self) -> None:
        """Wait until there is something to take, or it is time to look why there is nothing."""
        self._arrival.events.wait()

    def listen(self, ready: Callable[[], object]) -> None:
        """Have a function called once, when there is something to take or by ``wake``."""
        self._arrival.events.listen(ready)

    def wake(self) -> None:
        """Call the function that listens, if there is one and it was not called yet."""
        self._arrival.events.wake()

    def close(self) -> None:
        """Have the computation stop within a step, if it has not ended."""
        self._arrival.abandoned = True


def closed_error() -> ModelNotLoadedError:
    """What the requests of a closed scheduler end with."""
    return ModelNotLoadedError("", "it was closed; load it again")
