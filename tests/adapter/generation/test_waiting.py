"""The requests that wait: in order, and at no cost that grows with their number."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
from schedules import scheduler_of, tokens

import pyllama
from adapter.errors import RequestTimeoutError
from adapter.generation.memory.blocks import BLOCK, CHUNK
from adapter.generation.memory.prefix_reuse import PrefixReuse
from adapter.generation.metrics import Metrics
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.scoring import ScoringRequest
from adapter.generation.scoring_queue import ScoringJob, ScoringQueue
from adapter.generation.sequence import ScheduledRequest
from adapter.generation.waiting import POLLED, Waiting

PER_CHUNK = CHUNK // BLOCK


@pytest.fixture
def sequence_of(tiny):
    def make(prompt=(5, 6, 7), cancelled=None, timeout=None):
        request = GenerationRequest(tuple(prompt), 8, Sampling(), 1, timeout=timeout)
        return ScheduledRequest(tiny.vocab, request, 8, cancelled or threading.Event())

    return make


@pytest.fixture
def waiting():
    return Waiting(count_borders=True)


def in_order(waiting):
    found = []
    while (sequence := waiting.first()) is not None:
        waiting.leave(sequence)
        found.append(sequence)
    return found


def take_all_in(waiting):
    while waiting._arrived:
        waiting.drop_finished()


def test_they_come_in_their_order(waiting, sequence_of):
    made = [sequence_of() for _ in range(5)]
    for sequence in made:
        waiting.append(sequence)
    assert len(waiting) == 5
    waiting.leave(made[2])
    assert in_order(waiting) == [*made[:2], *made[3:]]
    assert len(waiting) == 0


def test_those_that_waited_for_a_prompt_have_their_places_back(waiting, sequence_of):
    made = [sequence_of() for _ in range(6)]
    for sequence in made:
        waiting.append(sequence)
    owners = [sequence_of(), sequence_of()]
    for owner in owners:
        owner.state = "prefilling"
    for index in range(4):
        assert waiting.first() is made[index]
        waiting.park(made[index], owners[index % 2])
    assert waiting.first() is made[4]
    owners[1].state = "running"
    waiting.unpark()
    assert waiting.first() is made[1]
    owners[0].state = "ended"
    waiting.unpark()
    assert in_order(waiting) == made


def test_one_that_ends_while_it_is_passed_is_gone(waiting, sequence_of):
    owner, cancelled = sequence_of(), threading.Event()
    owner.state = "prefilling"
    one = sequence_of(cancelled=cancelled)
    waiting.append(one)
    waiting.park(waiting.first(), owner)
    cancelled.set()
    waiting.drop_finished()
    assert one.events._given.get_nowait() is None
    owner.state = "running"
    waiting.unpark()
    assert waiting.first() is None


def test_time_runs_for_those_that_wait(waiting, sequence_of):
    late, early = sequence_of(timeout=60.0), sequence_of(timeout=0.0)
    for sequence in [*(sequence_of() for _ in range(2 * POLLED)), late, early]:
        waiting.append(sequence)
    take_all_in(waiting)
    waiting.drop_finished()
    assert isinstance(early.events._given.get_nowait(), RequestTimeoutError)
    assert late.events._given.empty()
    assert len(waiting) == 2 * POLLED + 1


def test_callers_that_have_gone_are_noticed_in_turn(waiting, sequence_of):
    """However many wait, a step asks a few."""
    gone = threading.Event()
    for index in range(10 * POLLED):
        waiting.append(sequence_of(cancelled=gone if index % 2 else None))
    take_all_in(waiting)
    gone.set()
    n_steps = 0
    while len(waiting) > 5 * POLLED:
        before = len(waiting)
        waiting.drop_finished()
        assert 0 < before - len(waiting) <= POLLED
        n_steps += 1
    assert n_steps <= 12


def test_those_that_come_at_once_are_put_in_order_over_some_steps(waiting, sequence_of):
    """Where a thousand come, no stream waits until all of them have their place."""
    made = [sequence_of(timeout=1000.0) for _ in range(16 * POLLED)]
    for sequence in made:
        waiting.append(sequence)
    n_steps = 0
    while waiting._arrived:
        before = len(waiting._arrived)
        waiting.drop_finished()
        assert waiting.first() is made[0]
        assert before - len(waiting._arrived) <= POLLED
        n_steps += 1
    assert n_steps >= 16
    assert in_order(waiting) == made


def test_what_is_left_of_those_that_have_left_stays_small(waiting, sequence_of):
    """The first one waits for long, and others come and give up behind it."""
    waiting.append(sequence_of())
    for _ in range(20 * POLLED):
        one = sequence_of(timeout=1000.0)
        waiting.append(one)
        waiting.leave(one)
        waiting.drop_finished()
    assert len(waiting) == 1
    assert len(waiting._ready) <= 2 * POLLED + 10
    assert len(waiting._deadlines) <= 2 * POLLED + 10
    assert len(waiting._polled) <= 2 * POLLED + 10
    assert not waiting._borders


def test_all_can_be_failed(waiting, sequence_of):
    owner = sequence_of()
    owner.state = "prefilling"
    made = [sequence_of() for _ in range(3)]
    for sequence in made:
        waiting.append(sequence)
    waiting.park(waiting.first(), owner)
    assert waiting.fail(ValueError("no")) == 3
    assert all(isinstance(each.events._given.get_nowait(), ValueError) for each in made)
    assert waiting.first() is None


def test_one_for_which_there_is_no_memory_does_not_wait(waiting, sequence_of, monkeypatch):
    class Full(deque):
        def append(self, _):
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(waiting, "_arrived", Full())
        with pytest.raises(MemoryError):
            waiting.append(sequence_of())
    assert len(waiting) == 0
    waiting.append(last := sequence_of())
    ending = threading.Thread(target=waiting.fail, args=[ValueError("over")], daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()
    assert isinstance(last.events.take(lambda: True), ValueError)


def test_an_error_right_after_one_was_put_in_order_loses_no_order(waiting, sequence_of):
    class Failing(deque):
        def popleft(self):
            super().popleft()
            raise MemoryError

    made = [sequence_of() for _ in range(3)]
    waiting._arrived = Failing(made)
    for _ in made:
        with pytest.raises(MemoryError):
            waiting.drop_finished()
    waiting._arrived = deque([last := sequence_of()])
    assert waiting.first() is made[0]
    waiting._ready[:] = []  # whatever has become of it
    assert waiting.fail(ValueError("over")) == 4
    assert isinstance(last.events._given.get_nowait(), ValueError)


def test_where_prompts_that_wait_part_from_one(waiting, sequence_of):
    shared = tokens(0, 10 * CHUNK)
    prompt = sequence_of(shared + tokens(1, 300))
    for n_chunks, seed in ((2, 2), (2, 3), (5, 4)):
        waiting.append(sequence_of(shared[: n_chunks * CHUNK + 20] + tokens(seed, 200)))
    waiting.first()
    parted = [
        n_blocks
        for n_blocks in range(prompt.n_to_border + 1)
        if waiting.parts_after(prompt.hashes, n_blocks, prompt.n_to_border)
    ]
    assert parted == [2 * PER_CHUNK, 5 * PER_CHUNK]
    in_order(waiting)
    assert not waiting._borders


def test_scores_that_nobody_waits_for_are_noticed_in_turn():
    queue = ScoringQueue(
        None, stopping=lambda: False, longest=100, chunk=CHUNK, reuses=True, metrics=Metrics()
    )
    gone = threading.Event()
    jobs = [
        ScoringJob(ScoringRequest((5,), ((6,),), (2,)), gone if index % 3 else threading.Event())
        for index in range(5 * POLLED)
    ]
    for job in jobs:
        queue.append(job)
    gone.set()
    n_left = []
    for _ in range(12):
        queue.drop_finished()
        n_left.append(len(queue))
    assert all(before - after <= POLLED + 1 for before, after in pairwise([len(jobs), *n_left]))
    assert n_left[-1] == len(jobs[::3])


# In a scheduler


def test_a_step_looks_at_few_of_many_that_wait(write_tiny_model, monkeypatch):
    """Thousands wait for a prompt that is being computed."""
    looked_at = []
    in_progress = PrefixReuse.in_progress
    monkeypatch.setattr(
        PrefixReuse,
        "in_progress",
        lambda self, sequence: looked_at.append(sequence) or in_progress(self, sequence),
    )
    with pyllama.Model(write_tiny_model(n_ctx_train=4096)) as model:
        scheduler = scheduler_of(model, context_length=4096, max_queued=5000)
        shared = tokens(0, 2000)
        request = GenerationRequest((*shared, 5, 6), 2, Sampling(), 1)
        steps = []
        step = scheduler._core.step
        monkeypatch.setattr(
            scheduler._core,
            "step",
            lambda: (looked_at.clear(), step(), steps.append(len(looked_at))),
        )
        streams = [
            scheduler.stream(replace(request, prompt=(*shared, *tokens(seed, 20))))
            for seed in range(1000)
        ]
        threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(steps) <= 2 * 8
        assert scheduler.metrics.snapshot().requests == 1000
        assert scheduler.metrics.snapshot().prompt_tokens == 2000 + 1000 * 20
        scheduler.close()
