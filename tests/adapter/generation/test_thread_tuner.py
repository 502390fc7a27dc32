"""How many threads compute while other work takes the processors."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from schedules import request_of, same, scheduler_of, tokens

import pyllama
from adapter.generation import exactness, processor_load, thread_tuner
from adapter.generation.processor_load import ProcessorLoad
from adapter.generation.scoring import ScoringRequest
from adapter.generation.thread_tuner import FIRST_WAIT, LONGEST_WAIT, ThreadTuner


def exact(_most):
    return True


def run(tuner, seconds, *, used=1.0, calls=2000, sizes=(1,)):
    """Make calls; return the time that they took, and the numbers of threads that they had."""
    total, numbers = 0.0, []
    for index in range(calls):
        size = sizes[index % len(sizes)]
        numbers.append(tuner.threads_for(size))
        took = seconds(numbers[-1])
        total += took
        tuner.took(size, took, used * took)
    return total, numbers


class Load:
    """Other work that takes a number of processors, read every 0.25 s of the calls."""

    def __init__(self, others):
        self.others_now = others
        self.asked = []

    def others(self, _now, *, paused):
        self.asked.append(paused)
        return self.others_now


def run_beside(tuner, seconds, load, calls):
    """Make calls while the load is read every 0.25 s; return the time that they took."""
    others, total, unread = load.others_now, 0.0, 0.0
    for _ in range(calls):
        load.others_now = others if unread >= 0.25 else None
        unread = 0.0 if unread >= 0.25 else unread
        tuner.look()
        took = seconds(tuner.threads_for(1))
        total += took
        unread += took
        tuner.took(1, took, 0.5 * took)
    load.others_now = others
    return total


def idle(n_threads):
    return 1 / n_threads


def one_processor_taken(n_threads):
    """Of four: all threads wait for the one that has half of a processor."""
    return 1 / n_threads if n_threads < 4 else 0.5


def all_taken(n_threads):
    return float(n_threads)


def test_an_idle_machine_has_all_threads_and_nothing_is_asked():
    def never(_most):
        pytest.fail("a trial was made")

    _, numbers = run(ThreadTuner(8, never), idle)
    assert set(numbers) == {8}


@pytest.mark.parametrize(("seconds", "best"), [(one_processor_taken, 3), (all_taken, 1)])
def test_fewer_threads_compute_where_that_is_faster(seconds, best):
    total, numbers = run(ThreadTuner(4, exact), seconds, used=0.5)
    assert numbers[-1] == best
    assert total < 2000 * seconds(best) / 0.9


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("n_cores", [2, 4, 8, 16, 64])
def test_many_threads_find_what_is_free_and_come_back(n_cores, serial):
    """Also where one thread more or fewer makes too little difference to be seen."""

    def seconds_beside(n_busy):
        def seconds(n_threads):
            taken = n_threads + n_busy - n_cores  # threads that share a core with other work
            alone = serial + (1 - serial) / n_threads + 0.01 * n_threads / n_cores
            return alone * (1 + 3 * min(1, max(0, taken) / 2))

        return seconds

    for n_busy in {1, n_cores // 4, n_cores // 2, n_cores - 1}:
        tuner = ThreadTuner(n_cores, exact)
        for busy, used in ((n_busy, 0.6), (0, 1.0)):
            seconds = seconds_beside(busy)
            best = min(map(seconds, range(1, n_cores + 1)))
            run(tuner, seconds, used=used, calls=1500)
            total, _ = run(tuner, seconds, used=used, calls=3000)
            assert total < 3000 * best / 0.9


def test_a_machine_that_only_looks_busy_loses_little():
    total, numbers = run(ThreadTuner(2, exact), idle, used=0.5)
    assert total < 2000 * idle(2) / 0.97
    assert numbers.count(2) > 1900


def test_all_threads_come_back_when_the_other_work_ends():
    tuner = ThreadTuner(8, exact)
    run(tuner, all_taken, used=0.5)
    assert tuner.n_threads == 1
    _, numbers = run(tuner, idle, calls=4 * LONGEST_WAIT)
    assert numbers[-1] == 8


@pytest.mark.parametrize("n_cpus", [2, 4, 16, 64])
def test_threads_keep_to_the_processors_that_are_free(n_cpus, monkeypatch):
    """One thread too many makes a call ten times as long, as was measured."""
    monkeypatch.setattr(processor_load, "n_processors", lambda: n_cpus)
    load = Load(0.0)
    tuner = ThreadTuner(n_cpus, exact, load)
    for n_busy in (0, 1, n_cpus // 4, n_cpus // 2, 0):
        load.others_now = float(n_busy)

        def seconds(n_threads, n_free=n_cpus - n_busy):
            return (0.003 + 0.02 / n_threads) * (1 if n_threads <= n_free else 10)

        best = min(map(seconds, range(1, n_cpus + 1)))
        assert run_beside(tuner, seconds, load, 2000) < 2000 * best / 0.9


def test_work_that_takes_part_of_a_processor_changes_the_number_once(monkeypatch):
    monkeypatch.setattr(processor_load, "n_processors", lambda: 16)
    load = Load(0.0)
    tuner, numbers = ThreadTuner(16, exact, load), []
    for others in (0.0, 0.1, 0.39, 0.41, 0.39, 0.2, 1.3, 0.16, 0.14, 0.39, 4.3, 3.6, 3.2, 3.1):
        load.others_now = others
        numbers.append(tuner.look())
    assert numbers == [16, 16, 16, 15, 15, 15, 15, 15, 16, 16, 12, 12, 12, 13]


@pytest.mark.parametrize(("most", "n_cpus", "others", "expected"), [
    (16, 16, 30.0, 8),  # two programs that adapt both must not drive each other to one thread
    (8, 16, 6.0, 8),  # others have the processors that are left
    (8, 16, 9.0, 7),
    (1, 16, 15.0, 1),
    (3, 2, 0.0, 2),
])  # fmt: skip
def test_threads_for_the_processors_that_are_left(most, n_cpus, others, expected, monkeypatch):
    monkeypatch.setattr(processor_load, "n_processors", lambda: n_cpus)
    assert ThreadTuner(most, exact, Load(others)).look() == expected


def test_fewer_threads_that_were_faster_stay_when_the_load_changes(monkeypatch):
    monkeypatch.setattr(processor_load, "n_processors", lambda: 8)
    load = Load(1.0)
    tuner = ThreadTuner(8, exact, load)
    assert tuner.look() == 7
    run(tuner, all_taken, used=0.5)
    assert tuner.n_threads == 1
    for others, expected in ((2.0, 1), (0.0, 1)):
        load.others_now = others
        assert tuner.look() == expected
    _, numbers = run(tuner, idle, calls=4 * LONGEST_WAIT)
    assert numbers[-1] == 8


def test_a_pause_makes_the_load_be_read_anew(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(thread_tuner.time, "monotonic", lambda: now[0])
    load = Load(None)
    tuner = ThreadTuner(4, exact, load)
    for wait, in_call in ((0.0, 0.1), (0.1, 9.0), (0.1, 0.1), (9.0, 0.1)):
        now[0] += wait
        with tuner.measured(1):
            now[0] += in_call
    assert load.asked == [True, False, False, True]


@pytest.mark.parametrize("answer", [False, None])
def test_a_load_changes_nothing_unless_the_bytes_stay(answer, monkeypatch):
    monkeypatch.setattr(processor_load, "n_processors", lambda: 4)
    asked = []
    tuner = ThreadTuner(4, lambda most: asked.append(most) or answer, Load(2.0))
    assert [tuner.look() for _ in range(3)] == [4, 4, 4]
    assert asked == [4] if answer is False else [4, 4, 4]
    tuner._exact = exact
    assert tuner.look() == (4 if answer is False else 2)


def test_only_calls_of_one_size_are_compared():
    """Those of prompts and of answers take turns, and take times of their own."""
    chosen, tuner = random.Random(1), ThreadTuner(2, exact)
    for _ in range(3000):
        size = chosen.choice([1, 64])
        took = size * idle(tuner.threads_for(size))
        tuner.took(size, took, 0.5 * took)
    assert tuner.n_threads == 2


def test_calls_of_other_sizes_go_on_as_before_while_a_number_is_tried():
    tuner = ThreadTuner(2, exact)
    run(tuner, idle, used=0.5, calls=FIRST_WAIT)
    assert [tuner.threads_for(size) for size in (1, 8, 64)] == [1, 2, 2]
    assert tuner.look() == 2


@pytest.mark.parametrize("late", range(4))
def test_one_call_that_waited_for_its_processor_starts_no_trial(late):
    """Callers' threads take a processor for a moment whenever answers end."""
    tuner = ThreadTuner(2, exact)
    for index in range(10 * FIRST_WAIT):
        assert tuner.threads_for(1) == 2
        waited = 0.5 if index % FIRST_WAIT == FIRST_WAIT - 1 - late else 0.0
        tuner.took(1, 1.0 + waited, 1.0)


