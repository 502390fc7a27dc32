"""An error at any place of the scheduler's thread: whom it concerns is told, and the next works.

Whatever fails, every request ends with its result or with that very error, what is answered has the
bytes that the request has alone, and the next request is answered as if nothing had been.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from linecache import getline
from pathlib import Path

import pytest
from schedules import AS_ON_GPUS, FORCING, isolated_of, request_of, same, scheduler_of, tokens

import adapter.generation
import pyllama
from adapter.generation import (
    answer_writer,
    batch_plan,
    batch_runner,
    batch_sizes,
    completion,
    continuous_batch,
    exactness,
    metrics,
    running,
    scoring,
    scoring_queue,
    sequence,
)
from adapter.generation import scheduler as scheduler_module
from adapter.generation.memory import (
    anchors,
    kv_cache,
    prefix_cache,
    prefix_reuse,
    shared,
    strategy,
)
from adapter.generation.request import GenerationResult
from adapter.generation.scheduler import Scheduler
from adapter.generation.scoring import ScoringRequest

SHARED = tokens(0, 130)
REQUESTS = [
    request_of(SHARED + tokens(1, 70), max_tokens=8, seed=1),
    request_of(SHARED + tokens(2, 20), max_tokens=10, seed=2, streamed=False),
    request_of(tokens(3, 30), max_tokens=9, seed=3, constraint=FORCING),
    request_of(tokens(4, 75), max_tokens=6, seed=4, logprobs=1),
]
SCORED = ScoringRequest(tokens(5, 100), ((5,), (6, 7), (6, 8)), (2,))

ERRORS = {
    "MemoryError": lambda: MemoryError("mine"),
    "NativeMemoryError": lambda: pyllama.NativeMemoryError("mine"),
    "PoisonedError": lambda: pyllama.PoisonedError("mine"),
    "RuntimeError": lambda: RuntimeError("mine"),
    "DecodeCancelled": lambda: pyllama.DecodeCancelled("mine", 2),
    "SystemExit": lambda: SystemExit("mine"),
}

TRIALS = 10
"""How often requests run until something is called."""

CALLS = [
    (pyllama.Context, "__init__"),
    (pyllama.Context, "decode"),
    (pyllama.Context, "close"),
    (pyllama.Context, "logits"),
    (pyllama.Memory, "seq_rm"),
    (pyllama.Memory, "seq_cp"),
    (pyllama.Batch, "__init__"),
    (pyllama.Batch, "clear"),
    (pyllama.Batch, "add_tokens"),
    (pyllama, "sample_each"),
    (pyllama.SamplerChain, "close"),
    (pyllama.SamplerChain, "accept"),
    (answer_writer, "sampler_chain"),
    (answer_writer.AnswerWriter, "write"),
    (answer_writer.AnswerWriter, "finish"),
    (completion.Completion, "push"),
    (completion.Completion, "finish"),
    (sequence, "joined"),
    (sequence.ScheduledRequest, "begin"),
    (sequence.ScheduledRequest, "next_end"),
    (sequence.ScheduledRequest, "computed"),
    (sequence.ScheduledRequest, "write"),
    (sequence.ScheduledRequest, "tokens_between"),
    (sequence.ScheduledRequest, "ended_by_caller_or_clock"),
    (batch_plan, "choose_parts"),
    (batch_plan.ExactPlan, "step"),
    (batch_runner, "fill"),
    (batch_runner.BatchRunner, "compute"),
    (batch_runner.BatchRunner, "sample"),
    (running.RunningBatch, "admit"),
    (running.RunningBatch, "computed"),
    (running.RunningBatch, "write"),
    (running.RunningBatch, "release"),
    (exactness, "tried_sizes"),
    (exactness, "exact_cuts"),
    (exactness.Exactness, "batch_sizes"),
    (batch_sizes.BatchSizes, "sizes"),
    (strategy.MemoryStrategy, "in_progress"),
    (strategy.MemoryStrategy, "place"),
    (strategy.MemoryStrategy, "restore"),
    (strategy.MemoryStrategy, "release"),
    (kv_cache.KVCache, "to_overwrite"),
    (kv_cache.KVCache, "take"),
    (kv_cache.KVCache, "give_back"),
    (prefix_reuse.PrefixReuse, "n_cached"),
    (prefix_reuse.PrefixReuse, "restore"),
    (prefix_reuse.PrefixReuse, "track"),
    (prefix_reuse.PrefixReuse, "checkpoint"),
    (prefix_cache.PrefixCache, "find"),
    *[
        (metrics.Metrics, name)
        for name in ("admitted", "reused", "computed", "stepped", "began", "ended", "at")
    ],
    (scoring.Scorer, "__init__"),
    (scoring_queue, "prompt_steps"),
    (scoring_queue.ScoringQueue, "step"),
    (scoring_queue.ScoringQueue, "drop_finished"),
]
SHARED_CALLS = [
    (batch_plan.MixedPlan, "step"),
    (shared.SharedMemory, "release"),
    (shared.SharedMemory, "_evict"),
    (kv_cache.Slot, "keep"),
    (pyllama.Memory, "seq_rm"),
    (pyllama.Memory, "seq_cp"),
    (pyllama.Generation, "__init__"),
    (pyllama.Generation, "add"),
    (pyllama.Generation, "wait"),
    (continuous_batch.ContinuousBatch, "join"),
    (continuous_batch.ContinuousBatch, "_write"),
    (continuous_batch.ContinuousBatch, "wait"),
    (prefix_reuse, "block_hashes"),
]
"""Of what is computed as on a GPU."""
PADDED_CALLS = [
    (exactness, "tried_windows"),
    (batch_sizes.Windows, "cover"),
    (running.RunningBatch, "padding"),
    (strategy.MemoryStrategy, "end_of"),
    (pyllama.Memory, "seq_rm"),
    (pyllama.Context, "decode"),
]
"""Where batches are padded."""


class Schedules:
    """Schedulers of one kind, and what the requests give with none beside them."""

    def __init__(self, make, *, exact=True):
        self.make = make
        self.exact = exact
        fresh = make()
        self.expected = [replace(fresh.generate(each), cache_read_tokens=0) for each in REQUESTS]
        self.scores = fresh.score(SCORED).scores
        fresh.close()

    def run(self, scheduler):
        """Compute all requests at once; return what each gave, or the error that it got."""
        with ThreadPoolExecutor(len(REQUESTS) + 1) as threads:
            asked = [threads.submit(scheduler.generate, each) for each in REQUESTS]
            asked.append(threads.submit(scheduler.score, SCORED))
            return [each.exception(60) or each.result() for each in asked]

    def check(self, found, error=None):
        """Every request ended with its result or with that error; return how many with the error.

        :param error: what was raised; None where all must have been answered.
        """
        failed = 0
        *results, scored = found
        for result, expected in zip(results, self.expected, strict=True):
            if isinstance(result, GenerationResult):
                assert not self.exact or same(result, expected)
            else:
                failed += 1
                assert_caused(result, error)
        if isinstance(scored, BaseException):
            failed += 1
            assert_caused(scored, error)
        else:
            assert not self.exact or scored.scores == self.scores
        return failed

    def check_next(self, scheduler, *, may_fail=False):
        """All are answered now: by this scheduler, or where it failed, by the next one."""
        if may_fail and scheduler.failed is not None:
            scheduler.close()
            scheduler = self.make()
        assert scheduler.failed is None
        assert not self.check(self.run(scheduler))
        deadline = time.monotonic() + 30
        while (
            scheduler._core.has_work or scheduler.metrics.snapshot().running
        ) and time.monotonic() < deadline:
            time.sleep(0.001)  # the step goes on after the last result
        assert not scheduler._core.memory.taken
        assert not scheduler._core.running.prefilling
        assert not scheduler.n_queued
        return scheduler


def assert_caused(found, error):
    seen = found
    while seen is not None and seen is not error:
        seen = seen.__cause__
    assert seen is error is not None, repr(found)


@pytest.fixture(scope="module")
def schedules_of(write_tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / "q8.gguf"
    pyllama.quantize(write_tiny_model(n_embd=256, n_ff=256, n_ctx_train=4096), path, "Q8_0")
    model = pyllama.Model(path)
    recurrent = pyllama.Model(write_tiny_model(architecture="mamba", n_ctx_train=4096))
    window = pyllama.Model(write_tiny_model(architecture="gemma2", n_ctx_train=4096))
    few_cells = pytest.MonkeyPatch()  # in anchors, which take time to compute
    for module in (anchors, exactness):
        few_cells.setattr(module, "LEAST", 64)
        few_cells.setattr(module, "STEP", 32)
    few_cells.setattr(exactness, "READ", (64, 96))
    few_cells.setattr(exactness, "LONGER", 40)
    yield {
        "batched": Schedules(lambda: scheduler_of(model)),
        "few sequences": Schedules(lambda: scheduler_of(model, max_sequences=2)),
        "isolated": Schedules(lambda: isolated_of(model)),
        "padded": Schedules(lambda: scheduler_of(model, batch_width=4)),
        "anchored": Schedules(lambda: scheduler_of(model, batch_width=4, anchored=True)),
        "recurrent": Schedules(lambda: scheduler_of(recurrent)),
        "window": Schedules(lambda: scheduler_of(window)),
        "shared": Schedules(lambda: scheduler_of(model, **AS_ON_GPUS), exact=False),
        "shared recurrent": Schedules(lambda: scheduler_of(recurrent, **AS_ON_GPUS), exact=False),
    }
    few_cells.undo()
    for each in (model, recurrent, window):
        each.close()


def raise_once(monkeypatch, scheduler, owner, name, error, *, nth):
    """Have the nth call of something raise, on the scheduler's thread. Returns how often so far."""
    call, raised, count = getattr(owner, name), [], [0]

    def counting(*args, **options):
        if threading.current_thread() is scheduler._thread:
            count[0] += 1
            if count[0] == nth:
                raised.append(error)
                raise error
        return call(*args, **options)

    monkeypatch.setattr(owner, name, counting)
    return raised


