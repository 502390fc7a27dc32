"""Child processes that Ctrl-C cannot orphan."""

from __future__ import annotations

import _thread
import os
import subprocess
import threading
import weakref
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any


class ChildProcess(subprocess.Popen[Any]):
    """A process that ends with this object, wherever an exception drops it."""

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        self._owner = os.getpid()
        super().__init__(arguments, **options)

    def __del__(self) -> None:
        started = getattr(self, "pid", None) is not None and self.returncode is None
        try:
            if started and self._owner == os.getpid():  # after a fork it is the parent's
                self.kill()
                self.wait()
                for stream in (self.stdin, self.stdout):
                    if stream is not None:
                        stream.close()
        finally:
            super().__del__()


class _Start:
    """The task of a thread that starts a process. Only the thread refers to it, which shows its
    end.
    """

    def __init__(self, outcomes: SimpleQueue[Any], arguments: Sequence[str], options: Any) -> None:
        self._outcomes = outcomes
        self._arguments = arguments
        self._options = options

    def __call__(self) -> None:
        try:
            outcome: ChildProcess | BaseException = ChildProcess(self._arguments, **self._options)
        except BaseException as error:
            outcome = error
        self._outcomes.put(outcome)


def start(arguments: Sequence[str], **options: Any) -> ChildProcess:
    """Start a process, like ``subprocess.Popen``.

    The system call takes about a millisecond. A signal handler that runs right after it in the main
    thread, before the process's number is stored, may raise. Then nobody could end or await the
    process. So another thread starts it for the main thread.

    Raises:
        OSError: it cannot be started.
        RuntimeError: no other thread can be started.
    """
    if threading.current_thread() is not threading.main_thread():
        return ChildProcess(arguments, **options)
    outcomes: SimpleQueue[Any] = SimpleQueue()
    begin = _Start(outcomes, arguments, options)
    ended = weakref.ref(begin, outcomes.put)
    # threading's start() waits for the thread, for ever if that finds no memory.
    _thread.start_new_thread(begin, ())
    del begin
    outcome = outcomes.get()
    if outcome is ended:
        raise RuntimeError("a thread ended before it could start a process")
    if isinstance(outcome, BaseException):
        try:
            raise outcome
        finally:
            del outcome  # it refers to this frame
    assert isinstance(outcome, ChildProcess)
    return outcome
