"""Grammars are made without the garbage collector.

A grammar is made of thousands of expressions. None of them is in a reference cycle, so they are
freed as soon as it is made. Until then their number has the collector look through all objects of
the process again and again. That took up to 15 ms each time, and found nothing.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

_paused = Lock()


def collections_paused(make: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Have a function run without collections, unless another thread is in such a function.

    So collections stop for as long as one call takes, however many there are. If another thread
    calls gc.disable() meanwhile, its wish is lost.
    """

    @wraps(make)
    def paused(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        if not gc.isenabled() or not _paused.acquire(blocking=False):
            return make(*args, **kwargs)
        try:
            gc.disable()
            return make(*args, **kwargs)
        finally:
            try:
                gc.enable()
            finally:
                _paused.release()

    return paused


def _resume() -> None:
    """Collect in a child process, in which the thread that would have resumed is missing."""
    if _paused.locked():
        gc.enable()
        _paused.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
    os.register_at_fork(after_in_child=_resume)