def test_sizes_that_never_come_again_end_a_comparison():
    tuner = ThreadTuner(2, exact)
    run(tuner, all_taken, used=0.5, calls=FIRST_WAIT)
    assert tuner.threads_for(1) == 1
    run(tuner, all_taken, used=0.5, calls=FIRST_WAIT * 4, sizes=range(2, 1000))
    assert tuner.threads_for(1) == 2


@pytest.mark.parametrize("answer", [False, None])
def test_no_other_number_is_tried_unless_the_bytes_stay(answer):
    asked = []
    tuner = ThreadTuner(4, lambda most: asked.append(most) or answer)
    _, numbers = run(tuner, all_taken, used=0.5, calls=200)
    assert set(numbers) == {4}
    assert len(asked) == 1 if answer is False else len(asked) > 1


def test_numbers_of_threads_that_change_bits_are_found(model, monkeypatch):
    with pyllama.Context(model, n_ctx=256, n_threads=2, flash_attn="disabled") as context:
        assert exactness.exact_threads(context, 2)
        logits = pyllama.Context.all_logits
        monkeypatch.setattr(
            pyllama.Context, "all_logits", lambda self: logits(self) + self.n_threads
        )
        assert not exactness.exact_threads(context, 2)


def test_bytes_stay_while_the_number_changes(model, monkeypatch):
    monkeypatch.setattr(thread_tuner, "FIRST_WAIT", 4)
    monkeypatch.setattr(thread_tuner, "LONGEST_WAIT", 4)
    monkeypatch.setattr(thread_tuner, "STARVED", 10.0)
    used = set()
    decode = pyllama.Context.decode

    def counting(context, batch):
        used.add(context.n_threads)
        return decode(context, batch)

    requests = [request_of(tokens(seed, 100), max_tokens=40, seed=seed) for seed in range(3)]
    single = scheduler_of(model)
    expected = [single.generate(request) for request in requests]
    single.close()
    monkeypatch.setattr(pyllama.Context, "decode", counting)
    scheduler = scheduler_of(model, n_threads=2)
    assert all(map(same, map(scheduler.generate, requests), expected))
    scheduler.close()
    assert used == {1, 2}


