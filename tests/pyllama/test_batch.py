"""Batches: what they hold, and what they refuse."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama import Batch


def test_tokens_and_indices():
    batch = Batch(4, n_seq_max=2)
    assert len(batch) == 0
    assert batch.add(7, 0) == 0
    assert batch.add(8, 1, (0, 1), output=True) == 1
    assert batch.add_tokens([9, 10], pos=2) == slice(2, 4)
    assert len(batch) == 4
    assert batch.tokens.tolist() == [7, 8, 9, 10]
    assert "4 of 4" in repr(batch)


def test_the_tokens_are_a_copy():
    batch = Batch.from_tokens([1, 2, 3])
    batch.tokens[0] = 99
    assert batch.tokens.tolist() == [1, 2, 3]


def test_clear_makes_room():
    batch = Batch.from_tokens([1, 2, 3])
    batch.clear()
    assert len(batch) == 0
    assert batch.capacity == 3
    batch.add_tokens([4, 5, 6])
    assert batch.tokens.tolist() == [4, 5, 6]


def test_from_no_tokens_is_an_empty_batch():
    assert len(Batch.from_tokens([])) == 0
    assert len(Batch.from_tokens(np.empty(0, dtype=np.int32))) == 0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_arrays_of_any_integers(dtype):
    assert Batch.from_tokens(np.array([1, 2, 3], dtype=dtype)).tokens.tolist() == [1, 2, 3]


def test_a_strided_array():
    assert Batch.from_tokens(np.arange(10, dtype=np.int32)[::-3]).tokens.tolist() == [9, 6, 3, 0]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=8), max_size=8))
def test_runs_are_appended(runs):
    batch = Batch(64)
    for run in runs:
        batch.add_tokens(run)
    assert batch.tokens.tolist() == [token for run in runs for token in run]


def test_a_full_batch_says_so_and_stays_as_it_was():
    batch = Batch(2)
    batch.add_tokens([1, 2])
    with pytest.raises(ValueError, match=r"2 of 2 tokens.*clear"):
        batch.add(3, 2)
    with pytest.raises(ValueError, match="2 of 2 tokens"):
        batch.add_tokens([3])
    assert batch.tokens.tolist() == [1, 2]
    batch.clear()
    with pytest.raises(ValueError, match="3 more do not fit"):
        batch.add_tokens([1, 2, 3])
    assert len(batch) == 0


def test_threads_may_fill_one_batch():
    batch = Batch(800)
    start = threading.Barrier(8)

    def fill():
        start.wait()
        for _ in range(100):
            batch.add(1, 0)

    threads = [threading.Thread(target=fill) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert batch.tokens.tolist() == [1] * 800


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"capacity": 0}, ValueError, "capacity"),
        ({"capacity": -1}, ValueError, "capacity"),
        ({"capacity": 2**24 + 1}, ValueError, "capacity"),
        ({"capacity": 1.0}, TypeError, "capacity"),
        ({"capacity": "8"}, TypeError, "capacity"),
        ({"capacity": None}, TypeError, "capacity"),
        ({"capacity": True}, TypeError, "capacity"),
        ({"capacity": 8, "n_seq_max": 0}, ValueError, "n_seq_max"),
        ({"capacity": 8, "n_seq_max": 10**6}, ValueError, "n_seq_max"),
        ({"capacity": 8, "n_seq_max": float("nan")}, TypeError, "n_seq_max"),
    ],
)
def test_sizes_are_checked(arguments, error, name):
    with pytest.raises(error, match=name):
        Batch(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((-1, 0), ValueError, "token"),
        ((2**31, 0), ValueError, "token"),
        ((1.0, 0), TypeError, "token"),
        ((None, 0), TypeError, "token"),
        ((True, 0), TypeError, "token"),
        ((1, -1), ValueError, "pos"),
        ((1, 2**31), ValueError, "pos"),
        ((1, "0"), TypeError, "pos"),
        ((1, 0, ()), ValueError, "seq_ids"),
        ((1, 0, (0, 1)), ValueError, "seq_ids"),
        ((1, 0, (-1,)), ValueError, "seq_ids"),
        ((1, 0, (0.5,)), TypeError, "seq_ids"),
        ((1, 0, 0), TypeError, "seq_ids"),
        ((1, 0, None), TypeError, "seq_ids"),
    ],
)
def test_a_token_is_checked(arguments, error, name):
    batch = Batch(8)
    with pytest.raises(error, match=name):
        batch.add(*arguments)
    assert len(batch) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"tokens": [-1]}, ValueError, "tokens"),
        ({"tokens": [2**31]}, ValueError, "tokens"),
        ({"tokens": [2**70]}, (TypeError, ValueError), "tokens"),
        ({"tokens": [1.5]}, TypeError, "tokens"),
        ({"tokens": [True]}, TypeError, "tokens"),
        ({"tokens": ["1"]}, TypeError, "tokens"),
        ({"tokens": "hello"}, TypeError, "tokens"),
        ({"tokens": [[1, 2], [3, 4]]}, TypeError, "tokens"),
        ({"tokens": [[1, 2], [3]]}, (TypeError, ValueError), "tokens"),
        ({"tokens": 5}, TypeError, "tokens"),
        ({"tokens": None}, TypeError, "tokens"),
        ({"tokens": [1], "pos": -1}, ValueError, "pos"),
        ({"tokens": [1, 2], "pos": 2**31 - 1}, ValueError, "pos"),
        ({"tokens": [1], "seq_id": -1}, ValueError, "seq_id"),
        ({"tokens": [1], "seq_id": "0"}, TypeError, "seq_id"),
        ({"tokens": [1], "outputs": "first"}, ValueError, "outputs"),
        ({"tokens": [1], "outputs": True}, ValueError, "outputs"),
        ({"tokens": [1], "outputs": None}, ValueError, "outputs"),
    ],
)
def test_runs_are_checked(arguments, error, name):
    batch = Batch(8)
    with pytest.raises(error, match=name):
        batch.add_tokens(**arguments)
    assert len(batch) == 0
