"""The async twin of the engine: the same answers, computed off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, NoReturn, TypeVar

from dspy.lm15 import Request, Response

from adapter.engine.engine import LlamaCppEngine, StreamEvent, closed_error
from adapter.engine.lm15_errors import lm15_errors
from adapter.engine.rollouts import current_rollout
from adapter.errors import TransientError
from adapter.generation.thread_start import require_room

T = TypeVar("T")

MAX_ASYNC_CALLS = 64
"""Async calls in progress at once; more wait. Each holds a thread that mostly sleeps."""


class AsyncLlamaCppEngine:
    """The async twin of a LlamaCppEngine: the same answers, computed off the event loop.

    Cancelling a call, or closing a stream, stops its computation within a step.
    """

    def __init__(self, engine: LlamaCppEngine) -> None:
        #: The engine that it is the twin of.
        self.engine = engine
        # Not the loop's own executor: DSPy uses that one, and long answers would starve it.
        self._threads = ThreadPoolExecutor(MAX_ASYNC_CALLS, thread_name_prefix="llamacpp-async")
        self._closed = False

    async def complete(self, request: Request) -> Response:
        """Answer a request."""
        self._refuse_if_closed()
        cancelled = threading.Event()
        try:
            with lm15_errors():
                answer = partial(self.engine.complete_unless, cancelled, request)
                response = await self._begin(answer)
        finally:
            cancelled.set()
        assert response is not None  # only cancelling gives None, and then nobody is here
        current_rollout().index += 1
        return response

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        """Answer a request piece by piece."""
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        cancelled = threading.Event()

        def send(event: StreamEvent | None) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, event)
            except RuntimeError:  # the loop is closed: nobody waits any more
                cancelled.set()

        def work() -> None:
            # One thread for the whole answer: a generator must not change threads midway.
            try:
                for event in self.engine.stream(request, cancelled):
                    send(event)
            finally:
                if not cancelled.is_set():
                    send(None)

        worker: asyncio.Future[None] | None = None
        try:
            with lm15_errors():
                worker = self._begin(work)
            while (event := await events.get()) is not None:
                yield event
            await worker
        finally:
            cancelled.set()  # also where no thread could be started: another one may come to it
            if worker is not None:
                worker.cancel()  # where no thread has begun it yet

    async def aclose(self) -> None:
        """Refuse further async calls. Those in progress go on to their end."""
        self._closed = True
        self._threads.shutdown(wait=False)

    def dump_state(self) -> dict[str, str]:
        """Return what load_state needs to find the engine again."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, str]) -> AsyncLlamaCppEngine:
        """Make the twin of the live engine that a program was saved with."""
        return cls(LlamaCppEngine.load_state(state))

    def __repr__(self) -> str:
        if "engine" not in vars(self):
            return "<AsyncLlamaCppEngine, which could not be made>"
        return f"<AsyncLlamaCppEngine of {self.engine!r}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncLlamaCppEngine:
        return self

    def __reduce__(self) -> NoReturn:
        self.engine.__reduce__()

    def _begin(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have something done on a thread. Where none can start, a later one may come to it."""
        try:
            require_room()  # the executor starts threads without looking for it
            loop = asyncio.get_running_loop()
            return loop.run_in_executor(self._threads, copy_context().run, work)
        except RuntimeError as error:
            if "shutdown" in str(error):  # the program ends
                raise
            raise TransientError(f"no thread for an async call: {error}") from error

    def _refuse_if_closed(self) -> None:
        if self._closed:
            with lm15_errors():
                raise closed_error(self.engine.loaded)
