"""How the scheduler's thread hands over what it computed for a request."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from adapter.generation.pending import NOT_YET, Taken

T = TypeVar("T")


class NobodyComputes(Exception):
    """The thread that computes ended without giving an outcome."""


LATE_SECONDS = 1.0
"""How long after its deadline a caller waits for the scheduler's thread to end its request, in
seconds.
"""

LOOK_SECONDS = 2.0
"""How often a waiting caller checks whether its request was cancelled and whether the computing
thread still lives, in seconds.
"""


class Outcomes(Generic[T]):
    """What one request's caller gets, in order.

    The scheduler's thread normally ends a request within one step of its deadline or cancellation.
    A step takes longer if a device or a server hangs. The caller does not wait for that.

    Args:
        deadline: when the request's time is over, as ``time.monotonic`` counts; or None.
    """

    def __init__(self, deadline: float | None, cancelled: threading.Event) -> None:
        self._deadline = deadline
        self._cancelled = cancelled
        self._given: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._listeners: list[Callable[[], object]] = []  # one at most

    def put(self, outcome: T | None) -> None:
        """Give the caller an outcome; None if the request was given up."""
        self._given.put(outcome)
        if self._listeners:
            self.wake()

    def take(self, lives: Callable[[], bool], *, wait: bool = False) -> Taken[T]:
        """Return the next outcome; NOT_YET if there is none; None once the request was cancelled.

        Args:
            lives: whether the thread that computes still lives.
            wait: wait until there is an outcome, instead of returning NOT_YET.

        Raises:
            TimeoutError: the time is over, and the scheduler's thread has not ended the request.
            NobodyComputes: the thread has ended.
        """
        while True:
            patience = self._patience()
            if wait or not self._given.empty():  # no other thread takes from it
                with suppress(queue.Empty):
                    return self._given.get(timeout=max(0.0, patience))
            if self._cancelled.is_set():
                return None
            if patience <= 0:
                raise TimeoutError
            if not lives():
                with suppress(queue.Empty):  # given just before its end
                    return self._given.get_nowait()
                raise NobodyComputes
            if not wait:
                return NOT_YET

    def listen(self, ready: Callable[[], object]) -> None:
        """Have a function called once, as soon as there is an outcome."""
        self._listeners[:] = [ready]
        if not self._given.empty():  # it came before anybody listened
            self.wake()

    def wake(self) -> None:
        """Call the function that listens, if there is one. If several threads do so, one of them
        calls it. If it fails for want of memory or threads, the next wake() calls it again.
        """
        try:
            ready = self._listeners.pop()
        except IndexError:
            return
        try:
            ready()
        except (MemoryError, RuntimeError):
            self._listeners.append(ready)

    def _patience(self) -> float:
        if self._deadline is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, self._deadline + LATE_SECONDS - time.monotonic())
