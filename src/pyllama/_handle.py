"""Ownership of C objects: freed once, and never before what was made from them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from pyllama import _fork


class Handle:
    """One C object and how to free it.

    The finalizer is rooted outside the object and holds the handles that this one stands on, so
    a model outlives its contexts in C whatever order the garbage collector takes. ``with handle
    as pointer`` keeps the C object alive for the block, even if another thread closes its owner.
    """

    __slots__ = ("__weakref__", "pointer", "release")

    def __init__(
        self, pointer: Any, free: Callable[[Any], object], *needs: Handle, at_exit: bool = False
    ) -> None:
        self.pointer = pointer
        self.release = weakref.finalize(self, _free, free, pointer, needs)
        # Left to the operating system unless computing must have stopped before exit: another
        # thread may still be inside a call.
        self.release.atexit = at_exit

    def __enter__(self) -> Any:
        return self.pointer

    def __exit__(self, *exc_info: object) -> None:
        pass


def _free(free: Callable[[Any], object], pointer: Any, _needs: tuple[Handle, ...]) -> None:
    if not _fork.forked:  # what the parent made is the parent's to free
        free(pointer)
