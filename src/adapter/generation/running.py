"""The running batch: the requests that have a slot, from their admission to their end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyllama
from adapter.generation.batch_plan import Part
from adapter.generation.failures import translation
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.memory.strategy import MemoryStrategy
from adapter.generation.metrics import Metrics
from adapter.generation.sequence import ScheduledRequest
from adapter.generation.waiting import Waiting


class RunningBatch:
    """Requests with a slot. Only the scheduler's thread uses it.

    A failure ends only the requests that it affects, with the true error. A KV cache whose state
    cannot be trusted any more is dropped, and the next request gets a new one. No error loses a
    request: it is in the queue or in a slot until it has ended.

    Args:
        waiting: the requests that wait for a slot.
        stopping: whether the scheduler is being stopped.
        answered: is called with each request that was answered, once its slot is free.
    """

    def __init__(
        self,
        memory: MemoryStrategy,
        metrics: Metrics,
        waiting: Waiting,
        stopping: Callable[[], bool],
        answered: Callable[[ScheduledRequest], object],
    ) -> None:
        self._memory = memory
        self._metrics = metrics
        self._waiting = waiting
        self._stopping = stopping
        self._answered = answered
        #: Slots whose prompts are being computed, in turn.
        self.prefilling: deque[Slot] = deque()
        #: Is called with each slot whose request may go on by itself, before that ends.
        self.leave: Callable[[Slot], object] = nothing

    def admit(self, sequence: ScheduledRequest, n_waiting: int) -> bool:
        """Start a request with the cached part of its prompt. Returns False if there is no room for
        it.

        Args:
            n_waiting: requests that wait for a slot, including this one.
        """
        slot = None
        try:
            slot = self._memory.place(sequence, n_waiting)
            if slot is None:
                return False
            self._metrics.admitted(time.monotonic() - sequence.arrived)
            if not sequence.begin():
                self.release(slot)
                return True
            sequence.state = "prefilling"
            self._memory.restore(slot, sequence)
            sequence.n_cached = sequence.n_past
            self._metrics.reused(sequence.n_cached)
            self.prefilling.append(slot)
        except BaseException as error:
            cancelled = isinstance(error, pyllama.DecodeCancelled)
            if slot is None:  # the error may have come just after it was given
                slot = next((one for one in self._memory.taken if one.sequence is sequence), None)
            if cancelled and slot is None:
                raise
            untouched = sequence.state == "queued"  # a refused grammar, for example
            sequence.fail(translation(error))
            if slot is not None and slot.sequence is sequence:
                if untouched:
                    self.release(slot)
                else:
                    self.fail(slot, translation(error))
            if cancelled:
                raise
        return True

    def computed(self, part: Part) -> None:
        """Record what is in memory of a request, and let the next prompt have its turn."""
        slot, sequence = part.slot, part.sequence
        try:
            if slot.sequence is not sequence or sequence.state != "prefilling":
                return
            self.prefilling.remove(slot)
            self._metrics.computed(part.n_tokens)
            slot.blocks = sequence.hashes[: sequence.n_computed_blocks]
            if not part.gives_output:
                self._memory.prefixes.checkpoint(slot, self._waiting)
                self.prefilling.append(slot)
        except Exception as error:
            self.fail(slot, translation(error))

    def write(self, part: Part, output: int, drawn: pyllama.Drawn) -> None:
        """Write what was sampled from an output on, or fail the request over an error."""
        sequence, slot = part.sequence, part.slot
        try:
            if slot.sequence is not sequence:
                return  # one before it took its KV cache down
            if drawn.tokens:
                if sequence.state == "prefilling" and not sequence.restarted:
                    self._metrics.began(time.monotonic() - sequence.arrived)
                sequence.write(drawn, slot.cache.context, output)
            if drawn.error is not None and sequence.state != "ended":
                raise drawn.error
            if sequence.state == "ended":
                self._metrics.ended(time.monotonic() - sequence.arrived, sequence.n_written)
                self._memory.prefixes.keep_answer(slot, sequence)
                self.release(slot)
                self._answered(sequence)
        except Exception as error:
            self.fail(slot, translation(error))

    def roll_back(self, part: Part, *, nothing_done: bool) -> None:
        """Undo what a failed batch may have computed of a request.

        If its memory cannot be cut back, the request is computed again, from what is saved of the
        prompt or from its beginning.

        Args:
            nothing_done: whether the batch was refused before anything was computed.
        """
        slot, sequence = part.slot, part.sequence
        if self._memory.roll_back(slot, sequence) or nothing_done:
            return
        if slot in self.prefilling:
            self.prefilling.remove(slot)
        n_cached = sequence.n_cached
        slot.blocks = ()
        slot.keep(0)
        sequence.restart()
        self._memory.restore(slot, sequence)
        sequence.n_cached = min(n_cached, sequence.n_past)
        self.prefilling.append(slot)

    @contextmanager
    def padding(self, parts: list[Part]) -> Iterator[dict[int, int]]:
        """Where to append a token to those sequences of the parts' window that have no part.

        What is appended to a request's sequence in the block is removed from it again, even after
        an error.

        Args:
            parts: in order of their sequences.
        """
        slots = parts[0].slot.cache.slots
        window = parts[0].window or ()
        taken = {part.slot.seq_id for part in parts}
        padded = [slots[seq_id] for seq_id in window if seq_id not in taken]
        others = [slot for slot in padded if not slot.is_anchor]
        positions = {slot.seq_id: self._memory.end_of(slot) for slot in others}
        longest = max([part.end for part in parts] + [end + 1 for end in positions.values()])
        for anchor in (slot for slot in padded if slot.is_anchor):
            positions[anchor.seq_id] = self._memory.end_of_anchor(anchor, longest)
        try:
            yield positions
        finally:
            cache = parts[0].slot.cache
            try:
                for slot in padded:
                    if slot.sequence is not None:
                        cache.context.memory.seq_rm(slot.seq_id, positions[slot.seq_id])
            except BaseException as error:  # it holds what is not the request's
                self.drop(cache, translation(error))
                raise

    # Endings

    def fail(self, slot: Slot, error: BaseException) -> None:
        """End a request with an error, and all others of its KV cache if that is unusable now."""
        if slot.sequence is not None:
            slot.sequence.fail(error)
            slot.blocks = ()  # the state of its memory is unknown
            self.release(slot)
        if not slot.cache.context.usable:
            self.drop(slot.cache, error)

    def release(self, slot: Slot) -> None:
        """Make a slot free whose request has ended."""
        self.leave(slot)
        if slot in self.prefilling:
            self.prefilling.remove(slot)
        error = self._memory.release(slot)
        if error is not None:
            self.drop(slot.cache, translation(error))

    def drop_over(self, cache: KVCache, error: BaseException) -> None:
        """Drop a KV cache after an unhandled error. A cancellation is raised again."""
        cancelled = isinstance(error, pyllama.DecodeCancelled)
        if not (cancelled and self._stopping()):
            self.drop(cache, translation(error))
        if cancelled:
            raise error

    def drop(self, cache: KVCache, error: BaseException) -> int:
        """End all requests of a KV cache with an error, free it, and count the requests."""
        self.prefilling = deque(slot for slot in self.prefilling if slot.cache is not cache)
        count = self._end(cache, error)
        self._memory.drop(cache)
        return count

    def end_all(self, error: BaseException) -> None:
        """End all requests with an error. The contexts, and what slots hold for others, stay."""
        self.prefilling.clear()
        for cache in self._memory:
            self._end(cache, error)

    def _end(self, cache: KVCache, error: BaseException) -> int:
        taken = cache.taken
        for slot in taken:
            if slot.sequence is not None:
                slot.sequence.fail(error)  # before the slot releases it: it must not be lost
            slot.sequence, slot.blocks = None, ()
        return len(taken)


def nothing(_: object) -> None:
    """What is called where nothing is to be done."""
