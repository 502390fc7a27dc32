"""The scheduler's decisions. Others compute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pyllama
from adapter.generation.batch_plan import Batches, Part, Plan
from adapter.generation.batch_runner import BatchRunner
from adapter.generation.continuous_batch import ContinuousBatch
from adapter.generation.failures import note, translation
from adapter.generation.idle_prefill import IdlePrefill
from adapter.generation.memory.kv_cache import KVCache
from adapter.generation.memory.strategy import MemoryStrategy
from adapter.generation.metrics import Metrics
from adapter.generation.running import RunningBatch, nothing
from adapter.generation.scoring_queue import ScoringQueue
from adapter.generation.thread_tuner import ThreadTuner
from adapter.generation.waiting import Waiting

logger = logging.getLogger(__name__)

LOOKED_AT = 32
"""How many waiting requests a step looks up in the prefix cache, at most."""


class SchedulerCore:
    """The steps of a scheduler. Only its thread uses it, except for the queues.

    Args:
        plan: decides what is computed together.
        waiting: requests for an answer that wait for a slot.
        scoring: requests for scores, which are computed in a context of their own.
        idle: what is computed while there is no request; None for nothing.
        max_sequences: the most requests that have a slot at once.
        tuner: chooses with how many threads to compute; None leaves that to the contexts.
        seconds: how long a step waits at most for answers that go on by themselves; 0 to have none.
        isolated: compute either answers or scores in a step, so that there is one context.
        stopping: whether the scheduler is being stopped.
    """

    def __init__(
        self,
        memory: MemoryStrategy,
        plan: Plan,
        waiting: Waiting,
        scoring: ScoringQueue,
        idle: IdlePrefill | None,
        metrics: Metrics,
        *,
        max_sequences: int,
        n_threads: int,
        tuner: ThreadTuner | None,
        seconds: float,
        isolated: bool,
        stopping: Callable[[], bool],
    ) -> None:
        self.memory = memory
        self.waiting = waiting
        self.scoring = scoring
        self._idle = idle
        answered = nothing if idle is None else idle.answered
        self.running = RunningBatch(memory, metrics, waiting, stopping, answered)
        self.runner = BatchRunner(
            self.running,
            metrics,
            stopping=stopping,
            n_threads=n_threads,
            tuner=tuner,
        )
        self._seconds = seconds
        self._continuous = (
            ContinuousBatch(self.running, metrics, n_threads=n_threads) if seconds else None
        )
        self.plan = plan
        self._metrics = metrics
        self._max_sequences = max_sequences
        self._isolated = isolated

    @property
    def has_work(self) -> bool:
        """Whether there is a request."""
        return bool(self.waiting or self.scoring or self.memory.taken)

    @property
    def has_idle_work(self) -> bool:
        """Whether there is something to compute while there is no request."""
        return self._idle is not None and self._idle.has_work

    @property
    def only_waits(self) -> bool:
        """Whether all requests wait for files, so that nothing can be done before one was read."""
        if self.scoring or self.memory.taken or not self.waiting:
            return False
        return self.waiting.first() is None

    def step(self) -> None:
        """Admit requests; plan, compute and sample batches; finish what has ended; score.

        If there is no request, take a step of what is computed then.
        """
        if self._idle is not None:
            if self._idle.has_work and not self.has_work:
                self._idle.step()
                self._measure()
                return
            self._idle.pause()
        self._end_abandoned()
        answers, scores = self._turns()
        if answers:
            self._admit()
            for cache, batches in self.plan.step(self.memory, self.running.prefilling):
                self._compute(cache, batches)
            if self._continuous is not None:
                for cache in self.memory:
                    self._go_on(cache, self._continuous)
            self.memory.tidy()
        if scores:
            self.scoring.step()
        self._measure()

    def _compute(self, cache: KVCache, batches: Batches) -> None:
        """Compute the batches of a KV cache. An error that nobody handled drops the cache."""
        try:
            for batch in batches:
                alone = batch
                if self._continuous is not None:
                    self._continuous.join(part for part in batch if self._continuous.takes(part))
                    alone = [part for part in batch if not self._continuous.takes(part)]
                self._sample(self.runner.compute(alone))
        except BaseException as error:
            self.running.drop_over(cache, error)

    def _sample(self, computed: Iterator[Mapping[int, Part]]) -> None:
        for outputs in computed:
            for output, drawn in self.runner.sample(outputs).items():
                self.running.write(outputs[output], output, drawn)

    def _go_on(self, cache: KVCache, continuous: ContinuousBatch) -> None:
        """Write what was sampled by itself, after waiting for it if there is nothing else to do."""
        others = any(not slot.sequence.joined for slot in cache.taken if slot.sequence)
        try:
            failed = continuous.wait(cache, 0.0 if others or self.scoring else self._seconds)
            if failed is not None:
                self._sample(self.runner.compute_again(*failed))
        except BaseException as error:
            self.running.drop_over(cache, error)

    def wake(self) -> None:
        """End a step's wait for answers. Any thread may call it."""
        if self._continuous is not None:
            self._continuous.wake()

    def _turns(self) -> tuple[bool, bool]:
        """Whether this step computes answers, and whether it computes scores.

        If isolated, the request that came first decides, since there is one context at a time.
        """
        if not self._isolated:
            return True, True
        job, first = self.scoring.first, self.waiting.first()
        scores = (
            job is not None
            and not self.memory.taken
            and (self.scoring.computing or first is None or job.arrived < first.arrived)
        )
        (self.memory if scores else self.scoring).close()
        return not scores, scores

    def _measure(self) -> None:
        try:
            running = n_tokens = n_cells = 0
            for cache in self.memory:
                n_cells += cache.n_cells
                for slot in cache.slots:
                    running += slot.sequence is not None
                    if slot.blocks or slot.sequence is not None:
                        n_tokens += slot.n_tokens
            self._metrics.at(
                running=running, waiting=len(self.waiting), kv_tokens=n_tokens, kv_cells=n_cells
            )
        except Exception as error:  # no request is affected
            note(logger, logging.DEBUG, "not measured: %s", error)

    def _end_abandoned(self) -> None:
        """End the requests that their callers gave up or whose time is over."""
        for slot in self.memory.taken:
            if slot.sequence is not None and slot.sequence.ended_by_caller_or_clock():
                self.running.release(slot)
        self.waiting.drop_finished()
        self.scoring.drop_finished()

    def _admit(self) -> None:
        """Give slots to the requests that have waited longest, as many as there is room for.

        A request waits if its prompt begins like one that is being computed. Others may pass it.
        Otherwise nobody passes, so a long request gets its turn.
        """
        self.waiting.unpark()
        for _ in range(min(2 * self._max_sequences, LOOKED_AT)):  # later steps look at the others
            sequence = None if self.memory.full else self.waiting.first()
            if sequence is None:
                return
            try:
                owner = self.memory.in_progress(sequence)
                if owner is not None:
                    self.waiting.park(sequence, owner)
                    continue
            except pyllama.DecodeCancelled:
                raise
            except Exception as error:
                sequence.fail(translation(error))
            else:
                if not self.running.admit(sequence, len(self.waiting)):
                    return
            self.waiting.leave(sequence)

    def recover(self, error: BaseException) -> None:
        """End the requests that a failed step may affect, and continue with new contexts.

        If nothing was being computed, the request that has waited longest is ended. If none waits
        either, the error is raised, since it would repeat for ever.
        """
        note(logger, logging.ERROR, "a step of the scheduler failed", exc_info=error)
        own = translation(error)
        n_ended = sum(self.running.drop(cache, own) for cache in self.memory)
        if self.scoring.computing:
            self.scoring.fail_first(own)
            n_ended += 1
        if self._idle is not None and self._idle.clear():
            return
        if not n_ended and not self._fail_oldest(own):
            raise error

    def _fail_oldest(self, error: BaseException) -> bool:
        """End the request that has waited longest with an error; return whether there is one."""
        self.waiting.unpark()
        job, first = self.scoring.first, self.waiting.first()
        if first is not None and (job is None or first.arrived <= job.arrived):
            first.fail(error)
            self.waiting.leave(first)
        elif job is not None:
            self.scoring.fail_first(error)
        else:
            return False
        return True

    def end_all(self, reason: BaseException) -> None:
        """End all requests with an error."""
        with ExitStack() as ends:  # all of them are called, whatever one of them raises
            ends.callback(self.scoring.fail, reason)
            ends.callback(self.waiting.fail, reason)
            self.running.end_all(reason)

    def free(self) -> None:
        """Free all contexts. The next request makes another."""
        with ExitStack() as last:
            last.callback(self.scoring.close)
            self.memory.close()
