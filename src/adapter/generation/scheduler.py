"""Continuous batching: one thread drives the sequences of all requests. See docs/scheduling.md."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn

import pyllama
from adapter.errors import (
    ContextTooLongError,
    ModelNotLoadedError,
    QueueFullError,
    ResourceError,
    TransientError,
)
from adapter.generation.batch_plan import ExactPlan, MixedPlan, Plan
from adapter.generation.busy import BUSY
from adapter.generation.contexts import Contexts, with_flash_attention
from adapter.generation.core import SchedulerCore
from adapter.generation.exactness import Exactness
from adapter.generation.failures import insist, note, translation
from adapter.generation.generator import Generator
from adapter.generation.idle_prefill import IdlePrefill
from adapter.generation.memory.blocks import CHUNK
from adapter.generation.memory.own import OwnMemory
from adapter.generation.memory.prefix_cache import PrefixCache
from adapter.generation.memory.prefix_files import PrefixFiles
from adapter.generation.memory.prefix_folder import PrefixFolder
from adapter.generation.memory.prefix_reuse import PrefixReuse, pads, rolls_back
from adapter.generation.memory.shared import SharedMemory
from adapter.generation.memory.strategy import MemoryStrategy, Room
from adapter.generation.metrics import Metrics
from adapter.generation.pending import Pending
from adapter.generation.processor_load import ProcessorLoad
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.scoring import ScoringRequest, ScoringResult, longest_continuation
from adapter.generation.scoring_queue import ScoringJob, ScoringQueue
from adapter.generation.sequence import ScheduledRequest
from adapter.generation.shutdown import end_at_exit
from adapter.generation.submitted import Submitted, closed_error
from adapter.generation.thread_start import not_started, start_thread
from adapter.generation.thread_tuner import ThreadTuner
from adapter.generation.waiting import Waiting

logger = logging.getLogger(__name__)

FILE_SECONDS = 0.02
"""How long requests that wait for a file are left alone, in seconds, unless it is read before."""

BUSY_SECONDS = 0.1
"""How often a scheduler without a request checks whether others compute any, in seconds, if it has
something to compute in between.
"""

IDLE_SECONDS = 5.0
"""How long an isolated scheduler keeps its context for the next request."""

RUN_SECONDS = 0.016
"""How long the scheduler leaves answers on a GPU alone that go on by themselves, in seconds, before
it looks whether their callers still wait.
"""

MAX_PREPARED = 256
"""How many waiting requests may already have a sampler, made in the thread of their caller."""

DEVICE_PROMPTS = 4
"""Prompts of which a GPU computes a chunk in each step, each in a call of its own."""

GRACE_SECONDS, STOP_SECONDS = 1.0, 0.1
"""How many seconds a stopping thread has for a step with requests, and how often its computation is
cancelled after that. llama.cpp logs each cancellation as an error.
"""


class Scheduler(Generator):
    """Computes the requests of a model together.

    One thread admits requests to free sequences, computes the part of their prompts that is not in
    memory, decodes all running sequences in one batch each step, and samples each with its own
    seeded chain. On a CPU a request gives the same bytes alone and among others.

    Args:
        model: its owner closes the scheduler before it.
        context_length: tokens that a request and its answer may have together.
        n_threads: threads to compute with.
        n_cells: tokens that all sequences may hold together.
        max_sequences: the most requests that run at once; more wait.
        max_queued: the most that wait; more are refused.
        cache_bytes: RAM for beginnings of prompts that are no longer in a context.
        reproducible: keep the bytes of each request independent of the others, at the cost of flash
            attention, of batches that change them, and of answers that are not reused. With flash
            attention all the same, sequences are decoded one by one.
        chunk: tokens of a prompt that are computed at once.
        shared_memory: have one KV cache for all sequences, and compute all that there is in one
            batch: what a GPU is fastest with. Bytes do not stay then.
        isolated: compute one request at a time, each from nothing, in one context that is there
            only while there are requests: what one gives cannot depend on another then, on a GPU
            either.
        metrics: counts what it does.
        prefix_folder: keeps beginnings of prompts for other processes.
        context: settings of all contexts, where the user has any.
        batch_width: sequences that are decoded in each batch at the least, padded if fewer run,
            where bytes are kept and memory can be cut back.
        anchored: have attention read numbers of cells that leave the bytes the same on a GPU. The
            last of each ``batch_width`` sequences takes no request for it.
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
        shared_memory: bool = False,
        isolated: bool = False,
        metrics: Metrics | None = None,
        prefix_folder: PrefixFolder | None = None,
        context: pyllama.ContextParams | None = None,
        batch_width: int = 1,
        anchored: bool = False,
    ) -> None:
        self._model = model
        self._context_length = context_length
        self._max_queued = max_queued
        self._isolated = isolated
        #: What it has done so far.
        self.metrics = metrics or Metrics()
        # Acquired by itself: Ctrl-C inside a Condition's __enter__ would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        # A state that cannot be cut back is saved where a call ends, so prompts are computed to
        # there.
        whole_states = not rolls_back(model)
        call = CHUNK if whole_states else chunk
        # A state that cannot be cut back would be lost with a batch that fails.
        goes_on = shared_memory and not whole_states
        asked = replace(context or pyllama.ContextParams(), n_threads=n_threads)
        params = with_flash_attention(asked, reproducible=reproducible)
        self._contexts = Contexts(
            model,
            params,
            chunk=call,
            scoring_chunk=chunk,
            mixed=shared_memory,
            drafts=goes_on,
        )
        flash_attention = params.flash_attn != "disabled"
        padding = rolls_back(model) if anchored else pads(model)
        width = batch_width if padding and reproducible and not flash_attention else 1
        exactness = Exactness(
            self._contexts.make,
            reproducible=reproducible,
            flash_attention=flash_attention,
            width=width,
            anchored=anchored,
        )
        on_cpu = not (shared_memory or anchored) and (reproducible or not isolated)
        tuner = _tuner(exactness, n_threads, context) if on_cpu else None
        self._contexts.tuner = tuner
        one_context = shared_memory or isolated
        strategy = SharedMemory if one_context else OwnMemory
        saved = PrefixCache(cache_bytes, rolls_back=not whole_states)
        memory: MemoryStrategy = strategy(
            self._contexts.make,
            PrefixReuse(
                model,
                saved,
                exactness,
                PrefixFiles(prefix_folder, saved, self._wake) if prefix_folder else None,
                reuses=not isolated,
                keeps_answers=not reproducible,
                shared_memory=shared_memory,
            ),
            Room(context_length, n_cells, max_sequences, width, anchored and width > 1),
        )
        mixes = one_context and width == 1
        n_prompts = DEVICE_PROMPTS if anchored else 1
        plan: Plan = MixedPlan(call) if mixes else ExactPlan(exactness, call, n_prompts)
        self._waiting = Waiting(count_borders=whole_states)
        self._scoring = ScoringQueue(
            self._contexts.make_for_scoring,
            stopping=self._is_closed,
            longest=context_length,
            chunk=chunk,
            reuses=not (whole_states or isolated),
            metrics=self.metrics,
            tuner=tuner,
        )
        self._core = SchedulerCore(
            memory,
            plan,
            self._waiting,
            self._scoring,
            None if one_context else IdlePrefill(memory, exactness, self.metrics, tuner),
            self.metrics,
            max_sequences=max_sequences,
            n_threads=n_threads,
            tuner=tuner,
            seconds=RUN_SECONDS if goes_on else 0.0,
            isolated=isolated,
            stopping=self._is_closed,
        )

    def start(self) -> None:
        """Start the thread now if that is possible; if not, the first request does.

        Python 3.12 starts no thread once the main thread has ended, and threads of the user's may
        make their first requests only then.
        """
        with suppress(TransientError, ModelNotLoadedError), self._lock:
            self._start_thread()

    # For callers' threads

    def submit(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Pending[Delta | GenerationResult]:
        """See ``Generator``."""
        room = self._context_length - len(request.prompt)
        if room < 1:
            raise ContextTooLongError(len(request.prompt), self._context_length)
        gone = cancelled or threading.Event()
        sequence = ScheduledRequest(self._model.vocab, request, min(request.max_tokens, room), gone)
        return Submitted(self, sequence, partial(self._enqueue, sequence))

    def submit_scoring(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> Pending[ScoringResult]:
        """See ``Generator``."""
        n_needed = len(request.prompt) + longest_continuation(request)
        if n_needed > self._context_length:
            raise ContextTooLongError(n_needed, self._context_length)
        job = ScoringJob(request, cancelled or threading.Event())
        return Submitted(self, job, partial(self._enqueue, job))

    @property
    def n_queued(self) -> int:
        """Requests that wait for a slot, or for their scores."""
        return len(self._waiting) + len(self._scoring)

    @property
    def failed(self) -> BaseException | None:
        """The error that ended its thread, or None. A failed scheduler refuses all requests;
        replace it.
        """
        if self._failed is None and not self._closed and not self.lives():
            self._failed = ResourceError("the thread that computes the model's requests ended")
        return self._failed

    def close(self, timeout: float | None = None) -> None:
        """Fail the remaining requests, end the thread and free the contexts.

        Args:
            timeout: seconds to wait for the thread's end; None to wait for ever.
        """
        self.stop()
        thread = self._thread
        if thread is threading.current_thread():
            return  # the thread ends after this step
        until = math.inf if timeout is None else time.monotonic() + timeout
        patience = GRACE_SECONDS if self._core.has_work else 0.0  # nobody waits for other steps
        while thread is not None and thread.is_alive():
            left = until - time.monotonic()
            if left <= 0:
                note(logger, logging.WARNING, "a computation hangs, and is left alone")
                return
            thread.join(min(patience, left))
            patience = STOP_SECONDS
            self._contexts.cancel()

    def stop(self) -> None:
        """Refuse requests from now on, and let the thread end after its step."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._core.wake()

    def forget_thread(self) -> None:
        """Refuse further use: a child of fork() does not have the thread."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._thread, self._closed = None, True
        self._failed = pyllama.ForkedError(
            "this process was forked from the one that computes the model's requests; start "
            "processes with multiprocessing's 'spawn' or 'forkserver' method"
        )

    def _enqueue(self, arrival: ScheduledRequest | ScoringJob) -> None:
        # A sampler takes memory, so not all that wait have one.
        few_wait = len(self._waiting) < MAX_PREPARED
        if few_wait and not self._closed and isinstance(arrival, ScheduledRequest):
            arrival.prepare()
        with self._lock:
            # First: Ctrl-C after this leaves nothing in the queue that the thread does not see.
            self._changed.notify_all()
            if self._closed or self.failed is not None:
                self.refuse()
            if self.n_queued >= self._max_queued:
                raise QueueFullError(self.n_queued, self.metrics.seconds_per_request())
            self._start_thread()
            taken = arrival.request.taken
            try:
                taken.pending = True
                if isinstance(arrival, ScoringJob):
                    self._scoring.append(arrival)
                else:
                    self._waiting.append(arrival)
                self._core.wake()
            except BaseException:  # no memory, or Ctrl-C
                if arrival.state == "queued" and not self._waits(arrival):
                    taken.pending = False  # no other thread will reset it
                raise

    def lives(self) -> bool:
        """Whether the computing thread lives, or is still to be started."""
        thread = self._thread
        return thread is None or thread.is_alive()

    def refuse(self) -> NoReturn:
        """Raise the reason why nothing is computed any more."""
        failed = self.failed
        if isinstance(failed, pyllama.ForkedError):
            raise ModelNotLoadedError("", str(failed)) from failed
        if failed is not None:
            raise ResourceError(
                f"the model's scheduler failed ({failed!r}); load the model again"
            ) from failed
        raise closed_error()

    @property
    def forked(self) -> bool:
        """Whether this is a child process. Only the parent's thread continues what began there."""
        return isinstance(self._failed, pyllama.ForkedError)

    def _waits(self, arrival: ScheduledRequest | ScoringJob) -> bool:
        if isinstance(arrival, ScoringJob):
            return arrival in self._scoring
        return arrival in self._waiting

    def _start_thread(self) -> None:
        if self._thread is not None:
            return
        end_at_exit(self)
        thread = threading.Thread(
            target=self._run, name=f"llamacpp-{self._model.desc}", daemon=True
        )
        try:
            start_thread(thread)
        except (RuntimeError, MemoryError) as error:
            raise not_started(error, "to compute the model's requests on") from error
        self._thread = thread

    # For the scheduler's thread

    def _run(self) -> None:
        if not self._claim_thread():
            return
        shut_down = self._shut_down  # made while there is memory for it
        try:
            while self._go_on():
                pass
        except BaseException as error:  # it cannot continue
            self._failed = error
        finally:
            BUSY.discard(self)
            insist(shut_down)

    def _go_on(self) -> bool:
        """Take a step once there is something to do, and handle what it raises."""
        try:
            if not self._wait_for_work():
                return False
        except MemoryError:  # a few bytes to wait with, which will be freed somewhere
            time.sleep(0.01)
            return True
        try:
            self._core.step()
            self._wait_for_files()
        except pyllama.DecodeCancelled:
            pass  # the requests that it affects have their error
        except BaseException as error:
            self._core.recover(error)
        return True

    def _claim_thread(self) -> bool:
        """Whether this thread is the scheduler's: an interrupt during its start may leave two."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.current_thread()
            return self._thread is threading.current_thread()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to compute. Returns False if there will be nothing."""
        patience = IDLE_SECONDS if self._isolated else None
        while True:
            with self._lock:
                if self._closed:
                    return False
                if self._core.has_work:
                    BUSY.add(self)
                    return True
                BUSY.discard(self)
                if self._core.has_idle_work:
                    if not BUSY:
                        return True
                    self._changed.wait(BUSY_SECONDS)
                    continue
                if self._changed.wait(patience):
                    continue
            patience = None
            self._core.free()

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()
        self._core.wake()

    def _is_closed(self) -> bool:
        return self._closed

    def _wait_for_files(self) -> None:
        """Wait a little if nothing can be done before a file was read."""
        with self._lock:
            if not self._closed and self._core.only_waits:
                self._changed.wait(FILE_SECONDS)

    def _shut_down(self) -> None:
        """End all remaining requests, save what the slots hold, and free the contexts."""
        failed = self._failed
        reason = closed_error() if failed is None else translation(failed)
        with self._lock:
            self._closed = True
        if failed is not None:
            note(logger, logging.ERROR, "the scheduler failed", exc_info=failed)
        self._core.end_all(reason)
        try:
            with ExitStack() as last:
                last.callback(self._core.free)
                self._core.memory.prefixes.write_all()
        except BaseException as error:
            note(logger, logging.ERROR, "closing a scheduler failed", exc_info=error)


def _tuner(
    exactness: Exactness, n_threads: int, context: pyllama.ContextParams | None
) -> ThreadTuner | None:
    """What has fewer threads compute on a busy machine, unless the user gave their number."""
    fixed = context is not None and (context.n_threads or context.n_threads_batch) is not None
    if n_threads < 2 or fixed:
        return None
    return ThreadTuner(n_threads, exactness.threads_are_exact, ProcessorLoad())