def named(value):
    return value if isinstance(value, str) else getattr(value, "__name__", "").rpartition(".")[2]


def raised_at(schedules, owner, name, error, nth):
    """Raise at the nth call of something in a new scheduler; return how often it was raised."""
    scheduler = schedules.make()
    with pytest.MonkeyPatch.context() as patch:
        raised = raise_once(patch, scheduler, owner, name, error, nth=nth)
        failed = schedules.check(schedules.run(scheduler), error)
        assert not failed or raised
    schedules.check_next(scheduler, may_fail=True).close()
    return len(raised)


def inject(schedules, owner, name, make_error, calls=(1,)):
    """Raise at some calls of something, each in a new scheduler; return how often it was raised.

    Some are made only where requests overlap, which they do not always: then once more.
    """
    for _ in range(TRIALS):
        n_raised = sum(raised_at(schedules, owner, name, make_error(), nth) for nth in calls)
        if n_raised:
            break
    return n_raised


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("owner", "name"), CALLS, ids=named)
def test_an_error_of_a_call_ends_whom_it_concerns(schedules_of, owner, name, kind, monkeypatch):
    if owner in (pyllama.SamplerChain, answer_writer):  # where a caller's thread made no sampler
        monkeypatch.setattr(scheduler_module, "MAX_PREPARED", 0)
    if owner is pyllama.Context and name == "close":
        schedules = schedules_of["isolated"]  # it closes contexts between requests
    elif name == "checkpoint":
        schedules = schedules_of["recurrent"]
    else:
        schedules = schedules_of["batched"]
    calls = (1, 3, 10) if kind == "MemoryError" else (1,)
    assert inject(schedules, owner, name, ERRORS[kind], calls), "it was never called"


