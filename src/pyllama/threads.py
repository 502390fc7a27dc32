"""Starts threads while memory may be short."""

# queue and mmap are imported where they are used: ``import pyllama`` does without them.

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

_ROOM = 12 << 20
"""Bytes for a thread's stack and for what it needs until it runs."""

_LOOK = 0.5
"""Seconds after which a thread that does not run yet is checked."""


def start(work: Callable[[], object], name: str) -> None:
    """Run work on a daemon thread, and wait until it begins.

    CPython waits until the new thread reports that it runs: for ever, if the thread finds no memory
    to do so. So there must be room for it first. It may also end right after that.

    Raises:
        RuntimeError: the process has as many threads as it may.
        MemoryError: there is no room for another.
    """
    import queue

    require_room()
    started: queue.SimpleQueue[None] = queue.SimpleQueue()

    def begin() -> None:
        started.put(None)
        work()

    thread = threading.Thread(target=begin, name=name, daemon=True)
    thread.start()
    while True:
        lives = thread.is_alive()
        try:
            return started.get(timeout=_LOOK if lives else 0)
        except queue.Empty:
            if not lives:
                raise MemoryError(f"the thread {name!r} ended before it began") from None


def require_room() -> None:
    """Raise MemoryError unless there is room for another thread."""
    import mmap

    try:
        if sys.platform == "win32":
            mmap.mmap(-1, _ROOM).close()
        else:
            mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"there is no room for another thread: {error}") from error
