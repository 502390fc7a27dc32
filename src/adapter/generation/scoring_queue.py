"""The scoring requests of a scheduler: they wait in order, and are computed one after the other."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pyllama
from adapter.generation.blocks import BLOCK, CHUNK, BlockHashes, block_hashes, last_border, n_shared
from adapter.generation.failures import translated
from adapter.generation.metrics import Metrics
from adapter.generation.prefill import prompt_steps
from adapter.generation.scoring import Score, Scorer, ScoringRequest, ScoringResult

SHORTEST = 1024
"""Tokens of the shortest context; it is made anew, twice as long, for a request that needs it."""


class ScoringJob:
    """A scoring request, and where its caller waits for the result."""

    def __init__(self, request: ScoringRequest, cancelled: threading.Event) -> None:
        self.request = request
        self._cancelled = cancelled
        self._outcome: queue.SimpleQueue[ScoringResult | BaseException | None] = queue.SimpleQueue()
        self._abandoned = False

    @property
    def is_abandoned(self) -> bool:
        """Whether its caller has gone."""
        return self._abandoned or self._cancelled.is_set()

    def end(self, outcome: ScoringResult | BaseException | None) -> None:
        """Give the caller its result, or an error to raise; None where it gave up."""
        self._outcome.put(outcome)

    def wait(self) -> ScoringResult | None:
        """Wait for the result; None once the request was cancelled."""
        try:
            outcome = self._outcome.get()
        finally:
            self._abandoned = True
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class ScoringQueue:
    """Computes scoring requests step by step, in a context of its own.

    The context keeps the last prompt: the next one is computed from the first chunk on that
    differs. Only the scheduler's thread uses it, but for :meth:`append` and ``len``.

    :param make: makes a context of a number of tokens, as :class:`Scorer` wants it.
    :param longest: tokens that the longest context holds.
    :param chunk: tokens of a prompt that are computed at once.
    :param rolls_back: whether the model's memory can be cut back to a border of blocks.
    """

    def __init__(
        self,
        make: Callable[[int], pyllama.Context],
        *,
        longest: int,
        chunk: int,
        rolls_back: bool,
        metrics: Metrics,
    ) -> None:
        self._make = make
        self._longest = longest
        self._chunk = chunk
        self._rolls_back = rolls_back
        self._metrics = metrics
        self._waiting: deque[ScoringJob] = deque()
        self._work: Iterator[None] | None = None
        self._context: pyllama.Context | None = None
        self._scorer: Scorer | None = None
        self._held: BlockHashes = ()

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, job: ScoringJob) -> None:
        """Have a request wait for its turn."""
        self._waiting.append(job)

    def step(self) -> None:
        """Compute a chunk of the first request's prompt, or a group of its continuations."""
        if not self._waiting:
            return
        job = self._waiting[0]
        if job.is_abandoned:
            self._end(job, None)
            return
        if self._work is None:
            self._work = self._steps(job)
        try:
            with translated():
                next(self._work, None)
        except Exception as error:
            self.close()  # who knows what is in there
            self._end(job, error)

    def fail(self, error: BaseException) -> None:
        """End all requests with an error."""
        while self._waiting:
            self._end(self._waiting[0], error)

    def close(self) -> None:
        """Free the context. The next request makes another."""
        self._held, self._scorer = (), None
        if self._context is not None:
            self._context.close()
            self._context = None

    def _end(self, job: ScoringJob, outcome: ScoringResult | BaseException | None) -> None:
        self._waiting.popleft()
        self._work = None
        job.end(outcome)

    def _steps(self, job: ScoringJob) -> Iterator[None]:
        request = job.request
        prompt, hashes = request.prompt, block_hashes(request.prompt)
        context, scorer = self._ready(len(prompt) + sum(map(len, request.continuations)))
        n_held = n_shared(self._held, hashes) * BLOCK if self._rolls_back else 0
        # As far as both were computed in whole chunks.
        n_held = min(n_held, last_border(len(prompt)), last_border(len(self._held) * BLOCK))
        begin = n_held // CHUNK * CHUNK
        if begin:
            context.memory.seq_rm(0, begin)
        else:
            context.memory.clear(data=False)
        self._held = self._held[: begin // BLOCK]
        self._metrics.reused(begin)
        done = begin
        for end in prompt_steps(context, prompt, begin, chunk=self._chunk):
            self._metrics.computed(end - done)
            done = request.taken.prompt = end
            self._held = hashes[: end // BLOCK]
            if end < len(prompt):
                yield
        scores: list[Score] = []
        for group in scorer.score(request, room=self._longest - len(prompt)):
            scores += group
            if len(scores) < len(request.continuations):
                yield
        self._end(job, ScoringResult.of(request, scores, cache_read_tokens=begin))
        yield

    def _ready(self, n_needed: int) -> tuple[pyllama.Context, Scorer]:
        """The context, made anew where it is too short."""
        length = SHORTEST
        while length < min(n_needed, self._longest):
            length *= 2
        length = min(length, self._longest)
        if self._context is None or self._scorer is None or self._context.n_ctx < length:
            self.close()
            self._context = self._make(length)
            self._scorer = Scorer(self._context)
        return self._context, self._scorer
