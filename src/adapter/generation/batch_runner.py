"""Computes batches and samples from them. The scheduler's plan decides what a batch contains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyllama
from adapter.generation.batch_plan import Part, fill
from adapter.generation.failures import translation
from adapter.generation.memory.kv_cache import KVCache
from adapter.generation.metrics import Metrics
from adapter.generation.running import RunningBatch
from adapter.generation.thread_tuner import ThreadTuner

MAX_STEPS = 64
"""The most tokens that an answer may continue by itself."""

ONE_PAUSED_OF = 16
"""One in so many answers may have ended, and wait for the others, before all are looked at."""


class BatchRunner:
    """Computes the running batch. Only the scheduler's thread uses it.

    Args:
        stopping: whether the scheduler is being stopped.
        tuner: chooses with how many threads to compute; None leaves that to the contexts.
        seconds: how long answers go on by themselves after a batch that holds whole prompts and
            answers alone; 0 to sample one token.
    """

    def __init__(
        self,
        running: RunningBatch,
        metrics: Metrics,
        *,
        stopping: Callable[[], bool],
        n_threads: int,
        tuner: ThreadTuner | None = None,
        seconds: float,
    ) -> None:
        self._running = running
        self._metrics = metrics
        self._stopping = stopping
        self._n_threads = n_threads
        self._tuner = tuner
        self._seconds = seconds
        self._n_calls = 0
        #: What was sampled in the last call already, if answers continue by themselves.
        self._generated: pyllama.Generated | None = None

    def compute(self, parts: list[Part]) -> Iterator[Mapping[int, Part]]:
        """Compute parts of one KV cache in one call.

        If that fails, they are computed one by one, since one of them may be the cause.

        Yields:
            After each call, the parts that have an output, by its index. Sample from them before
                asking for the next.

        Raises:
            pyllama.DecodeCancelled: the computation was stopped, and the step ends with it.
        """
        parts = [part for part in parts if part.is_current]
        if not parts or self._stopping():
            return
        cache = parts[0].slot.cache
        n_running = sum(part.sequence.state == "running" for part in parts)
        again: list[Part] = []
        self._generated = None
        try:
            with self._running.padding(parts) as padding:
                outputs = fill(cache.batch, parts, padding)
                if self._seconds:
                    alone = len(parts) == len(outputs)
                    self._generated = self._generate(cache, outputs, alone=alone)
                else:
                    self._decode(cache)
        except pyllama.DecodeCancelled:
            raise
        except Exception as error:
            again = self._undo(parts, error)
        else:
            self._n_calls += 1
            for part in parts:
                part.sequence.step = self._n_calls
                part.sequence.computed(part.end)
            if n_running:
                self._metrics.stepped(n_running)
            for part in parts:
                self._running.computed(part)
            yield outputs
            if self._generated is not None and self._generated.error is not None:
                again = self._undo_later(outputs, self._generated.error)
        for part in again:
            yield from self.compute([part])

    def _decode(self, cache: KVCache) -> None:
        if self._tuner is None:
            cache.context.decode(cache.batch)
            return
        with self._tuner.measured(len(cache.batch)) as n_threads:
            if cache.context.n_threads != n_threads:
                cache.context.set_n_threads(n_threads)
            cache.context.decode(cache.batch)

    def _generate(
        self, cache: KVCache, outputs: Mapping[int, Part], *, alone: bool
    ) -> pyllama.Generated:
        """Compute the batch, and continue while there is nothing to decide.

        Args:
            alone: whether nothing else of the batch waits to be computed.
        """
        free = alone and not any(
            part.sequence.restarted or part.sequence.reads_logits for part in outputs.values()
        )
        return pyllama.generate_each(
            cache.context,
            cache.batch,
            {output: part.sequence.run(part.slot.seq_id) for output, part in outputs.items()},
            max_steps=MAX_STEPS if free else 1,
            max_paused=len(outputs) // ONE_PAUSED_OF,
            seconds=self._seconds,
            n_threads=self._n_threads,
        )

    def sample(self, outputs: Mapping[int, Part]) -> Mapping[int, pyllama.Drawn]:
        """Sample from each output whose request still runs."""
        generated = self._generated
        if generated is not None:
            drawn = {output: generated[output] for output in outputs}
            if generated.error is not None:
                # The logits are gone, and the chains went on.
                lost = pyllama.Drawn([], [], generated.error)
                for output, part in outputs.items():
                    if part.sequence.reads_logits and drawn[output].tokens:
                        drawn[output] = lost
            return drawn
        chains = {
            output: part.sequence.chain
            for output, part in outputs.items()
            if part.slot.sequence is part.sequence
        }
        if not chains:
            return {}
        context = outputs[next(iter(chains))].slot.cache.context
        try:
            sampled = pyllama.sample_each(context, chains, n_threads=self._n_threads)
        except Exception as error:  # it is unknown which tokens were drawn
            return dict.fromkeys(chains, pyllama.Drawn([], [], error))
        return {
            output: pyllama.Drawn([], [], token)
            if isinstance(token, Exception)
            else pyllama.Drawn([token], [])
            for output, token in sampled.items()
        }

    def _undo_later(self, outputs: Mapping[int, Part], error: Exception) -> list[Part]:
        """Handle answers that continued until a batch of them failed. Returns what to compute."""
        if isinstance(error, pyllama.DecodeCancelled):
            raise error
        parts = []
        for part in outputs.values():
            sequence = part.sequence
            if part.slot.sequence is sequence:
                if sequence.n_past == sequence.n_tokens:  # nothing was sampled after its last token
                    sequence.n_past -= 1
                if sequence.state == "prefilling":
                    self._running.prefilling.append(part.slot)
                parts.append(part._replace(begin=sequence.n_past, end=sequence.n_tokens))
        return self._undo(parts, error) if parts else []

    def _undo(self, parts: list[Part], error: Exception) -> list[Part]:
        """Handle a batch that failed. Returns the parts that are to be computed one by one.

        What was computed before the error is still in memory, so it is removed first.
        """
        cache, own = parts[0].slot.cache, translation(error)
        if not cache.context.usable:
            self._running.drop(cache, own)
            return []
        if len(parts) == 1:
            self._running.fail(parts[0].slot, own)
            return []
        nothing_done = isinstance(error, (pyllama.InvalidBatchError, pyllama.MemoryFullError))
        try:
            for part in parts:
                self._running.roll_back(part, nothing_done=nothing_done)
        except pyllama.DecodeCancelled:
            raise
        except Exception:
            self._running.drop(cache, own)
            return []
        return parts
