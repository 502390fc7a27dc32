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


class BatchRunner:
    """Computes the running batch. Only the scheduler's thread uses it.

    Args:
        stopping: whether the scheduler is being stopped.
        tuner: chooses with how many threads to compute; None leaves that to the contexts.
    """

    def __init__(
        self,
        running: RunningBatch,
        metrics: Metrics,
        *,
        stopping: Callable[[], bool],
        n_threads: int,
        tuner: ThreadTuner | None = None,
    ) -> None:
        self._running = running
        self._metrics = metrics
        self._stopping = stopping
        self._n_threads = n_threads
        self._tuner = tuner
        self._n_calls = 0

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
        try:
            with self._running.padding(parts) as padding:
                outputs = fill(cache.batch, parts, padding)
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
        for part in again:
            yield from self.compute([part])

    def compute_again(self, parts: list[Part], error: Exception) -> Iterator[Mapping[int, Part]]:
        """Undo parts of a batch of answers that went on by themselves, and compute them one by one.

        Args:
            parts: as they were when they joined.
            error: what the batch failed with. A cancellation is raised.
        """
        if isinstance(error, pyllama.DecodeCancelled):
            raise error
        begun = []
        for part in parts:
            slot, sequence = part.slot, part.sequence
            if slot.sequence is not sequence:
                continue
            if sequence.n_past == sequence.n_tokens:  # nothing was sampled after its last token
                sequence.n_past -= 1
            if sequence.state == "prefilling":
                if slot not in self._running.prefilling:
                    self._running.prefilling.append(slot)
            else:
                part = part._replace(begin=sequence.n_past, end=sequence.n_tokens)
            begun.append(part)
        for part in self._undo(begun, error) if begun else []:
            yield from self.compute([part])

    def _decode(self, cache: KVCache) -> None:
        if self._tuner is None:
            cache.context.decode(cache.batch)
            return
        with self._tuner.measured(len(cache.batch)) as n_threads:
            if cache.context.n_threads != n_threads:
                cache.context.set_n_threads(n_threads)
            cache.context.decode(cache.batch)

    def sample(self, outputs: Mapping[int, Part]) -> Mapping[int, pyllama.Drawn]:
        """Sample from each output whose request still runs."""
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
