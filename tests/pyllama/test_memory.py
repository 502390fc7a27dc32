"""The memory of a context: forgetting, copying and shifting sequences."""

from __future__ import annotations

import numpy as np
import pytest
from decoding import Decoding

import pyllama
from pyllama import Batch, Context

PREFIX = list(range(10, 42))


@pytest.fixture
def two(tiny):
    """Two sequences with memory of their own."""
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        yield context


@pytest.fixture
def shared(tiny):
    """Two sequences in one memory."""
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1, kv_unified=True) as context:
        yield context


@pytest.fixture
def recurrent(tiny_mamba):
    with Context(tiny_mamba, n_ctx=256, n_seq_max=2, n_threads=1) as context:
        yield context


def span(context, seq_id=0):
    return context.memory.seq_pos_min(seq_id), context.memory.seq_pos_max(seq_id)


def next_logits(context, token, pos, seq_id=0):
    context.decode_token(token, pos, seq_id)
    return context.logits()


def test_a_new_memory_is_empty(two):
    assert span(two, 0) == span(two, 1) == (-1, -1)


def test_decode_fills_it_and_clear_empties_it(two):
    two.decode(Batch.from_tokens(PREFIX))
    assert span(two) == (0, 31)
    assert span(two, 1) == (-1, -1)
    two.memory.clear(data=False)
    assert span(two) == (-1, -1)
    two.decode(Batch.from_tokens(PREFIX))
    two.memory.clear()
    assert span(two) == (-1, -1)


@pytest.mark.parametrize(
    ("p0", "p1", "left"),
    [
        (16, -1, (0, 15)),
        (0, 16, (16, 31)),
        (-1, 16, (16, 31)),
        (-1, -1, (-1, -1)),
        (8, 16, (0, 31)),
        (32, 99, (0, 31)),
        (5, 5, (0, 31)),
        (16, 2**31 - 1, (0, 15)),
    ],
)
def test_seq_rm_forgets_a_half_open_range(two, p0, p1, left):
    two.decode(Batch.from_tokens(PREFIX))
    two.decode(Batch.from_tokens(PREFIX, seq_id=1))
    assert two.memory.seq_rm(0, p0, p1)
    assert span(two) == left
    assert span(two, 1) == (0, 31)


def test_seq_rm_of_every_sequence(two):
    two.decode(Batch.from_tokens(PREFIX))
    two.decode(Batch.from_tokens(PREFIX, seq_id=1))
    assert two.memory.seq_rm(-1, 4)
    assert span(two, 0) == span(two, 1) == (0, 3)
    assert two.memory.seq_rm(-1)
    assert span(two, 0) == span(two, 1) == (-1, -1)


def test_removing_a_tail_is_as_if_it_had_never_been(two):
    two.decode(Batch.from_tokens(PREFIX))
    expected = next_logits(two, 50, 32)
    two.decode(Batch.from_tokens([1, 2, 3], pos=33))
    assert two.memory.seq_rm(0, 32)
    np.testing.assert_array_equal(next_logits(two, 50, 32), expected)


@pytest.mark.parametrize("kind", ["two", "shared", "recurrent"])
def test_a_copied_sequence_continues_alike(request, kind):
    context = request.getfixturevalue(kind)
    context.decode(Batch.from_tokens(PREFIX))
    context.memory.seq_cp(0, 1)
    assert span(context, 1)[1] == 31
    original = next_logits(context, 50, 32, 0)
    np.testing.assert_allclose(next_logits(context, 50, 32, 1), original, atol=0.02)
    # And the copy goes its own way.
    assert not np.allclose(next_logits(context, 60, 33, 1), next_logits(context, 70, 33, 0))


def test_a_copied_sequence_outlives_its_source(two):
    two.decode(Batch.from_tokens(PREFIX))
    expected = next_logits(two, 50, 32)
    two.memory.seq_rm(0, 32)
    two.memory.seq_cp(0, 1)
    two.memory.seq_rm(0)
    assert span(two, 0) == (-1, -1)
    np.testing.assert_allclose(next_logits(two, 50, 32, 1), expected, atol=0.02)


def test_part_of_a_sequence_is_copied_within_one_memory_only(two, shared):
    for context in (two, shared):
        context.decode(Batch.from_tokens(PREFIX))
    shared.memory.seq_cp(0, 1, 0, 16)
    assert span(shared, 1) == (0, 15)
    for p0, p1 in [(0, 16), (16, -1), (4, 8)]:
        with pytest.raises(ValueError, match="complete sequences"):
            two.memory.seq_cp(0, 1, p0, p1)
    assert span(two, 1) == (-1, -1)
    two.memory.seq_cp(0, 1, 0, -1)
    assert span(two, 1) == (0, 31)


def test_a_sequence_copied_onto_itself_stays(two):
    two.decode(Batch.from_tokens(PREFIX))
    two.memory.seq_cp(0, 0)
    assert span(two) == (0, 31)


