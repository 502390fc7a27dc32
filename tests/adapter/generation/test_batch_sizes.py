"""How many sequences are decoded in one batch: those sizes that take the least time together."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement

import pytest
from schedules import alone, request_of, same, scheduler_of, tokens

import pyllama
from adapter.generation import exactness
from adapter.generation.batch_sizes import CALL_SECONDS, ONE_BY_ONE, BatchSizes

MS = 1e-3
Q4_1 = {1: 8.6, 2: 19.9, 3: 26.9, 4: 34.3, 5: 44.3, 8: 56.0, 12: 78.4, 16: 97.1}
Q6_K = {1: 8.2, 2: 28.2, 3: 34.4, 4: 41.1, 5: 50.0}
"""What steps of SmolLM2-135M took on one core of an AMD EPYC, in milliseconds."""


def sizes_of(milliseconds):
    return BatchSizes({size: MS * each for size, each in milliseconds.items()})


def seconds(milliseconds, size):
    """What a batch takes, between two that were measured, too."""
    low = max(each for each in milliseconds if each <= size)
    high = min(each for each in milliseconds if each >= size)
    share = 0 if low == high else (size - low) / (high - low)
    taken = milliseconds[low] + share * (milliseconds[high] - milliseconds[low])
    return MS * taken + CALL_SECONDS


@pytest.mark.parametrize("milliseconds", [Q4_1, Q6_K, {1: 10.0}, {1: 10.0, 16: 10.0}])
def test_no_other_sizes_take_less_time(milliseconds):
    largest = max(milliseconds)
    sizes = sizes_of(milliseconds)
    for count in [5, 9, 1, 2, 3, 4, 6, 7, 8]:
        found = sizes.sizes(count)
        assert sum(found) == count
        least = min(
            sum(seconds(milliseconds, size) for size in chosen)
            for n_batches in range(1, count + 1)
            for chosen in combinations_with_replacement(range(1, largest + 1), n_batches)
            if sum(chosen) == count
        )
        assert sum(seconds(milliseconds, size) for size in found) == pytest.approx(least)


def test_pairs_that_are_slower_than_turns_take_turns():
    assert sizes_of(Q4_1).sizes(2) == [1, 1]
    assert sizes_of(Q4_1).sizes(16) == [16]
    assert sizes_of(Q6_K).sizes(5) == [1] * 5


def test_of_equals_the_largest_batch_is_taken():
    assert BatchSizes({1: 1.0, 8: 8.0}).sizes(20) == [8, 8, 4]
    assert ONE_BY_ONE.sizes(3) == [1, 1, 1]


def test_items_are_split_in_their_order():
    assert list(BatchSizes({1: 1.0, 3: 1.0}).split([*"abcdefg"])) == [[*"abc"], [*"def"], ["g"]]
    assert list(ONE_BY_ONE.split([])) == []


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_the_time_of_each_size_that_keeps_the_bytes_is_measured(models, name):
    with pyllama.Context(
        models[name], n_ctx=256 * 8, n_seq_max=8, flash_attn="disabled", n_threads=1
    ) as context:
        exact = exactness.tried_sizes(context)
        assert context.memory.seq_pos_max(7) == -1
        any_size = exactness.tried_sizes(context, exact=False)
    assert any_size.largest == 8
    assert exact.largest <= 8
    if name == "llama":
        assert exact.largest == 8
    assert all(any_size._seconds > CALL_SECONDS)


@pytest.mark.skipif(os.name == "nt", reason="Windows counts processor time in steps of 16 ms")
def test_time_that_other_work_has_the_processor_does_not_count(model, monkeypatch):
    decode = pyllama.Context.decode

    def disturbed(context, batch):
        if len(batch) == 1:
            time.sleep(0.3)
        return decode(context, batch)

    monkeypatch.setattr(pyllama.Context, "decode", disturbed)
    with pyllama.Context(model, n_ctx=512, n_seq_max=2, flash_attn="disabled") as context:
        measured = exactness.tried_sizes(context, exact=False).measured
    assert 0 < measured[1] < 0.3


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("reproducible", [True, False])
def test_running_requests_are_grouped_for_the_least_time(model, monkeypatch, slow, reproducible):
    """Whatever the groups are, the bytes are the same."""
    seconds = (lambda _, seq_ids: len(seq_ids) ** 2) if slow else (lambda *_: 1.0)
    monkeypatch.setattr(exactness.Trial, "seconds", seconds)
    scheduler = scheduler_of(model, reproducible=reproducible, max_sequences=4)
    requests = [request_of(tokens(seed, 20), max_tokens=30, seed=seed) for seed in range(4)]
    go_on, step = threading.Event(), scheduler._core.step
    monkeypatch.setattr(scheduler._core, "step", lambda: go_on.wait(60) and step())
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(scheduler.generate, request) for request in requests]
        while scheduler.n_queued < 4:
            time.sleep(0.001)
        go_on.set()
        found = [each.result() for each in asked]
    assert (scheduler.metrics.snapshot().histograms["batch_size"].mean == 1) is slow
    if reproducible:
        assert all(map(same, found, [alone(model, request) for request in requests]))
    scheduler.close()