@pytest.mark.parametrize("name", ["sampler_chain", "Completion"])
def test_a_sampler_that_a_caller_cannot_make_is_made_by_the_scheduler(
    schedules_of, name, monkeypatch
):
    make, raised = getattr(answer_writer, name), []

    def failing(*args, **options):
        if threading.current_thread() is not scheduler._thread:
            raised.append(name)
            raise MemoryError
        return make(*args, **options)

    scheduler = schedules_of["batched"].make()
    monkeypatch.setattr(answer_writer, name, failing)
    assert not schedules_of["batched"].check(schedules_of["batched"].run(scheduler))
    assert len(raised) == len(REQUESTS)
    scheduler.close()


@pytest.mark.parametrize("kind", ["MemoryError", "NativeMemoryError", "DecodeCancelled"])
@pytest.mark.parametrize(("owner", "name"), SHARED_CALLS, ids=named)
def test_an_error_of_a_call_as_on_a_gpu_ends_whom_it_concerns(schedules_of, owner, name, kind):
    schedules = schedules_of["shared"]
    assert inject(schedules, owner, name, ERRORS[kind], calls=(1, 4)), "it was never called"


@pytest.mark.parametrize("kind", ["MemoryError", "DecodeCancelled"])
def test_a_slot_is_free_again_if_its_request_fails_just_after_it_got_it(
    schedules_of, kind, monkeypatch
):
    """Else it is padded at once, where its memory still holds another prompt."""
    schedules = schedules_of["padded"]
    place, error, raised = strategy.MemoryStrategy.place, ERRORS[kind](), []
    scheduler = schedules.make()

    def failing(memory, sequence, *args):
        slot = place(memory, sequence, *args)
        if not raised and slot is not None and memory is scheduler._core.memory:
            raised.append(slot)
            raise error
        return slot

    schedules.run(scheduler)
    with monkeypatch.context() as patch:
        patch.setattr(strategy.MemoryStrategy, "place", failing)
        schedules.check(schedules.run(scheduler), error)
    assert raised
    schedules.check_next(scheduler).close()