def test_seq_keep_forgets_the_others(shared, two):
    for context in (shared, two):
        context.decode(Batch.from_tokens(PREFIX))
        context.decode(Batch.from_tokens(PREFIX, seq_id=1))
        context.memory.seq_keep(1)
        assert span(context, 0) == (-1, -1)
        assert span(context, 1) == (0, 31)


def test_seq_add_shifts_positions(two):
    assert two.memory.can_shift
    two.decode(Batch.from_tokens(PREFIX))
    # As when the oldest tokens make room: positions 8 and up move to 0 and up.
    two.memory.seq_rm(0, 0, 8)
    two.memory.seq_add(0, 8, -1, -8)
    assert span(two) == (0, 23)
    two.decode_token(50, 24)
    assert np.isfinite(two.logits()).all()


def test_shifted_keys_are_rotated_to_their_new_positions(two):
    two.decode(Batch.from_tokens(PREFIX))
    plain = next_logits(two, 50, 32)
    two.memory.seq_rm(0, 32)
    two.memory.seq_add(0, 0, -1, 100)
    assert span(two) == (100, 131)
    # Rotary attention sees distances only; the shift costs rounding.
    np.testing.assert_allclose(next_logits(two, 50, 132), plain, atol=0.1)


def test_seq_div_divides_positions(two):
    two.decode(Batch.from_tokens(PREFIX))
    two.memory.seq_div(0, 0, -1, 4)
    assert span(two) == (0, 7)


def test_a_recurrent_memory_forgets_whole_sequences_only(recurrent):
    recurrent.decode(Batch.from_tokens(PREFIX))
    assert recurrent.memory.seq_rm(0, 16) is False
    assert recurrent.memory.seq_pos_max(0) == 31
    assert recurrent.memory.seq_rm(0) is True
    assert span(recurrent) == (-1, -1)


def test_a_recurrent_memory_forgets_everything(recurrent):
    recurrent.decode(Batch.from_tokens(PREFIX))
    recurrent.decode(Batch.from_tokens(PREFIX, seq_id=1))
    recurrent.memory.clear()
    assert span(recurrent) == span(recurrent, 1) == (-1, -1)
    recurrent.decode(Batch.from_tokens(PREFIX))
    recurrent.decode(Batch.from_tokens(PREFIX, seq_id=1))
    assert recurrent.memory.seq_rm(-1, 16) is False
    assert recurrent.memory.seq_rm(-1) is True
    assert span(recurrent) == span(recurrent, 1) == (-1, -1)


def test_a_memory_that_cannot_shift_says_so(recurrent):
    if recurrent.memory.can_shift:
        recurrent.decode(Batch.from_tokens(PREFIX))
        recurrent.memory.seq_add(0, 0, -1, 4)
        assert recurrent.memory.seq_pos_max(0) == 35
    else:
        with pytest.raises(ValueError, match="cannot be shifted"):
            recurrent.memory.seq_add(0, 0, -1, 4)


BAD_SEQUENCES = [
    (-2, ValueError),
    (2, ValueError),
    (2**31 - 1, ValueError),
    (2**40, ValueError),
    (0.0, TypeError),
    ("0", TypeError),
    (None, TypeError),
    (True, TypeError),
]


@pytest.mark.parametrize(("seq_id", "error"), BAD_SEQUENCES)
def test_sequences_are_checked(two, seq_id, error):
    memory = two.memory
    uses = {
        "seq_id": [
            lambda: memory.seq_rm(seq_id),
            lambda: memory.seq_keep(seq_id),
            lambda: memory.seq_add(seq_id, 0, -1, 1),
            lambda: memory.seq_div(seq_id, 0, -1, 2),
            lambda: memory.seq_pos_min(seq_id),
            lambda: memory.seq_pos_max(seq_id),
        ],
        "source": [lambda: memory.seq_cp(seq_id, 0)],
        "destination": [lambda: memory.seq_cp(0, seq_id)],
    }
    for name, calls in uses.items():
        for call in calls:
            with pytest.raises(error, match=name):
                call()


def test_every_sequence_is_meant_by_seq_rm_alone(two):
    for use in (two.memory.seq_keep, two.memory.seq_pos_max, two.memory.seq_pos_min):
        with pytest.raises(ValueError, match="seq_id"):
            use(-1)


@pytest.mark.parametrize(
    ("position", "error"), [(2**31, ValueError), (1.0, TypeError), ("0", TypeError)]
)
def test_positions_are_checked(two, position, error):
    for use in (
        lambda: two.memory.seq_rm(0, position),
        lambda: two.memory.seq_rm(0, 0, position),
        lambda: two.memory.seq_cp(0, 1, position),
        lambda: two.memory.seq_add(0, position, -1, 1),
        lambda: two.memory.seq_div(0, 0, position, 2),
    ):
        with pytest.raises(error):
            use()


@pytest.mark.parametrize(
    ("divisor", "error"), [(0, ValueError), (1, ValueError), (-2, ValueError), (0.5, TypeError)]
)
def test_a_divisor_is_greater_than_one(two, divisor, error):
    with pytest.raises(error, match="divisor"):
        two.memory.seq_div(0, 0, -1, divisor)


