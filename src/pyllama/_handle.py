"""Ownership of C objects: freed once, and never before what was made from them."""

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

    The finalizer is rooted outside the object and holds what this one stands on (``needs``), so
    a model outlives its contexts in C whatever order the garbage collector takes. ``with handle
    as pointer`` keeps the C object alive for the block, even if another thread closes its owner.

    At exit nothing is freed: another thread may be inside a call, and the operating system takes
    it all back.
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
        """Never free the C object, though it can be looked at."""
        self._finalizer.detach()

    def disown(self) -> None:
        """Never free the C object: it is another's, or must not be touched again."""
        self.pointer = cast("P", None)
        self._finalizer.detach()


def _free(free: Callable[[P], object], pointer: P, _needs: tuple[object, ...]) -> None:
    if not _process.forked:  # what the parent made is the parent's to free
        free(pointer)