@pytest.mark.parametrize("kind", ["MemoryError", "NativeMemoryError", "SystemExit"])
@pytest.mark.parametrize(("owner", "name"), PADDED_CALLS, ids=named)
def test_an_error_of_a_call_where_batches_are_padded(schedules_of, owner, name, kind):
    calls = (1, 12, 40) if owner in (pyllama.Memory, pyllama.Context) else (1,)
    assert inject(schedules_of["padded"], owner, name, ERRORS[kind], calls), "it was never called"


@pytest.mark.parametrize("kind", ["MemoryError", "NativeMemoryError", "DecodeCancelled"])
def test_an_anchor_that_cannot_grow_ends_whom_it_concerns(schedules_of, kind):
    owner, name = strategy.MemoryStrategy, "end_of_anchor"
    assert inject(schedules_of["anchored"], owner, name, ERRORS[kind], calls=(1, 9))


FOLDER = str(Path(adapter.generation.__file__).parent)
BEYOND = {"_run", "_claim_thread", "insist", "_called"}
"""Functions that are the net itself."""


class Lines:
    """Follows the scheduler's thread line by line, and raises at one of them, once."""

    def __init__(self, monkeypatch):
        self.seen = {}
        self.at, self.error, self.raised = None, None, False
        wait = Scheduler._wait_for_work

        def waiting(scheduler):
            # An error that is raised by a tracing function ends the tracing.
            sys.settrace(self._enter)
            return wait(scheduler)

        monkeypatch.setattr(Scheduler, "_wait_for_work", waiting)

    def arm(self, line, error):
        self.at, self.error, self.raised = line, error, False

    def _enter(self, frame, event, _argument):
        code = frame.f_code
        if code.co_filename.startswith(FOLDER) and code.co_name not in BEYOND:
            return self._line
        return None

    def _line(self, frame, event, _argument):
        if event == "line":
            path, number = frame.f_code.co_filename, frame.f_lineno
            line = (path.rpartition("/")[2], number)
            # That of a lock is passed once more when it is released, which cannot fail.
            if not getline(path, number).lstrip().startswith("with self"):
                self.seen.setdefault(line, None)
            if line == self.at and not self.raised:
                self.raised = True
                raise self.error
        return self._line


SEED = int(os.environ.get("PYLLAMA_FAULT_SEED", "1"))
N_LINES = int(os.environ.get("PYLLAMA_FAULT_LINES", "12"))
"""Lines of each kind of scheduler at which an error is tried; 0 for all of them."""


@pytest.mark.parametrize(
    "kind",
    [
        "batched",
        "few sequences",
        "isolated",
        "padded",
        "anchored",
        "recurrent",
        "window",
        "shared",
        "shared recurrent",
    ],
)
def test_no_memory_at_any_line_ends_whom_it_concerns(schedules_of, kind, monkeypatch):
    schedules = schedules_of[kind]
    lines = Lines(monkeypatch)
    scheduler = schedules.make()
    for _ in range(2):
        schedules.run(scheduler)
    scheduler.close()
    known = sorted(lines.seen)
    assert len(known) > 200
    if N_LINES:
        known = random.Random(SEED).sample(known, N_LINES)
    scheduler = schedules.make()
    for line in known:
        error = MemoryError(f"at {line}")
        lines.arm(line, error)
        schedules.check(schedules.run(scheduler), error)
        lines.arm(None, None)
        scheduler = schedules.check_next(scheduler, may_fail=True)
    scheduler.close()