@pytest.mark.parametrize("delta", [2**31 - 1, -(2**31) + 1])
def test_a_shift_out_of_all_bounds_leaves_the_process_alive(two, delta):
    two.decode(Batch.from_tokens(PREFIX))
    try:
        two.memory.seq_add(0, 0, -1, delta)
    except (ValueError, pyllama.LlamaError):
        return
    two.memory.clear()
    two.decode(Batch.from_tokens(PREFIX))
    assert np.isfinite(two.logits()).all()


# Recurrent, hybrid and sliding-window models


@pytest.fixture(scope="module")
def kinds(write_tiny_model):
    made = {
        name: pyllama.Model(write_tiny_model(architecture=name)) for name in ("jamba", "gemma2")
    }
    yield made
    for model in made.values():
        model.close()


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_recurrent_sequences_are_copied_and_forgotten_as_a_whole(kinds, tiny_mamba, name):
    model = kinds.get(name, tiny_mamba)
    with Context(model, n_ctx=512, n_seq_max=2, n_threads=1, kv_unified=True) as context:
        memory = context.memory
        context.decode(Batch.from_tokens(PREFIX))
        for p0, p1 in [(4, -1), (0, 16), (-1, 31)]:
            with pytest.raises(ValueError, match="complete"):
                memory.seq_cp(0, 1, p0, p1)
            assert not memory.seq_rm(0, max(p0, 1), p1)
        memory.seq_cp(0, 1)
        expected = next_logits(context, 50, 32)
        np.testing.assert_allclose(next_logits(context, 50, 32, 1), expected, atol=0.02)
        assert memory.seq_rm(0)
        assert span(context) == (-1, -1)
        context.decode(Batch.from_tokens(PREFIX))
        np.testing.assert_allclose(next_logits(context, 50, 32), expected, atol=0.02)


def test_a_shift_cannot_take_a_recurrent_state_below_zero(recurrent):
    recurrent.decode(Batch.from_tokens(PREFIX))
    with pytest.raises(ValueError, match="below 0"):
        recurrent.memory.seq_add(0, 0, -1, -32)
    recurrent.memory.seq_add(0, 0, -1, -31)
    assert span(recurrent) == (0, 0)


def test_a_shift_below_zero_forgets(two):
    two.decode(Batch.from_tokens(PREFIX))
    two.memory.seq_add(0, 0, -1, -30)
    assert span(two) == (0, 1)


def test_a_shift_beyond_every_position_is_refused(two):
    two.decode(Batch.from_tokens(PREFIX))
    with pytest.raises(ValueError, match="delta=2147483616 moves position 31"):
        two.memory.seq_add(0, 0, -1, 2**31 - 32)
    with pytest.raises(ValueError, match="moves position 3"):
        two.memory.seq_add(0, 0, 4, 2**31 - 1)
    assert span(two) == (0, 31)


def test_a_window_moves_on(kinds):
    with Context(
        kinds["gemma2"], n_ctx=1024, n_ubatch=16, n_seq_max=2, n_threads=1, swa_full=False
    ) as context:
        context.decode(Batch.from_tokens([7] * 400))
        assert span(context)[1] == 399
        assert span(context)[0] > 100
        context.memory.seq_cp(0, 1)
        expected = next_logits(context, 50, 400)
        np.testing.assert_allclose(next_logits(context, 50, 400, 1), expected, atol=0.02)
        context.memory.seq_rm(0)
        assert span(context, 0) == (-1, -1)
        assert span(context, 1)[1] == 400


def test_a_cancelled_decode_leaves_no_half_of_a_recurrent_state(write_tiny_model):
    with (
        pyllama.Model(write_tiny_model(architecture="mamba", n_layer=8)) as model,
        Context(model, n_batch=100_000, n_ctx=100_000, n_seq_max=2, n_threads=1) as context,
    ):
        context.decode(Batch.from_tokens(PREFIX, seq_id=1))
        expected = context.logits()
        decoding = Decoding(context, Batch.from_tokens(np.full(100_000, 7)))
        while decoding.is_alive():
            context.cancel()
            decoding.join(0.001)
        assert isinstance(decoding.raised, pyllama.DecodeCancelled)
        assert span(context, 0) == (-1, -1)
        assert span(context, 1)[1] == 31
        context.decode(Batch.from_tokens(PREFIX))
        np.testing.assert_allclose(context.logits(), expected, atol=1e-4)


def test_a_model_without_memory_remembers_nothing(write_tiny_model):
    with (
        pyllama.Model(write_tiny_model(architecture="bert")) as bert,
        Context(bert, n_ctx=256, n_seq_max=2, n_ubatch=256, embeddings=True) as context,
    ):
        context.decode(Batch.from_tokens(PREFIX))
        assert span(context) == (-1, -1)
        assert not context.memory.can_shift
        context.memory.clear()
        context.memory.seq_cp(0, 1)
        context.memory.seq_keep(0)
        assert context.memory.seq_rm(0)
