"""Child processes that Ctrl-C loses none of."""

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
    """What a thread does to start a process. It alone refers to this, so that its end is seen."""

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
    """Start a process, as ``subprocess.Popen`` does.

    The system makes it in a call that takes a millisecond. A signal meanwhile has its handler run
    right after that, in the main thread, before the process's number is kept: if the handler
    raises, nobody can end or await the process. So another thread makes it for the main thread.

    Raises:
        OSError: it cannot be started.
        RuntimeError: there can be no other thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return ChildProcess(arguments, **options)
    outcomes: SimpleQueue[Any] = SimpleQueue()
    begin = _Start(outcomes, arguments, options)
    ended = weakref.ref(begin, outcomes.put)
    # threading's own start() waits for the thread, for ever where that finds no memory.
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
