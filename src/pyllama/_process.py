"""Ends the use of llama.cpp in a process after fork(), and at the interpreter's exit.

A child of fork() lacks the threads that llama.cpp computes with, and would wait for them.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from typing import Any

from pyllama._native._binding import lib
from pyllama.errors import ClosedError, ForkedError

# Whether this process is the child of one that had loaded llama.cpp's backends.
forked = False

# Whether the exit handlers have run: every object counts as closed.
ended = False

# Whether either of these is true.
unusable = False

# How long the interpreter's exit waits for threads that are inside llama.cpp.
_PATIENCE = 10.0

# Locks that a thread of the parent may have held. In the child no thread would release them.
_locked: weakref.WeakSet[Any] = weakref.WeakSet()

# Contexts, whose GPUs must be idle before their drivers are unloaded.
_computing: weakref.WeakSet[Any] = weakref.WeakSet()


def make_lock(owner: Any) -> threading.RLock:
    """A lock for the owner's ``_lock``, replaced in a child."""
    _locked.add(owner)
    return threading.RLock()


def watch() -> None:
    """From now on llama.cpp may have threads, so a child must not use it."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
        os.register_at_fork(after_in_child=_forbid)


def settle_at_exit(handle: Any) -> None:
    """Wait for a context's devices when the interpreter ends."""
    _computing.add(handle)


def check() -> None:
    """

    Raises:
        ForkedError: in a child of a process that had loaded backends.
        ClosedError: when the interpreter is ending.
    """
    if forked:
        raise ForkedError(
            "this process was forked from one that uses pyllama, and fork() does not copy "
            "llama.cpp's threads. Start processes with multiprocessing's 'spawn' or 'forkserver' "
            "method, or fork before the first model is loaded"
        )
    if ended:
        raise ClosedError("the interpreter is ending, and pyllama is closed")


def _forbid() -> None:
    global forked, unusable
    forked = unusable = True
    for owner in _locked:
        owner._lock = threading.RLock()


def _end() -> None:
    """Refuse new calls of llama.cpp, and wait until threads that are inside have left.

    Nothing is freed. A computation on the CPU stops at its next operation.
    """
    global ended, unusable
    if forked:
        return
    ended = unusable = True
    lib.pyllama_end()
    deadline = time.monotonic() + _PATIENCE
    # In steps, so that Ctrl-C ends the wait.
    try:
        while not lib.pyllama_wait_until_left(50):
            if time.monotonic() > deadline:
                break
        else:
            for handle in list(_computing):
                if handle.pointer is not None:
                    lib.pyllama_settle_context(handle.pointer)
            return
    finally:
        if not lib.pyllama_wait_until_left(0):
            # What those threads use must not be destroyed.
            lib.pyllama_leave_without_destructors()


# After the exit handlers of importing modules, which are called first.
atexit.register(_end)
