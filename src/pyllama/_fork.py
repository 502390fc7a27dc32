"""fork(): a child has none of the threads that llama.cpp computes with, and would wait for them."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from pyllama.errors import ForkedError

# Whether this process is the child of one that had loaded llama.cpp's backends.
forked = False

# Locks that a thread of the parent may have held; in the child nobody would release them.
_locked: weakref.WeakSet[Any] = weakref.WeakSet()


def make_lock(owner: Any) -> threading.RLock:
    """A lock for the owner's ``_lock``, made anew in a child."""
    _locked.add(owner)
    return threading.RLock()


def watch() -> None:
    """From now on llama.cpp may have threads: a child must not use it."""
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
        os.register_at_fork(after_in_child=_forbid)


def check() -> None:
    """
    :raises ForkedError: in such a child.
    """
    if forked:
        raise ForkedError(
            "this process was forked from one that uses pyllama, and llama.cpp's threads do not "
            "come along. Start processes with multiprocessing's 'spawn' or 'forkserver' method, or "
            "fork before the first model is loaded"
        )


def _forbid() -> None:
    global forked
    forked = True
    for owner in _locked:
        owner._lock = threading.RLock()
