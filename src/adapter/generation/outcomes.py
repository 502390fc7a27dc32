"""How a caller's thread waits for what the scheduler's thread gives it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class NobodyComputes(Exception):
    """The thread that was to give an outcome has ended without a word."""


LATE_SECONDS = 1.0
"""How long after its deadline a caller waits for the scheduler's thread to end its request."""

LOOK_SECONDS = 2.0
"""How often a caller that is given nothing looks whether its request was cancelled, and whether the
thread still lives that computes it."""


class Outcomes(Generic[T]):
    """What one request's caller is given, in order.

    As a rule the scheduler's thread ends a request within one step of its deadline, or of being
    cancelled. A step takes longer where a device or a server hangs: the caller does not wait for
    that.

    Args:
        deadline: when the request's time is over, as ``time.monotonic`` counts; or None.
    """

    def __init__(self, deadline: float | None, cancelled: threading.Event) -> None:
        self._deadline = deadline
        self._cancelled = cancelled
        self._given: queue.SimpleQueue[T | None] = queue.SimpleQueue()

    def put(self, outcome: T | None) -> None:
        """Give the caller something; None where it gave up."""
        self._given.put(outcome)

    def get(self, lives: Callable[[], bool]) -> T | None:
        """Wait for the next; None once the request was cancelled.

        Args:
            lives: whether there still is somebody who gives outcomes.

        Raises:
            TimeoutError: its time is over, and the scheduler's thread has not ended it.
            NobodyComputes: there is nobody any more.
        """
        while True:
            patience = LOOK_SECONDS
            if self._deadline is not None:
                patience = min(patience, self._deadline + LATE_SECONDS - time.monotonic())
            try:
                return self._given.get(timeout=max(0.0, patience))
            except queue.Empty:
                if self._cancelled.is_set():
                    return None
                if patience <= 0:
                    raise TimeoutError from None
                if not lives():
                    with suppress(queue.Empty):  # what it gave before its end
                        return self._given.get_nowait()
                    raise NobodyComputes from None
