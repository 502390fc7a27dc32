"""Starting a thread where memory may be short, and where Ctrl-C may come."""

from __future__ import annotations

import mmap
import sys
import threading

from adapter.errors import LlamaCppError, ModelNotLoadedError, TransientError

_ROOM = 12 << 20
"""Bytes for a thread's stack, and for what it needs before it says that it runs."""


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, or raise why there is none.

    CPython waits until the new thread says that it runs: for ever, if that one finds no memory to
    say it. So there must be room for it first. And an interrupt of that wait may arrive as the
    RuntimeError of a lock; it is raised as what it is. The thread may then run nevertheless.

    Raises RuntimeError where the process has as many threads as it may, and MemoryError.
    """
    require_room()
    outer = sys.exc_info()[1]
    try:
        thread.start()
    except RuntimeError as error:
        cause = error.__context__
        while cause is not None and cause is not outer:
            if not isinstance(cause, Exception):
                raise cause from None
            cause = cause.__context__
        raise


def not_started(error: BaseException, wanted_for: str) -> LlamaCppError:
    """What to raise where ``start_thread`` raised RuntimeError or MemoryError.

    Args:
        wanted_for: what the thread was wanted for, such as ``"to load a model on"``.
    """
    own: LlamaCppError
    if "interpreter shutdown" in str(error):  # of Python 3.12, once the main thread has ended
        own = ModelNotLoadedError(
            "",
            f"no thread {wanted_for}: the main thread has ended, and Python starts no others then. "
            "Load models before that, and have the main thread wait for the others",
        )
    else:
        own = TransientError(
            f"no thread {wanted_for}: {error}. This process has too many threads, or too little "
            "memory; the next request tries again"
        )
    own.__cause__ = error
    return own


def require_room() -> None:
    """Raise MemoryError unless there is room for another thread."""
    try:
        if sys.platform == "win32":
            mmap.mmap(-1, _ROOM).close()
        else:
            mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"there is no room for another thread: {error}") from error
