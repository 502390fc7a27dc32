"""Ownership of C objects: each is freed once, and never before what was made from it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from pyllama import _process
from pyllama._callbacks import raise_polled
from pyllama.errors import ClosedError

P = TypeVar("P")


class Handle(Generic[P]):
    """One C object and how to free it.

    The finalizer is rooted outside the object and refers to what this one needs (``needs``). So a
    model outlives its contexts in C, whatever order the garbage collector takes. ``with handle as
    pointer`` keeps the C object alive for the block, even if another thread closes its owner.

    At exit nothing is freed: another thread may be inside a call, and the operating system reclaims
    everything.
    """

    __slots__ = ("__weakref__", "_finalizer", "pointer")

    def __init__(
        self, pointer: P, free: Callable[[P], object], *needs: object, at_exit: bool = False
    ) -> None:
        self.pointer = pointer
        self._finalizer = weakref.finalize(self, _free, free, pointer, needs)
        self._finalizer.atexit = at_exit

    def __enter__(self) -> P:
        pointer = self.pointer
        if pointer is None:
            raise ClosedError("the object was closed meanwhile")
        return pointer

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            raise_polled()  # what a signal handler raised while C logged a line

    def release(self) -> None:
        """Free the C object. Nobody may be using it."""
        self.pointer = cast("P", None)
        self._finalizer()

    def leave(self) -> None:
        """Never free the C object, but let it be read."""
        self._finalizer.detach()

    def disown(self) -> None:
        """Never free the C object: it belongs to another owner, or must not be touched again."""
        self.pointer = cast("P", None)
        self._finalizer.detach()


def _free(free: Callable[[P], object], pointer: P, _needs: tuple[object, ...]) -> None:
    if not _process.forked:  # the parent frees what it made
        free(pointer)
