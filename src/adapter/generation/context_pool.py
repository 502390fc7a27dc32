"""A pool of contexts: made when first needed, used by one request at a time, used again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyllama
from adapter.generation.blocks import CHUNK
from adapter.generation.scoring import scoring_context


class ContextPool:
    """Contexts of one model, all alike.

    :param context_length: tokens that each context holds.
    :param n_threads: threads that each context computes with.
    :param limit: contexts in use at once; a request beyond it waits for its turn.
    :param reproducible: compute as the scheduler does, which gives the same bytes on a CPU.
    :param chunk: tokens of a prompt that are computed at once.
    """

    def __init__(
        self,
        model: pyllama.Model,
        *,
        context_length: int,
        n_threads: int,
        limit: int,
        reproducible: bool,
        chunk: int = CHUNK,
    ) -> None:
        self._model = model
        self._context_length = context_length
        self._n_threads = n_threads
        self._reproducible = reproducible
        #: Where the calls of a prompt end: at its multiples.
        self.chunk = chunk
        self._turns = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._idle: list[pyllama.Context] = []

    @contextmanager
    def lease(self) -> Iterator[pyllama.Context]:
        """A context with an empty memory, for the block.

        Making one costs tens of milliseconds, so it is kept for the next request, unless the
        block failed: then its state is not to be trusted.
        """
        with self._turns:
            context = self._take()
            try:
                context.memory.clear(data=False)
                yield context
            except GeneratorExit:
                self._give_back(context)
                raise
            except BaseException:
                context.close()
                raise
            self._give_back(context)

    def _take(self) -> pyllama.Context:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return scoring_context(
            self._model,
            self._context_length,
            n_threads=self._n_threads,
            reproducible=self._reproducible,
            chunk=self.chunk,
        )

    def _give_back(self, context: pyllama.Context) -> None:
        with self._lock:
            self._idle.append(context)
