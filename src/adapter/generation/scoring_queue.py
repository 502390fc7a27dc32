"""The scoring requests of a scheduler. They are computed one after the other, in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

import pyllama
from adapter.errors import RequestTimeoutError
from adapter.generation.failures import insist, translation
from adapter.generation.memory.blocks import (
    BLOCK,
    CHUNK,
    BlockHashes,
    block_hashes,
    last_border,
    n_shared,
)
from adapter.generation.metrics import Metrics
from adapter.generation.outcomes import Outcomes
from adapter.generation.prefill import prompt_steps
from adapter.generation.scoring import Score, Scorer, ScoringRequest, ScoringResult
from adapter.generation.thread_tuner import ThreadTuner
from adapter.generation.waiting import POLLED

SHORTEST = 1024
"""Tokens of the shortest context. It is doubled for a request that needs more."""


class ScoringJob:
    """A scoring request, and where its caller waits for the result."""

    def __init__(self, request: ScoringRequest, cancelled: threading.Event) -> None:
        self.request = request
        self.arrived = time.monotonic()
        self._cancelled = cancelled
        timeout = request.timeout
        self._deadline = None if timeout is None else self.arrived + timeout
        #: What the caller is to be given.
        self.events: Outcomes[ScoringResult | BaseException] = Outcomes(self._deadline, cancelled)
        #: Set by the caller's thread when it does not wait for the result any more.
        self.abandoned = False
        self._ended = False

    def ended_by_caller_or_clock(self) -> bool:
        """End it if its caller gave up or its time is over. Returns whether it has ended."""
        if self.abandoned or self._cancelled.is_set():
            self.end(None)
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self.end(self.out_of_time())
        return self._ended

    @property
    def state(self) -> Literal["queued", "ended"]:
        """Whether it has its outcome."""
        return "ended" if self._ended else "queued"

    def end(self, outcome: ScoringResult | BaseException | None) -> None:
        """Give the caller its result, an error to raise, or None if it gave up. Only the first call
        counts.
        """
        if not self._ended:
            insist(lambda: self.events.put(outcome))
            self.request.taken.pending = False
            self._ended = True

    def fail(self, error: BaseException) -> None:
        """End it with an error, which its caller gets."""
        self.end(error)

    def out_of_time(self) -> RequestTimeoutError:
        """The error of a request whose time is over."""
        return RequestTimeoutError(self.request.timeout or 0.0, 0)


class ScoringQueue:
    """Computes scoring requests step by step, in a context of its own.

    The context keeps the last prompt. The next prompt is computed from the first chunk that
    differs. Only the scheduler's thread uses it, except for ``append``, ``len`` and ``in``.

    Args:
        make: makes a context of a number of tokens for a ``Scorer``.
        stopping: whether the scheduler is being stopped.
        longest: tokens that the longest context holds.
        chunk: tokens of a prompt that are computed at once.
        reuses: whether a prompt is kept for the next request, which requires a memory that can be
            cut back to a block.
        tuner: says how many threads compute a request; None for as many as the context has.
    """

    def __init__(
        self,
        make: Callable[[int], pyllama.Context],
        *,
        stopping: Callable[[], bool],
        longest: int,
        chunk: int,
        reuses: bool,
        metrics: Metrics,
        tuner: ThreadTuner | None = None,
    ) -> None:
        self._make = make
        self._tuner = tuner
        self._stopping = stopping
        self._longest = longest
        self._chunk = chunk
        self._reuses = reuses
        self._metrics = metrics
        self._lock = threading.Lock()
        self._waiting: deque[ScoringJob] = deque()
        self._polled = 0
        self._work: Iterator[ScoringResult | None] | None = None
        self._context: pyllama.Context | None = None
        self._scorer: Scorer | None = None
        self._blocks: BlockHashes = ()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, job: ScoringJob) -> bool:
        with self._lock:
            return job in self._waiting

    @property
    def computing(self) -> bool:
        """Whether a request is being computed."""
        return self._work is not None

    @property
    def first(self) -> ScoringJob | None:
        """The request that is computed now, or next."""
        with self._lock:
            return self._waiting[0] if self._waiting else None

    def append(self, job: ScoringJob) -> None:
        """Have a request wait for its turn."""
        with self._lock:
            self._waiting.append(job)

    def drop_finished(self) -> None:
        """End the requests that their callers gave up or whose time is over.

        The first request is checked in each step, and a few of the others in turn.
        """
        with self._lock:
            count = len(self._waiting)
            indices = {0, *((self._polled + i) % count for i in range(POLLED))} if count else ()
            asked = [self._waiting[index] for index in indices]
            self._polled += POLLED
        for job in asked:
            if job.ended_by_caller_or_clock():
                self._leave(job)

    def step(self) -> None:
        """Compute a chunk of the first request's prompt, or one call of its continuations."""
        job = self.first
        if job is None or self._stopping():
            return
        if job.ended_by_caller_or_clock():
            self._leave(job)
            return
        try:
            if self._work is None:
                self._work = self._steps(job)
            if self._tuner is not None:
                n_threads = self._tuner.look()
                if self._context is not None:
                    self._context.set_n_threads(n_threads)
            result = next(self._work)
        except BaseException as error:
            if isinstance(error, pyllama.DecodeCancelled) and self._stopping():
                return
            self.fail_first(translation(error))
        else:
            if result is not None:
                job.end(result)
                self._leave(job)

    def fail_first(self, error: BaseException) -> None:
        """End the request that is computed now, or next, with an error."""
        job = self.first
        if job is not None:
            job.end(error)
            self._leave(job)
            self.close()  # the state of its memory is unknown

    def fail(self, error: BaseException) -> None:
        """End all of them with an error."""
        with self._lock:
            jobs = list(self._waiting)
        for job in jobs:
            job.end(error)
        with self._lock:
            self._waiting.clear()

    def close(self) -> None:
        """Free the context. The next request makes another."""
        self._work = None
        self._free()

    def _free(self) -> None:
        self._blocks, self._scorer = (), None
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _leave(self, job: ScoringJob) -> None:
        with self._lock:
            if self._waiting[0] is job:
                self._work = None
            self._waiting.remove(job)

    def _steps(self, job: ScoringJob) -> Iterator[ScoringResult | None]:
        """Compute a request step by step; the last step gives the result."""
        request = job.request
        prompt, hashes = request.prompt, block_hashes(request.prompt)
        context, scorer = self._ready(len(prompt) + sum(map(len, request.continuations)))
        n_cached = n_shared(self._blocks, hashes) * BLOCK if self._reuses else 0
        # Only complete chunks of both prompts count.
        n_cached = min(n_cached, last_border(len(prompt)), last_border(len(self._blocks) * BLOCK))
        begin = n_cached // CHUNK * CHUNK
        if begin:
            for seq_id in range(1, context.n_seq_max):  # left from a request that was given up
                context.memory.seq_rm(seq_id)
            context.memory.seq_rm(0, begin)
        else:
            context.memory.clear(data=False)
        self._blocks = self._blocks[: begin // BLOCK]
        self._metrics.reused(begin)
        done = begin
        for end in prompt_steps(context, prompt, begin, chunk=self._chunk):
            self._metrics.computed(end - done)
            done = request.taken.prompt = end
            self._blocks = hashes[: end // BLOCK]
            if end < len(prompt):
                yield None
        scores: list[Score] = []
        for group in scorer.score(request, room=self._longest - len(prompt)):
            scores += group
            if len(scores) < len(request.continuations):
                yield None
        yield ScoringResult.of(request, scores, cache_read_tokens=begin)

    def _ready(self, n_needed: int) -> tuple[pyllama.Context, Scorer]:
        """The context, made again if it is too short."""
        length = SHORTEST
        while length < min(n_needed, self._longest):
            length *= 2
        length = min(length, self._longest)
        if self._context is None or self._scorer is None or self._context.n_ctx < length:
            self._free()
            self._context = self._make(length)
            self._scorer = Scorer(self._context)
        return self._context, self._scorer
