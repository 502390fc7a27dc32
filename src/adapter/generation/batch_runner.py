"""Computes the requests that have a sequence, and keeps what fails to those whom it concerns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

import pyllama
from adapter.generation.answer_writer import LONGEST_RUN
from adapter.generation.exactness import Exactness, groups
from adapter.generation.failures import translation
from adapter.generation.memory.blocks import block_hashes
from adapter.generation.memory.lanes import Lane, Lanes
from adapter.generation.memory.prefix_reuse import PrefixReuse
from adapter.generation.memory.slots import Slot
from adapter.generation.metrics import Metrics
from adapter.generation.mixed_batch import Part, choose_parts, fill
from adapter.generation.sequence import Sequence
from adapter.generation.waiting import Waiting


class BatchRunner:
    """Computes the sequences of all lanes, step by step. For the scheduler's thread alone.

    Whatever fails ends the requests that it concerns, with the true error, and no others: an error
    while sampling one request, an error of a batch the part that fails by itself. A lane whose
    state cannot be trusted any more is dropped, and the next request gets a new one. No error loses
    a request: the queue or a slot has it until it has ended.

    Args:
        waiting: the requests that wait for a sequence.
        stopping: whether nothing is to be computed any more.
        chunk: tokens of a prompt that are computed at once.
        mixed: compute all that there is of a lane in one batch.
        reproducible: keep the bytes of each request independent of the others.
        rolls_back: whether a sequence can be cut back to fewer tokens.
        reuses: whether a slot keeps what it holds of a prompt for requests to come.
    """

    def __init__(
        self,
        lanes: Lanes,
        prefixes: PrefixReuse,
        exactness: Exactness,
        metrics: Metrics,
        *,
        waiting: Waiting,
        stopping: Callable[[], bool],
        n_threads: int,
        chunk: int,
        mixed: bool,
        reproducible: bool,
        rolls_back: bool,
        reuses: bool,
    ) -> None:
        self._lanes = lanes
        self._prefixes = prefixes
        self._exactness = exactness
        self._metrics = metrics
        self._waiting = waiting
        self._stopping = stopping
        self._n_threads = n_threads
        self._chunk = chunk
        self._mixed = mixed
        self._reproducible = reproducible
        self._rolls_back = rolls_back
        self._reuses = reuses
        self._n_calls = 0
        #: Requests whose prompts are being computed, in turn.
        self.prefilling: deque[tuple[Lane, Slot]] = deque()

    @property
    def occupied(self) -> list[tuple[Lane, Slot]]:
        """The slots that have a request."""
        return [(lane, slot) for lane in self._lanes for slot in lane.slots.taken]

    def begin(self, lane: Lane, sequence: Sequence) -> None:
        """Give a request a slot of a lane that has room, and bring what is held of its prompt."""
        slot = None
        try:
            self._metrics.admitted(time.monotonic() - sequence.arrived)
            if not sequence.begin():  # a grammar may be refused: no slot has lost anything by then
                return
            slot = lane.slots.to_overwrite(sequence.hashes)
            lane.slots.take(slot, sequence)
            sequence.state = "prefilling"
            sequence.n_past = sequence.n_cached = self._prefixes.bring(lane, slot, sequence)
            if self._mixed:
                self._prefixes.make_room(lane)
            self._metrics.reused(sequence.n_cached)
            self.prefilling.append((lane, slot))
        except BaseException as error:
            sequence.fail(translation(error))
            if slot is not None and slot.sequence is sequence:
                self.fail(lane, slot, translation(error))
            if isinstance(error, pyllama.DecodeCancelled):
                raise

    def step(self) -> None:
        """Compute a chunk of a prompt, and a token of each running sequence.

        Raises:
            pyllama.DecodeCancelled: a computation was stopped, and the step ends with it.
        """
        if self.prefilling and not self._mixed:
            lane, slot = self.prefilling[0]
            self._in_lane(lane, partial(self._prefill_one_chunk, slot=slot))
        for lane in self._lanes:
            self._in_lane(lane, self._compute_all if self._mixed else self._decode)

    def _in_lane(self, lane: Lane, compute: Callable[[Lane], None]) -> None:
        """Compute something of a lane, which is dropped over whatever was not dealt with there."""
        try:
            compute(lane)
        except BaseException as error:
            cancelled = isinstance(error, pyllama.DecodeCancelled)
            if not (cancelled and self._stopping()):
                self.drop(lane, translation(error))
            if cancelled:
                raise

    # Computing

    def _prefill_one_chunk(self, lane: Lane, slot: Slot) -> None:
        """Compute the next tokens of a prompt; prompts take turns."""
        room = lane.context.n_batch
        self._compute(lane, choose_parts([], [slot], room=room, chunk=self._chunk))

    def _decode(self, lane: Lane) -> None:
        """Decode what each running sequence has written last, and sample the next token.

        Where that is one token, those of all sequences together; more, which a grammar forced, in
        a call for each sequence, as for a prompt.
        """
        room = (LONGEST_RUN + 1) * lane.slots.count
        parts = choose_parts(lane.slots.running, [], room=room, chunk=self._chunk)
        single = [part for part in parts if part.n_tokens == 1 and not part.sequence.restarted]
        others = [part for part in parts if part.n_tokens > 1 or part.sequence.restarted]
        size = self._exactness.batch_size(lane.slots.count) if len(single) > 1 else 1
        for group in (*groups(single, size), *groups(others, 1)):
            self._compute(lane, group)

    def _compute_all(self, lane: Lane) -> None:
        """Decode what running sequences have written, beside what there is room for of prompts."""
        prompts = [slot for other, slot in self.prefilling if other is lane]
        room = lane.context.n_batch
        parts = choose_parts(lane.slots.running, prompts, room=room, chunk=self._chunk)
        self._compute(lane, [part for part in parts if not part.sequence.restarted])
        for part in parts:
            if part.sequence.restarted:
                self._compute(lane, [part])

    def _compute(self, lane: Lane, parts: list[Part]) -> None:
        """Compute these in one call, and sample the next token of those that are whole then."""
        parts = [part for part in parts if part.is_current]
        if not parts or self._stopping():
            return
        n_running = sum(part.sequence.state == "running" for part in parts)
        try:
            outputs = fill(lane.batch, parts)
            lane.context.decode(lane.batch)
        except pyllama.DecodeCancelled:
            raise
        except Exception as error:
            self._put_right(lane, parts, error)
            return
        self._n_calls += 1
        for part in parts:
            part.sequence.step = self._n_calls
            part.sequence.computed(part.end)
        if n_running:
            self._metrics.stepped(n_running)
        for part in parts:
            if part.slot.sequence is not part.sequence:
                continue
            try:
                self._take_note(lane, part)
            except Exception as error:
                self.fail(lane, part.slot, translation(error))
        self._sample(lane, outputs)

    def _take_note(self, lane: Lane, part: Part) -> None:
        """Note what of a prompt is in memory now, and let the next one have its turn."""
        slot, sequence = part.slot, part.sequence
        if sequence.state != "prefilling":
            return
        self.prefilling.remove((lane, slot))
        self._metrics.computed(part.n_tokens)
        slot.held = sequence.hashes[: sequence.n_computed_blocks]
        if part.gives_output:
            return
        if self._reuses:
            self._prefixes.checkpoint(lane, slot, self._waiting)
        self.prefilling.append((lane, slot))

    # Sampling

    def _sample(self, lane: Lane, outputs: Mapping[int, Part]) -> None:
        """Sample the next token of each sequence that has an output."""
        chains = {
            output: part.sequence.chain
            for output, part in outputs.items()
            if part.slot.sequence is part.sequence
        }
        if not chains:
            return
        sampled: Mapping[int, int | Exception]
        try:
            sampled = pyllama.sample_each(lane.context, chains, n_threads=self._n_threads)
        except Exception as error:  # a server that was lost, or no memory: who knows what they drew
            sampled = dict.fromkeys(chains, error)
        for output, outcome in sampled.items():
            part = outputs[output]
            if part.slot.sequence is not part.sequence:
                continue  # one before it took the lane down
            try:
                self._go_on(lane, part, outcome, output)
            except Exception as error:
                self.fail(lane, part.slot, translation(error))

    def _go_on(self, lane: Lane, part: Part, outcome: int | Exception, output: int) -> None:
        """Write a token that was sampled."""
        if isinstance(outcome, Exception):
            raise outcome
        sequence, slot = part.sequence, part.slot
        if sequence.state == "prefilling" and not sequence.restarted:
            self._metrics.began(time.monotonic() - sequence.arrived)
        sequence.write(outcome, lane.context, output)
        if sequence.state == "ended":
            self._metrics.ended(time.monotonic() - sequence.arrived, sequence.n_written)
            if self._rolls_back and not self._reproducible:
                slot.held = block_hashes(sequence.tokens[: sequence.n_past])
            self.release(lane, slot)

    # Failures

    def _put_right(self, lane: Lane, parts: list[Part], error: Exception) -> None:
        """Compute one by one what failed together: one of them may be to blame.

        What was computed before the error stays in memory, so it is taken out first.
        """
        own = translation(error)
        if not lane.context.usable:
            self.drop(lane, own)
            return
        if len(parts) == 1:
            self.fail(lane, parts[0].slot, own)
            return
        nothing_done = isinstance(error, (pyllama.InvalidBatchError, pyllama.MemoryFullError))
        try:
            for part in parts:
                if not self._cut_back(lane, part) and not nothing_done:
                    self._restart(lane, part)
        except pyllama.DecodeCancelled:
            raise
        except Exception:
            self.drop(lane, own)
            return
        for part in parts:
            self._compute(lane, [part])

    def _cut_back(self, lane: Lane, part: Part) -> bool:
        """Leave in memory what was there before the batch, if this memory can do that."""
        n_past = part.sequence.n_past
        return self._rolls_back and lane.context.memory.seq_rm(part.slot.seq_id, n_past)

    def _restart(self, lane: Lane, part: Part) -> None:
        """Have a sequence computed anew, from what is saved of its prompt or from its beginning."""
        slot, sequence = part.slot, part.sequence
        if (lane, slot) in self.prefilling:
            self.prefilling.remove((lane, slot))
        slot.held = ()
        lane.context.memory.seq_rm(slot.seq_id)
        sequence.restart()
        sequence.n_past = self._prefixes.bring(lane, slot, sequence)
        sequence.n_cached = min(sequence.n_cached, sequence.n_past)
        self.prefilling.append((lane, slot))

    # Endings

    def fail(self, lane: Lane, slot: Slot, error: BaseException) -> None:
        """End a request with an error, and all others of its lane where that is of no use now."""
        if slot.sequence is not None:
            slot.sequence.fail(error)
            slot.held = ()  # who knows what is in there
            self.release(lane, slot)
        if not lane.context.usable:
            self.drop(lane, error)

    def release(self, lane: Lane, slot: Slot) -> None:
        """Make a slot free whose request has ended."""
        if (lane, slot) in self.prefilling:
            self.prefilling.remove((lane, slot))
        if not self._reuses:
            slot.held = ()
        lane.slots.give_back(slot)
        if not self._mixed or not lane.context.usable:
            return
        try:
            try:
                self._prefixes.trim(lane, slot)
            except Exception:
                slot.held = ()
                lane.context.memory.seq_rm(slot.seq_id)
        except Exception as error:  # its cells are lost to the others
            self.drop(lane, translation(error))

    def drop(self, lane: Lane, error: BaseException) -> int:
        """End all requests of a lane with an error, free its context, and count the requests."""
        self.prefilling = deque(entry for entry in self.prefilling if entry[0] is not lane)
        count = self._end(lane, error)
        self._lanes.drop(lane)
        return count

    def end_all(self, error: BaseException) -> None:
        """End all requests with an error. The contexts, and what slots hold for others, stay."""
        self.prefilling.clear()
        for lane in self._lanes:
            self._end(lane, error)

    def _end(self, lane: Lane, error: BaseException) -> int:
        taken = lane.slots.taken
        for slot in taken:
            if slot.sequence is not None:
                slot.sequence.fail(error)  # before it is let go of: it must not be lost
            slot.sequence, slot.held = None, ()
        return len(taken)
