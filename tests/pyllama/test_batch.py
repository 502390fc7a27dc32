"""Batches: what they hold, and what they refuse."""

from __future__ import annotations

import threading

import gguf
import numpy as np
import pytest
from decoding import PROMPT, logits_of
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllama
from pyllama import Batch, Context


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
        ({"capacity": 8, "n_embd": -1}, ValueError, "n_embd"),
        ({"capacity": 2**24, "n_embd": 1024}, ValueError, "n_embd"),
        ({"capacity": 8, "n_embd": "64"}, TypeError, "n_embd"),
        ({"capacity": 8, "n_pos_per_embd": 4}, ValueError, "n_pos_per_embd"),
        ({"capacity": 8, "n_embd": 4, "n_pos_per_embd": 5}, ValueError, "n_pos_per_embd"),
        ({"capacity": 8, "n_embd": 4, "n_pos_per_embd": 0}, ValueError, "n_pos_per_embd"),
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
        ({"tokens": [1, 2], "pos": [5, 2**31 - 1]}, ValueError, "2147483646, got 2147483647"),
        ({"tokens": [1], "seq_id": -1}, ValueError, "seq_id"),
        ({"tokens": [1], "seq_id": "0"}, TypeError, "seq_id"),
        ({"tokens": [1], "outputs": "first"}, ValueError, "outputs"),
        ({"tokens": [1], "outputs": True}, ValueError, "outputs"),
        ({"tokens": [1], "outputs": None}, ValueError, "outputs"),
        ({"tokens": [1, 2], "outputs": [True]}, ValueError, "outputs"),
        ({"tokens": [1, 2], "outputs": [1, 0]}, ValueError, "outputs"),
        ({"tokens": [1, 2], "pos": [0]}, ValueError, "pos"),
        ({"tokens": [1, 2], "pos": [0, -1]}, ValueError, "pos"),
        ({"tokens": [1, 2], "pos": [0.0, 1.0]}, TypeError, "pos"),
        ({"tokens": [1, 2], "pos": [[0, 1]]}, ValueError, "pos"),
        ({"tokens": [1, 2], "pos": [[0], [1, 2]]}, TypeError, "pos"),
        ({"tokens": [1, 2], "seq_id": [0, 1, 2]}, ValueError, "seq_id"),
        ({"tokens": [1, 2], "seq_id": [0, -1]}, ValueError, "seq_id"),
        ({"tokens": [1, 2], "seq_id": [0, 2**31]}, ValueError, "seq_id"),
        ({"tokens": [1, 2], "seq_id": [[0, 1], [1, 0]]}, ValueError, "n_seq_max"),
        ({"tokens": [1, 2], "seq_id": np.zeros((2, 0), dtype=int)}, ValueError, "seq_id"),
        ({"tokens": [1, 2], "seq_id": np.zeros((1, 1, 1), dtype=int)}, ValueError, "seq_id"),
        ({"tokens": [1, 2], "seq_id": ["0", "1"]}, TypeError, "seq_id"),
    ],
)
def test_runs_are_checked(arguments, error, name):
    batch = Batch(8)
    with pytest.raises(error, match=name):
        batch.add_tokens(**arguments)
    assert len(batch) == 0


def entries(batch):
    """What C reads of a batch: token, position, sequences and output of each entry."""
    struct = batch._filled(all_outputs=False)
    return [
        (
            struct.token[index],
            struct.pos[index],
            [struct.seq_id[index][which] for which in range(struct.n_seq_id[index])],
            bool(struct.logits[index]),
        )
        for index in range(struct.n_tokens)
    ]


def test_arrays_of_positions_sequences_and_outputs():
    batch = Batch(8, n_seq_max=2)
    batch.add(1, 9, (7,), output=True)
    batch.add_tokens(
        [2, 3, 4], pos=[5, 5, 6], seq_id=[0, 1, 1], outputs=np.array([True, False, True])
    )
    batch.add_tokens([5, 6], pos=7, seq_id=[[0, 1], [2, 3]], outputs="none")
    batch.add_tokens(np.array([7, 8]), seq_id=np.array([[4, 5]]), outputs="all")
    assert entries(batch) == [
        (1, 9, [7], True),
        (2, 5, [0], True),
        (3, 5, [1], False),
        (4, 6, [1], True),
        (5, 7, [0, 1], False),
        (6, 8, [2, 3], False),
        (7, 0, [4, 5], True),
        (8, 1, [4, 5], True),
    ]
    assert batch._n_outputs == 5
    batch.clear()
    assert batch._n_outputs == 0


