"""Answers that go on by themselves, batch after batch, while the scheduler does everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pyllama
from adapter.generation.batch_plan import Part
from adapter.generation.contexts import N_DRAFT
from adapter.generation.failures import translation
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.metrics import Metrics
from adapter.generation.running import RunningBatch


class Failed(NamedTuple):
    """A batch that failed: what is to be undone and computed again, and why."""

    parts: list[Part]
    error: Exception


class ContinuousBatch:
    """The requests that a ``pyllama.Generation`` computes. Only the scheduler's thread uses it.

    Prompts and answers join between two batches. Meanwhile the scheduler writes what earlier
    batches gave, and admits other requests. So a device does not wait for the interpreter.

    Args:
        n_threads: threads that sample.
    """

    def __init__(self, running: RunningBatch, metrics: Metrics, *, n_threads: int) -> None:
        self._running = running
        self._metrics = metrics
        self._n_threads = n_threads
        self._generations: dict[KVCache, pyllama.Generation] = {}
        self._parts: dict[Slot, Part] = {}
        self._n_waits = 0
        running.leave = self.leave

    @staticmethod
    def takes(part: Part) -> bool:
        """Whether a part may join.

        Others are computed again alone, or need all their logits, or have no flash attention: the
        CUDA graph of a prompt's call fails without it if the call is repeated, as happens here.
        """
        sequence = part.sequence
        flash_attn = part.slot.cache.context.flash_attn
        return flash_attn and not (sequence.restarted or sequence.reads_logits)

    def join(self, parts: Iterable[Part]) -> None:
        """Have parts computed in the next batch, and answers go on after them."""
        for part in parts:
            slot, sequence = part.slot, part.sequence
            if not part.is_current or sequence.joined:
                continue
            try:
                self._generation(slot.cache).add(
                    slot.seq_id,
                    sequence.tokens_between(part.begin, part.end),
                    part.begin,
                    sequence.run(slot.seq_id) if part.gives_output else None,
                    each=sequence.request.streamed,
                )
            except Exception as error:
                self._running.fail(slot, translation(error))
            else:
                self._parts[slot] = part
                sequence.joined = True

    def leave(self, slot: Slot) -> None:
        """Stop a request, before its slot gets another."""
        part = self._parts.pop(slot, None)
        if part is None:
            return
        part.sequence.joined = False
        generation = self._generations.get(slot.cache)
        if generation is not None and not generation.closed:
            generation.remove(slot.seq_id)

    def wake(self) -> None:
        """End the scheduler's wait. Any thread may call it."""
        for generation in list(self._generations.values()):
            generation.wake()

    def wait(self, cache: KVCache, seconds: float) -> Failed | None:
        """Wait for news of a KV cache's requests, and write what was sampled.

        Returns:
            the batch that failed, if one did. Nothing goes on by itself then.
        """
        generation = self._generations.get(cache)
        if generation is None or generation.closed or not generation:
            return None
        news = generation.wait(seconds)
        if news:
            self._n_waits += 1
            n_running = sum(part.sequence.state == "running" for part in self._parts.values())
            if n_running:
                self._metrics.stepped(n_running)
        failed = []
        for seq_id, progress in news.items():
            part = self._parts[cache.slots[seq_id]]
            if progress.over:
                self._forget(part)
            elif generation.error is not None:
                failed.append(part)
            self._write(part, progress)
        if generation.error is None:
            return None
        for part in [part for part in self._parts.values() if part.slot.cache is cache]:
            self._forget(part)
        generation.close()
        return Failed(failed, generation.error)

    def _generation(self, cache: KVCache) -> pyllama.Generation:
        made = self._generations.get(cache)
        if made is None or made.closed:
            for gone in [one for one, its in self._generations.items() if its.closed]:
                del self._generations[gone]
                for slot in gone.slots:
                    self._parts.pop(slot, None)
            n_threads = self._n_threads
            made = pyllama.Generation(cache.context, n_threads=n_threads, n_draft=N_DRAFT)
            self._generations[cache] = made
        return made

    def _forget(self, part: Part) -> None:
        part.sequence.joined = False
        self._parts.pop(part.slot, None)

    def _write(self, part: Part, progress: pyllama.SequenceProgress) -> None:
        sequence = part.sequence
        if part.slot.sequence is not sequence:
            return  # one before it took its KV cache down
        if progress.computed and sequence.n_past < part.end:
            sequence.step = self._n_waits
            sequence.computed(part.end)
            self._running.computed(part)
        if progress.drawn.tokens or progress.drawn.error is not None:
            self._running.write(part, 0, progress.drawn)
