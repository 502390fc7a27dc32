"""What the classes that own a C object have in common: closing, poisoning, and a lock."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pyllama import _fork
from pyllama._guard import check
from pyllama._handle import Handle
from pyllama.errors import ClosedError, NativeAssertionError, PoisonedError, ServerLostError

if TYPE_CHECKING:
    from typing_extensions import Self


class NativeObject:
    """Owns one C object, from ``_own()`` until ``close()``.

    ``_lock`` is held by calls that change the object, so that threads take turns, and that
    closing waits for a call that another thread is in.
    """

    _handle: Handle | None = None
    _poison: str | None = None
    _lost: str | None = None

    def __init__(self) -> None:
        self._lock = _fork.make_lock(self)

    def _own(
        self,
        pointer: Any,
        free: Callable[[Any], object],
        *needs: Handle,
        at_exit: bool = False,
    ) -> None:
        self._handle = Handle(pointer, free, *needs, at_exit=at_exit)

    def _open(self) -> Handle:
        """The handle, kept alive by whoever holds it.

        :raises ForkedError: in a child of fork().
        :raises ClosedError: after close().
        :raises PoisonedError: after an assertion fired in this object.
        :raises ServerLostError: after a server was lost that a part of it is on.
        """
        if _fork.forked:
            _fork.check()
        handle = self._handle
        if handle is None:
            raise ClosedError(f"this {type(self).__name__} is closed, or what it was made from is")
        if self._lost is not None:
            raise ServerLostError(f"{self._lost}. Close this {type(self).__name__} and its model")
        if self._poison is not None:
            raise PoisonedError(
                f"an assertion failed in this {type(self).__name__} earlier ({self._poison}); "
                "close it and make a new one"
            )
        return handle

    def _check(self, code: int, what: str) -> int:
        """Return what a guarded call on this object returned, or raise what it caught."""
        try:
            return check(code, what)
        except NativeAssertionError as error:
            self._poison = str(error)
            raise

    def _lose(self, reason: str) -> None:
        """Refuse further use: a server that a part of it is on was lost. Any thread may call."""
        self._lost = reason

    @property
    def closed(self) -> bool:
        return self._handle is None

    @property
    def usable(self) -> bool:
        """Whether it takes calls: it is open, no assertion fired in it, no server was lost."""
        return self._handle is not None and self._poison is None and self._lost is None

    def close(self) -> None:
        """Free it, after waiting for a call that another thread is in.

        Closing again does nothing.
        """
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                handle.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
