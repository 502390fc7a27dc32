"""Ends the threads of schedulers before the interpreter frees what they compute with.

Handlers of ``atexit`` run in the reverse order of their registration, after all non-daemon threads
have ended. This one is registered when the first scheduler's thread starts. By then a model is in
memory, so this handler runs before pyllama's own, which frees contexts.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import Protocol

from adapter.errors import ModelNotLoadedError

EXIT_SECONDS = 10.0
"""How long the end of the interpreter waits for threads, in seconds. A device may hang."""


class Stoppable(Protocol):
    """Has a thread that must not run when contexts are freed."""

    def stop(self) -> None:
        """Let the thread end soon."""

    def close(self, timeout: float | None = None) -> None:
        """End the thread, and wait for its end, at most `timeout` seconds."""

    def forget_thread(self) -> None:
        """Refuse further use: a child of fork() does not have the thread."""


class _Threads:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owners: weakref.WeakSet[Stoppable] = weakref.WeakSet()
        self._registered = False
        self._ending = False

    def add(self, owner: Stoppable) -> None:
        with self._lock:
            if self._ending:
                raise ModelNotLoadedError("", "the program is ending, and starts no more requests")
            if not self._registered:
                self._registered = True
                atexit.register(self._end)
                if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
                    os.register_at_fork(after_in_child=self._forget)
            self._owners.add(owner)

    def _end(self) -> None:
        with self._lock:
            self._ending = True
            owners = list(self._owners)
        for owner in owners:
            owner.stop()
        until = time.monotonic() + EXIT_SECONDS
        for owner in owners:
            owner.close(max(0.0, until - time.monotonic()))

    def _forget(self) -> None:
        self._lock = threading.Lock()
        for owner in list(self._owners):
            owner.forget_thread()
        self._owners = weakref.WeakSet()


_threads = _Threads()


def end_at_exit(owner: Stoppable) -> None:
    """Close it when the interpreter exits. The caller may close it earlier.

    Raises:
        ModelNotLoadedError: the interpreter is exiting.
    """
    _threads.add(owner)
