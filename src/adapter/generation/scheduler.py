"""Continuous batching: one thread drives the sequences of all requests. See docs/scheduling.md."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import pyllama
from adapter.errors import (
    BackendError,
    ContextTooLongError,
    ModelNotLoadedError,
    QueueFullError,
)
from adapter.generation.answer_writer import LONGEST_RUN
from adapter.generation.blocks import CHUNK, block_hashes, longest_call
from adapter.generation.exactness import Exactness, groups
from adapter.generation.failures import translated
from adapter.generation.lanes import Lane, Lanes
from adapter.generation.metrics import Metrics
from adapter.generation.mixed_batch import Part, choose_parts, fill
from adapter.generation.prefix_cache import PrefixCache
from adapter.generation.prefix_folder import PrefixFolder
from adapter.generation.prefix_reuse import PrefixReuse, rolls_back
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.scoring import (
    ScoringRequest,
    ScoringResult,
    longest_continuation,
    scoring_context,
)
from adapter.generation.scoring_queue import ScoringJob, ScoringQueue
from adapter.generation.sequence import Sequence
from adapter.generation.slots import Slot

logger = logging.getLogger(__name__)


class Scheduler:
    """Computes the requests of a model together. It satisfies ``Generator``.

    One thread admits requests to free sequences, computes what of their prompts is not in memory,
    decodes all running sequences in one batch each step, and samples each with its own seeded
    chain. On a CPU a request gives the same bytes alone and among others.

    :param model: its owner closes the scheduler before it.
    :param context_length: tokens that a request and its answer may have together.
    :param n_threads: threads to compute with.
    :param n_cells: tokens that all sequences may hold together.
    :param max_sequences: the most requests that run at once; more wait.
    :param max_queued: the most that wait; more are refused.
    :param cache_bytes: RAM for beginnings of prompts that are no longer in a context.
    :param reproducible: keep the bytes of each request independent of the others, at the cost of
        flash attention, of batches that change them, and of answers that are not reused.
    :param chunk: tokens of a prompt that are computed at once.
    :param mixed: compute all that there is in one batch, with one memory for all sequences: what a
        GPU is fastest with. Bytes do not stay then.
    :param metrics: counts what it does.
    :param prefix_folder: keeps beginnings of prompts for other processes.
    """

    def __init__(
        self,
        model: pyllama.Model,
        *,
        context_length: int,
        n_threads: int,
        n_cells: int,
        max_sequences: int,
        max_queued: int,
        cache_bytes: int,
        reproducible: bool,
        chunk: int = CHUNK,
        mixed: bool = False,
        metrics: Metrics | None = None,
        prefix_folder: PrefixFolder | None = None,
    ) -> None:
        self._model = model
        self._context_length = context_length
        self._n_threads = n_threads
        self._max_queued = max_queued
        self._reproducible = reproducible
        self._mixed = mixed
        self._rolls_back = rolls_back(model)
        # A state that cannot be cut back is saved where a call ends.
        self._chunk = chunk if self._rolls_back else CHUNK
        self._exactness = Exactness(self._make_context, reproducible=reproducible)
        self._lanes = Lanes(
            self._make_context,
            longest=context_length,
            n_cells=n_cells,
            max_sequences=max_sequences,
            unified=mixed,
        )
        # A GPU computes a beginning anew in the time that it takes to save one.
        saves = not (mixed and self._rolls_back) or prefix_folder is not None
        saved = PrefixCache(cache_bytes if saves else 0, rolls_back=self._rolls_back)
        self._prefixes = PrefixReuse(model, saved, self._exactness, prefix_folder)
        self._queue: deque[Sequence] = deque()
        self._prefilling: deque[tuple[Lane, Slot]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        #: What it has done so far.
        self.metrics = metrics or Metrics()
        self._scoring = ScoringQueue(
            partial(
                scoring_context,
                model,
                n_threads=n_threads,
                reproducible=reproducible,
                chunk=chunk,
            ),
            longest=context_length,
            chunk=chunk,
            rolls_back=self._rolls_back,
            metrics=self.metrics,
        )

    # For callers' threads

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Return the whole completion."""
        *_, result = self.stream(replace(request, whole=True))
        assert isinstance(result, GenerationResult)
        return result

    def stream(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Iterator[Delta | GenerationResult]:
        """Yield the completion piece by piece, then exactly one GenerationResult, last.

        Closing the iterator stops the computation before the next step. Once ``cancelled`` is set
        it stops likewise, without a result.

        Raises ContextTooLongError and QueueFullError before any work.
        """
        room = self._context_length - len(request.prompt)
        if room < 1:
            raise ContextTooLongError(len(request.prompt), self._context_length)
        gone = cancelled or threading.Event()
        sequence = Sequence(self._model.vocab, request, min(request.max_tokens, room), gone)
        return self._events(sequence)

    def score(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> ScoringResult | None:
        """Return the score of each continuation, or None once ``cancelled`` is set.

        Raises ContextTooLongError and QueueFullError before any work.
        """
        n_needed = len(request.prompt) + longest_continuation(request)
        if n_needed > self._context_length:
            raise ContextTooLongError(n_needed, self._context_length)
        job = ScoringJob(request, cancelled or threading.Event())
        self._enqueue(job)
        return job.wait()

    @property
    def n_queued(self) -> int:
        """Requests that wait for a sequence."""
        return len(self._queue)

    @property
    def failed(self) -> BaseException | None:
        """What ended its thread, or None. It refuses all requests then, and is to be replaced."""
        return self._failed

    def close(self) -> None:
        """Fail the requests that are left, end the thread and free the contexts."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _events(self, sequence: Sequence) -> Iterator[Delta | GenerationResult]:
        self._enqueue(sequence)
        try:
            while True:
                event = sequence.events.get()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    return
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            sequence.abandoned = True

    def _enqueue(self, arrival: Sequence | ScoringJob) -> None:
        with self._changed:
            if self._failed is not None:
                raise BackendError(
                    f"the model's scheduler failed ({self._failed!r}); load the model again"
                ) from self._failed
            if self._closed:
                raise ModelNotLoadedError("", "it was closed; load it again")
            n_queued = len(self._queue) + len(self._scoring)
            if n_queued >= self._max_queued:
                raise QueueFullError(n_queued, self.metrics.seconds_per_request())
            if isinstance(arrival, ScoringJob):
                self._scoring.append(arrival)
            else:
                self._queue.append(arrival)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"llamacpp-{self._model.desc}", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    # For the scheduler's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except BaseException as error:
            self._failed = error
            self._end_all(error)
            logger.exception("the scheduler failed")
        finally:
            self._end_all(ModelNotLoadedError("", "it was closed; load it again"))
            self._prefixes.keep_all(lane for lane in self._lanes if lane.context.usable)
            self._lanes.close()
            self._scoring.close()

    def _wait_for_work(self) -> bool:
        """Wait until there is a request, and return False once there will be none any more."""
        with self._changed:
            while not (self._closed or self._queue or self._scoring or self._occupied()):
                self._changed.wait()
            return not self._closed

    def _step(self) -> None:
        """Admit what has room, compute a chunk, decode a token of each sequence, score a group."""
        self._drop_finished()
        self._admit()
        if not self._mixed:
            self._prefill_one_chunk()
        for lane in self._lanes:
            if self._mixed:
                self._compute_all(lane)
            else:
                self._decode(lane)
        self._scoring.step()
        self._measure()

    def _measure(self) -> None:
        slots = [slot for lane in self._lanes for slot in lane.slots.slots]
        self.metrics.at(
            running=sum(slot.sequence is not None for slot in slots),
            waiting=len(self._queue),
            kv_tokens=sum(slot.n_tokens for slot in slots),
            kv_cells=sum(lane.n_cells for lane in self._lanes),
        )

    def _occupied(self) -> list[tuple[Lane, Slot]]:
        return [(lane, slot) for lane in self._lanes for slot in lane.slots.taken]

    def _drop_finished(self) -> None:
        """End the requests whose callers have gone, and those whose time is over."""
        for lane, slot in self._occupied():
            assert slot.sequence is not None
            if slot.sequence.ended_by_caller_or_clock():
                self._release(lane, slot)
        with self._changed:
            waiting = list(self._queue)
        for sequence in waiting:
            if sequence.ended_by_caller_or_clock():
                self._leave_queue(sequence)

    # Admission

    def _admit(self) -> None:
        """Give sequences to the requests that have waited longest, as many as there is room for.

        One whose prompt begins like one that is being computed waits for those blocks, and others
        may pass it. Otherwise nobody passes: a long request gets its turn.
        """
        for sequence in list(self._queue):
            if self._is_being_computed(sequence):
                continue
            try:
                with translated():
                    lane = self._lanes.lane_for(sequence)
            except Exception as error:  # no memory for its context
                self._leave_queue(sequence)
                sequence.fail(error)
                continue
            if lane is None:
                return
            self._leave_queue(sequence)
            self._begin(lane, sequence)

    def _leave_queue(self, sequence: Sequence) -> None:
        with self._changed:
            self._queue.remove(sequence)

    def _is_being_computed(self, sequence: Sequence) -> bool:
        """Whether a prompt that is being computed will soon hold more of this one than is held."""
        if not self._prefilling:
            return False
        slots = (slot for lane in self._lanes for slot in lane.slots.slots)
        held = self._prefixes.n_held(sequence, slots)
        return any(
            slot.sequence is not None
            and self._prefixes.shared(slot.sequence.hashes, sequence) > held
            for _, slot in self._prefilling
        )

    def _begin(self, lane: Lane, sequence: Sequence) -> None:
        slot = lane.slots.to_overwrite(sequence.hashes)
        lane.slots.take(slot, sequence)
        sequence.state = "prefilling"
        self.metrics.admitted(time.monotonic() - sequence.arrived)
        try:
            with translated():
                if not sequence.begin():
                    self._release(lane, slot)
                    return
                sequence.n_past = sequence.n_cached = self._prefixes.bring(lane, slot, sequence)
                if self._mixed:
                    self._prefixes.make_room(lane)
        except Exception as error:
            self._fail(lane, slot, error)
            return
        self.metrics.reused(sequence.n_cached)
        self._prefilling.append((lane, slot))

    # Computing

    def _prefill_one_chunk(self) -> None:
        """Compute the next tokens of the next prompt; prompts take turns."""
        if self._prefilling:
            lane, slot = self._prefilling[0]
            room = lane.context.n_batch
            self._compute(lane, choose_parts([], [slot], room=room, chunk=self._chunk))

    def _decode(self, lane: Lane) -> None:
        """Decode what each running sequence has written last, and sample the next token.

        Where that is one token, those of all sequences together; more, which a grammar forced, in
        a call for each sequence, as for a prompt.
        """
        room = (LONGEST_RUN + 1) * lane.slots.count
        parts = choose_parts(lane.slots.running, [], room=room, chunk=self._chunk)
        single = [part for part in parts if part.n_tokens == 1]
        several = [part for part in parts if part.n_tokens > 1]
        size = self._exactness.batch_size(lane.slots.count) if len(single) > 1 else 1
        for group in (*groups(single, size), *groups(several, 1)):
            self._compute(lane, group)

    def _compute_all(self, lane: Lane) -> None:
        """Decode what running sequences have written, beside what there is room for of prompts."""
        prompts = [slot for other, slot in self._prefilling if other is lane]
        room = lane.context.n_batch
        self._compute(lane, choose_parts(lane.slots.running, prompts, room=room, chunk=self._chunk))

    def _compute(self, lane: Lane, parts: list[Part]) -> None:
        """Compute these in one call, and sample the next token of those that are whole then."""
        parts = [part for part in parts if part.slot.sequence is part.sequence]
        if not parts:
            return
        n_running = sum(part.sequence.state == "running" for part in parts)
        try:
            with translated():
                outputs = fill(lane.batch, parts)
                lane.context.decode(lane.batch)
        except Exception as error:
            if len(parts) == 1:
                self._fail(lane, parts[0].slot, error)
                return
            for part in parts:  # one of them may be to blame
                self._compute(lane, [part])
            return
        if n_running:
            self.metrics.stepped(n_running)
        for part in parts:
            self._computed(lane, part)
        self._sample(lane, outputs)

    def _computed(self, lane: Lane, part: Part) -> None:
        """Take note of what is in memory now; a prompt lets the next one have its turn."""
        slot, sequence, n_tokens = part.slot, part.sequence, part.n_tokens
        sequence.n_past = part.end
        if sequence.state != "prefilling":
            return
        self.metrics.computed(n_tokens)
        slot.held = sequence.hashes[: sequence.n_computed_blocks]
        self._prefilling.remove((lane, slot))
        if part.gives_output:
            return
        try:
            with translated():
                self._prefixes.checkpoint(lane, slot, list(self._queue))
        except Exception as error:
            self._fail(lane, slot, error)
        else:
            self._prefilling.append((lane, slot))

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
            with translated():
                sampled = pyllama.sample_each(lane.context, chains, n_threads=self._n_threads)
        except Exception as error:  # a server that was lost
            sampled = dict.fromkeys(chains, error)
        for output, outcome in sampled.items():
            part = outputs[output]
            if part.slot.sequence is not part.sequence:
                continue  # one before it took the lane down
            try:
                with translated():
                    self._go_on(lane, part, outcome, output)
            except Exception as error:
                self._fail(lane, part.slot, error)

    def _go_on(self, lane: Lane, part: Part, outcome: int | Exception, output: int) -> None:
        """Write a token that was sampled."""
        if isinstance(outcome, Exception):
            raise outcome
        sequence, slot = part.sequence, part.slot
        if sequence.state == "prefilling":
            self.metrics.began(time.monotonic() - sequence.arrived)
        sequence.write(outcome, lane.context, output)
        if sequence.state == "ended":
            self.metrics.ended(time.monotonic() - sequence.arrived, sequence.n_written)
            if self._rolls_back and not self._reproducible:
                slot.held = block_hashes(sequence.tokens[: sequence.n_past])
            self._release(lane, slot)

    # Endings

    def _fail(self, lane: Lane, slot: Slot, error: BaseException) -> None:
        assert slot.sequence is not None
        slot.sequence.fail(error)
        slot.held = ()  # who knows what is in there
        self._release(lane, slot)
        if not lane.context.usable:
            for other in lane.slots.taken:
                self._fail(lane, other, error)
            self._lanes.drop(lane)

    def _release(self, lane: Lane, slot: Slot) -> None:
        if (lane, slot) in self._prefilling:
            self._prefilling.remove((lane, slot))
        if self._mixed and lane.context.usable:
            self._prefixes.trim(lane, slot)
        lane.slots.give_back(slot)

    def _end_all(self, error: BaseException) -> None:
        with self._changed:
            self._closed = True
            queued, self._queue = list(self._queue), deque()
        for sequence in queued:
            sequence.fail(error)
        self._scoring.fail(error)
        for lane, slot in self._occupied():
            self._fail(lane, slot, error)

    def _make_context(self, n_cells: int, count: int) -> pyllama.Context:
        return pyllama.Context(
            self._model,
            n_ctx=n_cells,
            n_seq_max=count,
            n_batch=max(longest_call(self._chunk), count),
            n_outputs_max=count,
            n_threads=self._n_threads,
            kv_unified=self._mixed,
            # Its sums depend on how many sequences a batch has, and on their lengths.
            flash_attn="disabled" if self._reproducible else "auto",
        )
