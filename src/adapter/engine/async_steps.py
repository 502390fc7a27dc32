"""The steps of answers whose callers are tasks of an event loop.

No thread sleeps for such a call. The engine has a few threads that take its steps. Some take only
first steps: these make the request ready, and may wait until the model is loaded. Another takes the
steps that follow, and never waits for long. Between two steps nothing waits: the scheduler's thread
calls back.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

from adapter.engine.steps import Steps
from adapter.errors import TransientError
from adapter.generation.failures import insist
from adapter.generation.outcomes import LOOK_SECONDS
from adapter.generation.pending import Pending
from adapter.models.pool_requests import acting_as
from pyllama.threads import require_room

T = TypeVar("T")

PREPARING = 4
"""Threads that make requests ready: they load the model, apply its template and tokenize."""


class StepThreads:
    """The threads of one engine. They start when they are first needed."""

    def __init__(self) -> None:
        self._closed = False
        self._make()

    def _make(self) -> None:
        self._process = os.getpid()
        # Not the loop's own executor: DSPy uses that one.
        self._first = ThreadPoolExecutor(PREPARING, thread_name_prefix="llamacpp-async")
        self._later = ThreadPoolExecutor(1, thread_name_prefix="llamacpp-async-steps")
        self._started = False
        self._answers: set[object] = set()  # whose steps are not all taken

    def begin(self, answer: object, work: Callable[[], object]) -> None:
        """Have the first steps of an answer taken. ``ended`` must be called after the last.

        If no thread can be started, a thread that starts later may still take them.

        Raises:
            TransientError: there is no room for a thread.
        """
        if self._process != os.getpid():  # fork() copies no threads, and executors count on theirs
            self._make()
        try:
            require_room()  # executors start threads without checking
            if not self._started:
                self._later.submit(int)  # now, so that the scheduler's thread never has to start it
                self._started = True
            self._answers.add(answer)
            self._first.submit(work)
        except (RuntimeError, MemoryError) as error:
            self._answers.discard(answer)
            if "shutdown" in str(error):  # the program ends
                raise
            raise TransientError(f"no thread for an async call: {error}") from error

    def go_on(self, work: Callable[[], object]) -> None:
        """Have further steps taken.

        Raises:
            RuntimeError: the program ends.
            MemoryError: the next look is to try again.
        """
        self._later.submit(work)

    def ended(self, answer: object) -> None:
        """Note that no more steps of an answer are to be taken."""
        self._answers.discard(answer)
        self._end_if_idle()

    def close(self) -> None:
        """End the threads after the last step of the answers that were begun."""
        self._closed = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._closed and not self._answers:
            self._first.shutdown(wait=False)
            self._later.shutdown(wait=False)


class AsyncAnswer(Generic[T]):
    """One answer whose parts are delivered to an event loop. It must be closed.

    Make it in the loop that gets the parts.

    Args:
        begin: makes the steps, which end soon once the event is set.
        errors: translates what fails into the errors that the caller gets.
    """

    def __init__(
        self,
        threads: StepThreads,
        begin: Callable[[threading.Event], Steps[T]],
        errors: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._threads = threads
        self._errors = errors
        self._cancelled = threading.Event()
        self._steps = begin(self._cancelled)
        self._loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[T | BaseException | None] = asyncio.Queue()
        self._context = copy_context()
        self._pending: Pending[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._begun = False

    async def part(self) -> T | None:
        """Return the next part of the answer; None at its end."""
        if not self._begun:
            with self._errors():
                self._threads.begin(self, self._go_on)
            self._begun = True
            self._look_later()
        part = await self._parts.get()
        if isinstance(part, BaseException):
            try:
                raise part
            finally:
                del part  # it refers to this frame
        return part

    def close(self) -> None:
        """Stop the computation within a step, if it has not ended."""
        self._cancelled.set()  # also for work that no thread has taken yet
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Check whether the time is over, or the scheduler's thread ended without a result."""
        self._wake()
        self._look_later()

    def _wake(self) -> None:
        """Take the next steps if they wait for something. They find out why by themselves."""
        pending = self._pending
        if pending is not None:
            pending.wake()

    # Everything below runs on the threads, one call after the other

    def _go_on(self) -> None:
        try:
            # All steps share one context: a step sees what an earlier one set.
            pending = self._context.run(self._take_steps)
            self._pending = pending
            if pending is None:
                self._threads.ended(self)
            else:
                # Last: from here on another thread may take steps.
                pending.listen(lambda: self._threads.go_on(self._go_on))
                if self._cancelled.is_set():
                    pending.wake()
        except BaseException as error:  # such as a MemoryError
            self._give(error)
            self._threads.ended(self)
            self._steps.close()

    def _take_steps(self) -> Pending[Any] | None:
        """Take steps until there is something to wait for, and return that; None at the end."""
        try:
            with self._errors(), acting_as(self):
                for step in self._steps:
                    if isinstance(step, Pending):
                        return step
                    self._give(step)
                    if self._cancelled.is_set():
                        self._steps.close()
            self._give(None)
        except BaseException as error:
            self._give(error)
        return None

    def _give(self, part: T | BaseException | None) -> None:
        try:
            insist(partial(self._loop.call_soon_threadsafe, self._parts.put_nowait, part))
        except RuntimeError:  # the loop is closed, so nobody waits any more
            self._cancelled.set()
