"""Threads that start, or do not: memory for them is looked for first, and Ctrl-C is Ctrl-C."""

from __future__ import annotations

import errno
import mmap
import threading

import pytest

from adapter.errors import ModelNotLoadedError, TransientError
from adapter.generation.thread_start import not_started, start_thread


def test_it_runs():
    ran = threading.Event()
    thread = threading.Thread(target=ran.set)
    start_thread(thread)
    thread.join()
    assert ran.is_set()


def test_it_is_not_begun_without_room_for_it(monkeypatch):
    """CPython waits for ever for a thread that has no memory to say that it runs."""

    def refuse(*args, **kwargs):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    thread = threading.Thread(target=lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", refuse)
        with pytest.raises(MemoryError, match="no room for another thread"):
            start_thread(thread)
    start_thread(thread)  # it was not begun
    thread.join()


class InterruptedThread(threading.Thread):
    """Whose start is interrupted while it waits, so that a lock is released that is not held."""

    interrupt: BaseException | None = KeyboardInterrupt("mine")

    def start(self):
        if self.interrupt is None:
            raise RuntimeError("can't start new thread")
        try:
            raise self.interrupt
        finally:
            raise RuntimeError("release unlocked lock")


@pytest.mark.parametrize("handling", [False, True])
def test_an_interrupt_is_raised_as_what_it_is(handling):
    def start():
        with pytest.raises(KeyboardInterrupt, match="mine"):
            start_thread(InterruptedThread())

    if not handling:
        start()
        return
    try:
        raise KeyboardInterrupt("another")
    except KeyboardInterrupt:
        start()


@pytest.mark.parametrize("interrupt", [None, ValueError("mine")])
def test_a_thread_that_cannot_start_is_an_error_also_after_an_interrupt(interrupt):
    thread = InterruptedThread()
    thread.interrupt = interrupt
    try:
        raise KeyboardInterrupt("another")
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match=r"start new thread|unlocked lock"):
            start_thread(thread)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("can't create new thread at interpreter shutdown"), ModelNotLoadedError),
        (RuntimeError("can't start new thread"), TransientError),
        (MemoryError("there is no room for another thread"), TransientError),
    ],
)
def test_why_a_thread_did_not_start(error, kind):
    """Python 3.12 starts none after the main thread: trying again is of no use then."""
    own = not_started(error, "to count on")
    assert type(own) is kind
    assert "no thread to count on" in str(own)
    assert own.__cause__ is error
