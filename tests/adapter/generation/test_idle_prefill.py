"""Answers that are computed again as prompts while nobody asks: next turns keep their bytes."""

from __future__ import annotations

import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from schedules import alone, endless, isolated_of, request_of, same, scheduler_of, tokens

import pyllama
from adapter.generation import idle_prefill, processor_load, thread_tuner
from adapter.generation import scheduler as scheduler_module
from adapter.generation.busy import BUSY
from adapter.generation.idle_prefill import IdlePrefill
from adapter.generation.memory import kv_cache, prefix_reuse
from adapter.generation.memory.blocks import BLOCK, LEAST_LEFT
from adapter.generation.metrics import Metrics
from adapter.generation.processor_load import ProcessorLoad

MAX_TOKENS = 40


class Talk:
    """A conversation with a scheduler. The same requests come whatever else runs."""

    def __init__(self, scheduler, seed=0, *, first=50):
        self.scheduler, self.seed = scheduler, seed
        self.prompt = tokens(seed, first)
        self.asked = []

    def turn(self):
        request = replace(endless(self.seed), prompt=self.prompt, max_tokens=MAX_TOKENS)
        result = self.scheduler.generate(request)
        self.asked.append((request, result))
        own = tokens(1000 * self.seed + len(self.asked), 20)
        self.prompt = (*request.prompt, *result.token_ids, *own)
        return result

    def turns(self, count):
        for _ in range(count):
            self.turn()
            wait_until_idle(self.scheduler)
        return self

    def check(self, model):
        """Each turn has the bytes that it has with nothing before it and nothing beside it."""
        for request, result in self.asked:
            assert same(result, alone(model, request))


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_until_idle(scheduler):
    wait_until(lambda: not scheduler._core.has_work and not scheduler._core.has_idle_work)


def n_idle(scheduler):
    return scheduler.metrics.snapshot().idle_tokens


@contextmanager
def stopped_after(monkeypatch, n_steps):
    """Have idle steps wait after so many; gives what is set then, and what lets them go on."""
    step, count, reached, go_on = IdlePrefill.step, [0], threading.Event(), threading.Event()

    def stopping(idle):
        step(idle)
        count[0] += 1
        if count[0] == n_steps:
            reached.set()
            go_on.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(IdlePrefill, "step", stopping)
        yield reached, go_on
        go_on.set()


@pytest.mark.parametrize("name", ["llama", "mamba", "jamba", "gemma2"])
def test_the_next_turn_has_the_same_bytes_and_less_to_compute(models, name):
    scheduler = scheduler_of(models[name])
    talk = Talk(scheduler, first=150).turns(4)
    talk.check(models[name])
    assert n_idle(scheduler) > 0
    if name == "llama":
        for (before, answer), (_, result) in zip(talk.asked[1:], talk.asked[2:], strict=False):
            n_known = len(before.prompt) + answer.completion_tokens
            assert result.cache_read_tokens > n_known - BLOCK - LEAST_LEFT
    scheduler.close()


def test_beside_other_work_it_has_fewer_threads(model, monkeypatch):
    """The load of a processor begins with each idle step and ends with it."""
    step, decode, others, used = IdlePrefill.step, pyllama.Context.decode, [0.0], set()

    def loaded_step(idle):
        others[0] = 1.0
        step(idle)
        others[0] = 0.0

    def noting(context, batch):
        if context.n_seq_max > 1:  # no trial
            used.add((others[0], context.n_threads))
        return decode(context, batch)

    monkeypatch.setattr(thread_tuner.ThreadTuner, "took", lambda *_: None)  # compares nothing
    monkeypatch.setattr(ProcessorLoad, "others", lambda *_, **__: others[0])
    monkeypatch.setattr(processor_load, "n_processors", lambda: 2)
    monkeypatch.setattr(IdlePrefill, "step", loaded_step)
    monkeypatch.setattr(pyllama.Context, "decode", noting)
    scheduler = scheduler_of(model, n_threads=2)
    talk = Talk(scheduler).turns(4)
    scheduler.close()
    assert used == {(0.0, 2), (1.0, 1)}
    monkeypatch.undo()
    talk.check(model)