def test_scores_isolated_requests_and_trials_have_the_number_too(model, monkeypatch):
    monkeypatch.setattr(ThreadTuner, "took", lambda *_: None)  # compares nothing
    monkeypatch.setattr(ProcessorLoad, "others", lambda *_, **__: 1.0)
    monkeypatch.setattr(processor_load, "n_processors", lambda: 2)
    used = {}
    decode = pyllama.Context.decode

    def counting(context, batch):
        used.setdefault(context.n_seq_max, []).append(context.n_threads)
        return decode(context, batch)

    requests = [request_of(tokens(seed, 100), max_tokens=20, seed=seed) for seed in range(3)]
    scores = ScoringRequest(tuple(tokens(9, 100)), (tuple(tokens(1, 3)), tuple(tokens(2, 3))), (2,))
    expected = scheduler_of(model)
    wanted = [*map(expected.generate, requests), expected.score(scores).scores]
    expected.close()
    monkeypatch.setattr(pyllama.Context, "decode", counting)
    for options in ({}, {"isolated": True, "max_sequences": 1}):
        used.clear()
        scheduler = scheduler_of(model, n_threads=2, **options)
        assert scheduler.score(scores).scores == wanted[3]
        assert same(scheduler.generate(requests[0]), wanted[0])
        with ThreadPoolExecutor(3) as threads:
            assert all(map(same, threads.map(scheduler.generate, requests), wanted[:3]))
        scheduler.close()
        # The trial of numbers of threads comes first, of one sequence.
        assert {n for count, each in used.items() if count > 1 for n in each} <= {1}
        assert used[1][-1] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"context": pyllama.ContextParams(n_threads=2)},
        {"isolated": True, "max_sequences": 1, "reproducible": False},
        {"shared_memory": True},
    ],
)
def test_a_number_that_the_user_gave_stays(model, options):
    scheduler = scheduler_of(model, n_threads=2, **options)
    assert scheduler._core.runner._tuner is None
    scheduler.close()
