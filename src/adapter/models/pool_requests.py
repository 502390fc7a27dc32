"""Requests of the user's threads to a pool's thread, and how they wait for the answer.

Ctrl-C ends a user's thread between any two operations, even between acquiring a lock and the block
that would release it. So these threads share no lock with the pool's. They put a message into its
inbox, which is one operation, and wait for the answer in a queue of their own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from adapter.errors import LlamaCppError

T = TypeVar("T")

_INTERRUPTED = 0.5
"""Seconds after which a wait notices Ctrl-C on systems that do not interrupt it at once."""


class _Thread(threading.local):
    def __init__(self) -> None:
        self.token = object()
        self.works_for_a_pool = False


_thread = _Thread()


def this_thread() -> object:
    """What represents the calling thread. Unlike an identity, it is never used again."""
    return _thread.token


@contextmanager
def acting_as(caller: object) -> Iterator[None]:
    """Let the calling thread act for another caller in a block, such as an async call."""
    before, _thread.token = _thread.token, caller
    try:
        yield
    finally:
        _thread.token = before


def enter_pool_thread() -> None:
    """Mark the calling thread as working for a pool. It must not wait for one."""
    _thread.works_for_a_pool = True


def in_pool_thread() -> bool:
    """Whether the calling thread works for a pool: in a callback, or collecting garbage."""
    return _thread.works_for_a_pool


class Taker(Protocol[T]):
    """Takes what a request asked for."""

    def take(self, given: T, request: PoolRequest[T]) -> None: ...


class PoolRequest(Generic[T]):
    """A request of one thread to the pool's thread, which answers it once.

    Attributes:
        name: the model, as it was asked for.
        thread: the caller.
        abandoned: nobody waits for it any more.
    """

    def __init__(self, name: str, taker: Taker[T] | None = None) -> None:
        self.name = name
        self.thread = this_thread()
        self.abandoned = False
        self._taker = None if taker is None else weakref.ref(taker)
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()

    def wait(self, look: Callable[[], object]) -> None:
        """Wait for the answer, and raise it if it is an error.

        Args:
            look: called now and then meanwhile. It makes sure that there is a thread which answers.
        """
        while True:
            try:
                error = self._answers.get(timeout=_INTERRUPTED)
                break
            except Empty:
                look()
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame

    def answer(self) -> None:
        """Answer that it is done."""
        self._answers.put(None)

    def fail(self, error: BaseException) -> None:
        """Answer why it cannot be done."""
        self._answers.put(error)

    def grant(self, given: T) -> None:
        """Give the taker what it asked for, and answer that it is done."""
        taker = None if self._taker is None else self._taker()
        if taker is not None:
            taker.take(given, self)
        self.answer()


def fail_all(requests: list[PoolRequest[Any]], error: BaseException) -> None:
    """Answer all requests with an error, each with a copy, because several threads raise it."""
    for index, request in enumerate(requests):
        request.fail(error if index == 0 else _copy(error))
    requests.clear()


def _copy(error: BaseException) -> BaseException:
    if not isinstance(error, LlamaCppError):
        return error
    kind, arguments = error.__reduce__()[:2]
    assert callable(kind)
    assert isinstance(arguments, tuple)
    copy = kind(*arguments)
    assert isinstance(copy, LlamaCppError)
    copy.__cause__ = error.__cause__
    return copy