def test_a_state_that_cannot_be_cut_back_is_saved_after_the_answer(models):
    """More of the next prompt is restored than where nothing was computed between turns."""
    idle, busy = scheduler_of(models["mamba"]), scheduler_of(models["mamba"])
    busy._core._idle = None
    talks = [Talk(scheduler, first=150).turns(5) for scheduler in (idle, busy)]
    n_cached = [sum(result.cache_read_tokens for _, result in talk.asked) for talk in talks]
    assert n_cached[0] > n_cached[1] > 0
    idle.close()
    busy.close()


def test_requests_that_continue_nothing_leave_nothing_to_do(scheduler):
    for seed in range(4):
        scheduler.generate(request_of(tokens(0, 100) + tokens(seed, 40), max_tokens=MAX_TOKENS))
    wait_until_idle(scheduler)
    assert n_idle(scheduler) == 0


@pytest.mark.parametrize(
    "make",
    [
        isolated_of,
        lambda model: scheduler_of(model, reproducible=False),
        lambda model: scheduler_of(model, reproducible=False, shared_memory=True, chunk=512),
    ],
)
def test_where_nothing_is_reused_or_answers_stay_nothing_is_computed_again(model, make):
    scheduler = make(model)
    Talk(scheduler).turns(4)
    assert n_idle(scheduler) == 0
    scheduler.close()


def test_nobody_is_charged(scheduler):
    talk = Talk(scheduler).turns(4)
    for request, result in talk.asked:
        assert request.taken.prompt == result.prompt_tokens
    found = scheduler.metrics.snapshot()
    assert found.requests == 4
    assert found.prompt_tokens + found.cached_tokens == sum(
        result.prompt_tokens for _, result in talk.asked
    )


def test_requests_of_another_scheduler_come_first(model, tiny, monkeypatch):
    """They need the same processors."""
    scheduler, other = scheduler_of(model), scheduler_of(tiny)
    begun, go_on, looked = threading.Event(), threading.Event(), threading.Event()
    step, wait = other._core.step, scheduler._changed.wait

    def slowly():
        begun.set()
        go_on.wait(60)
        step()

    def looking(timeout=None):
        if timeout == scheduler_module.BUSY_SECONDS:
            looked.set()
        return wait(timeout)

    monkeypatch.setattr(other._core, "step", slowly)
    monkeypatch.setattr(scheduler._changed, "wait", looking)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(other.generate, request_of(tokens(9, 20)))
        assert begun.wait(60)
        talk = Talk(scheduler)
        talk.turn()
        talk.turn()
        assert looked.wait(60)
        assert scheduler._core.has_idle_work
        assert n_idle(scheduler) == 0
        go_on.set()
        assert asked.result(60).completion_tokens > 0
    wait_until_idle(scheduler)
    assert n_idle(scheduler) > 0
    scheduler.close()
    other.close()
    assert not BUSY & {scheduler, other}


@pytest.mark.parametrize(("name", "n_steps"), [("llama", 1), ("llama", 2), ("mamba", 1)])
def test_a_request_does_not_wait_for_more_than_a_call(models, name, n_steps, monkeypatch):
    """Neither the next turn nor another request, which may take the slot; and bytes stay."""
    model = models[name]
    scheduler = scheduler_of(model, max_sequences=1)
    talk, other = Talk(scheduler, first=150).turns(1), Talk(scheduler, seed=7, first=150).turns(1)
    for next_one in (talk, other, talk):
        wait_until_idle(scheduler)  # or what is left of the last round is stopped
        with stopped_after(monkeypatch, n_steps) as (reached, go_on):
            talk.turn()
            assert reached.wait(60)
            with ThreadPoolExecutor(1) as thread:
                n_before, asked = n_idle(scheduler), thread.submit(next_one.turn)
                wait_until(lambda: scheduler.n_queued)
                go_on.set()
                waiting = asked.result(60)
            assert waiting.completion_tokens > 0
            assert n_before > 0
    wait_until_idle(scheduler)
    talk.turns(1).check(model)
    other.check(model)
    scheduler.close()


def test_closing_does_not_wait_for_the_rest(model, monkeypatch):
    scheduler = scheduler_of(model)
    talk = Talk(scheduler).turns(1)
    with stopped_after(monkeypatch, 1) as (reached, go_on):
        talk.turn()
        assert reached.wait(60)
        scheduler.stop()
        go_on.set()
        scheduler.close(60)
    assert not scheduler._thread.is_alive()
    assert scheduler._core.has_idle_work
    talk.check(model)


