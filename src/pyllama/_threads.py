"""Threads that begin, or say that they do not.

``threading.Thread.start`` waits until the new thread says that it runs: for ever, where that one
finds no memory to say it.
"""

# queue and mmap are imported where they are used: ``import pyllama`` does without them.

from __future__ import annotations

import _thread
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from queue import SimpleQueue

_ROOM = 12 << 20
"""Bytes for a thread's stack, and for what it needs before it begins."""


class _Begin:
    """What a new thread does. It alone refers to this, so that its end is seen."""

    def __init__(self, said: SimpleQueue[object], work: Callable[[], object]) -> None:
        self._said = said
        self._work = work

    def __call__(self) -> None:
        self._said.put(None)
        self._work()


def start(work: Callable[[], object]) -> None:
    """Do something on a thread of its own, which keeps no program from ending.

    Raises:
        RuntimeError: the process has as many threads as it may.
        MemoryError: there is no room for another.
    """
    import queue

    _require_room()
    said: SimpleQueue[object] = queue.SimpleQueue()
    begin = _Begin(said, work)
    ended = weakref.ref(begin, said.put)
    _thread.start_new_thread(begin, ())
    del begin
    if said.get() is ended:
        raise MemoryError("a thread ended before it began")


def _require_room() -> None:
    import mmap

    try:
        if sys.platform == "win32":
            mmap.mmap(-1, _ROOM).close()
        else:
            mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"there is no room for another thread: {error}") from error
