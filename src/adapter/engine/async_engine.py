"""The async twin of the engine: the same answers, computed off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

from dspy.lm15 import Request, Response

from adapter.engine.async_steps import AsyncAnswer, StepThreads
from adapter.engine.engine import LlamaCppEngine, StreamEvent, closed_error
from adapter.engine.rollouts import current_rollout
from adapter.engine.steps import Steps

T = TypeVar("T")

MAX_ASYNC_CALLS = 64
"""Async calls of one event loop that run at once. More wait."""


class AsyncLlamaCppEngine:
    """The async twin of a LlamaCppEngine: the same answers, computed off the event loop.

    Cancelling a call, or closing a stream, stops its computation within a step.
    """

    def __init__(self, engine: LlamaCppEngine) -> None:
        #: The engine that it is the twin of.
        self.engine = engine
        self._threads = StepThreads()
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._turns = WeakKeyDictionary()
        self._calls: set[object] = set()
        self._closed = False

    async def complete(self, request: Request) -> Response:
        """Answer a request."""
        with self._entered() as turns:
            async with turns:
                with closing(self._begin(partial(self.engine.answer, request))) as answer:
                    response = await answer.part()
        assert response is not None  # only a cancelled call gives None
        current_rollout().index += 1
        return response

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        """Answer a request piece by piece."""
        with self._entered() as turns:
            async with turns:
                with closing(self._begin(partial(self.engine.streamed_answer, request))) as answer:
                    while (event := await answer.part()) is not None:
                        yield event

    async def aclose(self) -> None:
        """Refuse further async calls. Those in progress run to their end."""
        self._closed = True
        self._end_threads()

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

    @contextmanager
    def _entered(self) -> Iterator[asyncio.Semaphore]:
        """Count a call while it runs. The block gets the semaphore that limits such calls."""
        if self._closed:
            with self.engine.errors():
                raise closed_error(self.engine.loaded)
        loop, call = asyncio.get_running_loop(), object()
        self._calls.add(call)
        try:
            yield self._turns.setdefault(loop, asyncio.Semaphore(MAX_ASYNC_CALLS))
        finally:
            self._calls.discard(call)
            self._end_threads()

    def _begin(self, steps: Callable[[threading.Event], Steps[T]]) -> AsyncAnswer[T]:
        return AsyncAnswer(self._threads, steps, self.engine.errors)

    def _end_threads(self) -> None:
        if self._closed and not self._calls:
            self._threads.close()