def test_closing_cancels_what_is_computed_and_logs_no_error(model, monkeypatch, caplog):
    scheduler = scheduler_of(model)
    talk = Talk(scheduler).turns(1)
    compute, begun = IdlePrefill._compute, threading.Event()

    def for_ever(idle, progress):
        begun.set()
        while True:
            progress.slot.blocks = progress.slot.blocks[: progress.n_past // BLOCK]
            progress.slot.keep(progress.n_past // BLOCK)
            compute(idle, progress)

    monkeypatch.setattr(IdlePrefill, "_compute", for_ever)
    monkeypatch.setattr(scheduler_module, "GRACE_SECONDS", 100.0)
    talk.turn()
    assert begun.wait(60)
    with caplog.at_level(logging.WARNING):
        scheduler.close(60)
    assert not scheduler._thread.is_alive()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    talk.check(model)


CALLS = [
    (pyllama.Context, "decode"),
    (pyllama.Batch, "add_tokens"),
    (pyllama.Memory, "seq_rm"),
    (prefix_reuse.PrefixReuse, "n_cached"),
    (prefix_reuse.PrefixReuse, "restore"),
    (prefix_reuse.PrefixReuse, "save_whole"),
    (kv_cache.KVCache, "to_overwrite"),
    (idle_prefill, "block_hashes"),
    (Metrics, "prefilled"),
    (IdlePrefill, "_give_up"),
]


@pytest.mark.parametrize("error", [MemoryError, SystemExit, pyllama.NativeMemoryError])
@pytest.mark.parametrize(
    ("owner", "name"), CALLS, ids=lambda value: getattr(value, "__name__", value)
)
def test_an_error_concerns_no_request(model, owner, name, error, monkeypatch):
    scheduler = scheduler_of(model)
    talk, raised, call = Talk(scheduler).turns(2), [], getattr(owner, name)
    if name == "_give_up":  # an error while another one is handled
        monkeypatch.setattr(IdlePrefill, "_compute", lambda *_: 1 / 0)

    def failing(*args, **options):
        here = threading.current_thread() is scheduler._thread
        if here and not scheduler._core.has_work and not raised:
            raised.append(error("mine"))
            raise raised[0]
        return call(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        talk.turns(1)
    assert raised
    talk.turns(2).check(model)
    assert scheduler.failed is None
    scheduler.close()


def test_a_context_that_is_unusable_after_an_error_is_replaced(model, monkeypatch):
    scheduler = scheduler_of(model)
    talk = Talk(scheduler).turns(1)
    poisoned, decode, usable = [], pyllama.Context.decode, pyllama.Context.usable

    def failing(context, batch):
        if not scheduler._core.has_work and not poisoned:
            poisoned.append(context)
            raise pyllama.PoisonedError("mine")
        return decode(context, batch)

    monkeypatch.setattr(pyllama.Context, "decode", failing)
    monkeypatch.setattr(
        pyllama.Context,
        "usable",
        property(lambda context: context not in poisoned and usable.fget(context)),
    )
    talk.turns(1)
    assert poisoned
    assert not list(scheduler._core.memory)
    talk.turns(2).check(model)
    scheduler.close()


@pytest.mark.parametrize(
    "options", [{}, {"batch_width": 4}, {"n_cells": 2048, "cache_bytes": 2**18}]
)
def test_conversations_beside_each_other_keep_their_bytes(model, options):
    scheduler = scheduler_of(model, **options)
    talks = [Talk(scheduler, seed, first=30 + 20 * seed) for seed in range(6)]

    def run(talk):
        chosen = random.Random(talk.seed)
        for _ in range(4):
            talk.turn()
            time.sleep(chosen.choice([0, 0, 0.01, 0.05]))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(run, talks))
    for talk in talks:
        talk.turns(1)
    assert n_idle(scheduler) > 0
    scheduler.close()
    if "batch_width" in options:
        lone = scheduler_of(model, **options, cache_bytes=0)
        for talk in talks[::3]:
            assert all(same(result, lone.generate(request)) for request, result in talk.asked)
        lone.close()
    else:
        for talk in talks[::3]:
            talk.check(model)
