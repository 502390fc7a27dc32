"""The common base of classes that own a C object: closing, poisoning, and a lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pyllama import _process
from pyllama._callbacks import logger
from pyllama._guard import CAUGHT, raise_caught
from pyllama._handle import Handle, P
from pyllama._locks import holding
from pyllama._native._binding import lib
from pyllama._uncopyable import Uncopyable
from pyllama.errors import (
    ClosedError,
    NativeAssertionError,
    NativeMemoryError,
    PoisonedError,
    ServerLostError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

_ASSERTION: int = lib.PYLLAMA_CAUGHT_ASSERTION
_OUT_OF_MEMORY: int = lib.PYLLAMA_CAUGHT_OUT_OF_MEMORY


class User(Protocol):
    """What computes with objects on a thread of its own."""

    def _pause(self) -> None: ...
    def _let_go(self, used: NativeObject[Any]) -> None: ...
    def _change(self, seq_id: int, copy: int, p0: int, p1: int) -> None: ...


class NativeObject(Uncopyable, Generic[P]):
    """Owns one C object, from ``_own()`` until ``close()``.

    Calls that change the object hold ``_lock``. So threads take turns, and closing waits for a call
    of another thread.

    An object in which an assertion failed is half changed. It refuses further use, and is not
    freed.
    """

    _handle: Handle[P] | None = None
    # What computes with it on a thread of its own, and lets go of it for a while if asked to.
    _user: User | None = None
    _poison: str | None = None
    _lost: str | None = None
    # Whether running out of memory leaves it half changed, as a failed assertion does.
    _breaks_without_memory = False

    def __init__(self) -> None:
        self._lock = _process.make_lock(self)
        self._poison = None  # place for what must be stored without allocating memory

    def _own(
        self,
        pointer: P,
        free: Callable[[P], object],
        *needs: object,
        at_exit: bool = False,
    ) -> None:
        self._handle = Handle(pointer, free, *needs, at_exit=at_exit)

    def _open(self) -> Handle[P]:
        """The handle. A caller that holds it keeps it alive.

        Raises:
            ForkedError: in a child of fork().
            ClosedError: after close(), and when the interpreter is ending.
            PoisonedError: after an assertion failed in this object.
            ServerLostError: after an RPC server with a part of it was lost.
        """
        if _process.unusable:
            _process.check()
        if self._user is not None:
            self._user._pause()
        handle = self._handle
        if handle is None:
            raise ClosedError(f"this {type(self).__name__} is closed, or what it was made from is")
        if self._lost is not None:
            raise ServerLostError(f"{self._lost}. Close this {type(self).__name__} and its model")
        if self._poison is not None:
            raise PoisonedError(
                f"a call on this {type(self).__name__} failed half way ({self._poison}); "
                "close it and make a new one"
            )
        return handle

    def _check(self, code: int, what: str) -> int:
        """Return what a guarded call on this object returned, or raise what it caught."""
        if code != CAUGHT:
            return code
        # First, and without allocating: there may be no memory for the error's message.
        kind = lib.pyllama_caught()
        if kind == _ASSERTION or (kind == _OUT_OF_MEMORY and self._breaks_without_memory):
            self._spoil(what)
        try:
            raise_caught(what)
        except (NativeAssertionError, NativeMemoryError) as error:
            if self._poison is not None:
                self._poison = str(error)
            raise

    def _spoil(self, reason: str) -> None:
        """Refuse further use, and never free it, even when it is dropped: it is half changed."""
        self._poison = reason
        if self._handle is not None:
            self._handle.leave()

    def _lose(self, reason: str) -> None:
        """Refuse further use: a server with a part of it was lost. Any thread may call this."""
        self._lost = reason

    def _lend(self, user: User) -> None:
        """Have ``user`` compute with it until ``_give_back``."""
        self._user = user

    def _give_back(self, user: User) -> None:
        """``user`` computes with it no more. Nothing happens if another one does."""
        if self._user is user:
            self._user = None

    @property
    def _lent(self) -> bool:
        return self._user is not None

    def _change_lent(self, seq_id: int, copy: int, p0: int, p1: int) -> bool:
        """Have the user of a context change its memory. False if it is not lent.

        Args:
            seq_id: the sequence.
            copy: the sequence that shares its positions from now on; -1 to remove them.
            p0: the first position.
            p1: the position after the last one.
        """
        if self._user is None:
            return False
        self._user._change(seq_id, copy, p0, p1)
        return True

    @property
    def closed(self) -> bool:
        return self._handle is None or _process.ended

    @property
    def usable(self) -> bool:
        """Whether it can be used: it is open, no assertion failed in it, and no server was lost."""
        return not self.closed and self._poison is None and self._lost is None

    def close(self) -> None:
        """Free it, after waiting for a call of another thread. Closing again does nothing."""
        if _process.ended:  # it is closed; another thread may be inside a call that never ends
            return
        if self._user is not None:
            self._user._let_go(self)
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._free_or_leave(handle)

    def _free_or_leave(self, handle: Handle[P]) -> None:
        if self._poison is None:
            handle.release()
            return
        handle.disown()
        logger.warning(
            "This %s cannot be freed, because a call on it failed half way: its memory stays taken "
            "until the process ends.",
            type(self).__name__,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def holding_all(objects: Iterable[NativeObject[Any]], work: Callable[[], T]) -> T:
    """Call a function while several objects are locked, in the order given."""
    return holding([one._lock for one in objects], work)
