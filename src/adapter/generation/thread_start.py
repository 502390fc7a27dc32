"""Starts threads while memory may be short and Ctrl-C may come."""

from __future__ import annotations

import sys
import threading

from adapter.errors import LlamaCppError, ModelNotLoadedError, TransientError
from pyllama.threads import require_room


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, or raise why it cannot be started.

    CPython waits until the new thread reports that it runs: for ever, if the thread finds no memory
    to do so. So there must be room for it first. An interrupt of that wait may arrive as the
    RuntimeError of a lock, and is raised as what it is. The thread may run nevertheless.

    Raises:
        RuntimeError: the process has as many threads as it may.
        MemoryError: there is no room for another.
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
    """The error to raise after ``start_thread`` raised RuntimeError or MemoryError.

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