def test_from_tokens_makes_room_for_their_sequences():
    batch = Batch.from_tokens([1, 2], seq_id=[[0, 1, 2]])
    assert batch.n_seq_max == 3
    assert [entry[2] for entry in entries(batch)] == [[0, 1, 2], [0, 1, 2]]


def test_one_call_is_as_good_as_a_loop():
    count = 5000
    chance = np.random.default_rng(0)
    tokens, positions = chance.integers(0, 300, count), chance.integers(0, 99, count)
    sequences, wanted = chance.integers(0, 8, (count, 2)), chance.random(count) < 0.5
    at_once, one_by_one = Batch(count, n_seq_max=2), Batch(count, n_seq_max=2)
    at_once.add_tokens(tokens, pos=positions, seq_id=sequences, outputs=wanted)
    for index in range(count):
        one_by_one.add(
            int(tokens[index]),
            int(positions[index]),
            sequences[index].tolist(),
            output=bool(wanted[index]),
        )
    assert entries(at_once) == entries(one_by_one)
    assert at_once._n_outputs == one_by_one._n_outputs == np.count_nonzero(wanted)


def embedding_rows(path, tokens):
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    return np.array(tensors["token_embd.weight"][tokens])


def test_embeddings_of_tokens_compute_what_the_tokens_do(tiny_model_path, context, expected):
    batch = Batch(8, n_embd=context.n_embd_inp)
    assert "embeddings" in repr(batch)
    rows = embedding_rows(tiny_model_path, PROMPT)
    assert batch.add_embeddings(rows[:2], outputs="none") == slice(0, 2)
    assert batch.add_embeddings(rows[2:].astype(np.float64), pos=[2, 3, 4]) == slice(2, 5)
    assert batch.tokens.size == 0
    context.decode(batch)
    np.testing.assert_array_equal(context.logits(), expected)


def test_positions_of_m_rope(write_tiny_model):
    """Rows whose positions are alike in every section are as tokens; others are not."""
    path = write_tiny_model(architecture="qwen2vl")
    rows = embedding_rows(path, PROMPT)
    flat = np.arange(5, dtype=np.int32)
    with (
        pyllama.Model(path) as model,
        Context(model, n_ctx=256, n_threads=1) as context,
    ):
        assert context.n_pos_per_embd == 4
        context.decode(Batch.from_tokens(PROMPT))
        expected = context.logits()

        def logits(pos):
            context.memory.clear()
            batch = Batch(9, n_embd=context.n_embd_inp, n_pos_per_embd=4)
            batch.add_embeddings(rows, pos=pos)
            context.decode(batch)
            return context.logits()

        np.testing.assert_array_equal(logits(0), expected)
        np.testing.assert_array_equal(logits(np.stack([flat] * 4)), expected)
        image = np.stack([flat * 0, flat // 2, flat % 2, flat * 0])
        assert not np.allclose(logits(image), expected, atol=1e-3)
        assert context.memory.seq_pos_max(0) == 0
        for pos in (flat, np.stack([flat] * 3), np.stack([flat] * 4)[:, :4]):
            with pytest.raises(ValueError, match=r"pos must be .* \(4, 5\)"):
                logits(pos)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n_embd": 32}, "size 32; this model takes 64"),
        ({"n_embd": 64, "n_pos_per_embd": 4}, "4 positions"),
    ],
)
def test_embeddings_that_do_not_fit_the_model(context, options, reason):
    batch = Batch(1, **options)
    batch.add_embeddings(np.zeros((1, batch.n_embd), dtype=np.float32))
    with pytest.raises(pyllama.InvalidBatchError, match=reason):
        context.decode(batch)


def test_tokens_and_embeddings_do_not_mix():
    of_tokens, of_embeddings = Batch(2), Batch(2, n_embd=4)
    with pytest.raises(ValueError, match="n_embd"):
        of_tokens.add_embeddings(np.zeros((1, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="batch of embeddings"):
        of_embeddings.add(1, 0)
    with pytest.raises(ValueError, match="batch of embeddings"):
        of_embeddings.add_tokens([1])


@pytest.mark.parametrize(
    "rows", [[[1, 2, 3, 4]], np.zeros((1, 5)), np.zeros(4), "rows", None, np.zeros((1, 4), complex)]
)
def test_rows_are_checked(rows):
    with pytest.raises(TypeError, match=r"embeddings must be floats of shape \(n, 4\)"):
        Batch(2, n_embd=4).add_embeddings(rows)


def test_values_that_are_no_numbers_leave_the_process_alive(context, expected):
    batch = Batch(4, n_embd=64)
    batch.add_embeddings(np.full((4, 64), np.nan, dtype=np.float32))
    context.decode(batch)
    assert np.isnan(context.logits()).all()
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)
