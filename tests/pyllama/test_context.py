"""Contexts: decoding, outputs, and errors that leave them usable."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from decoding import PROMPT, logits_of, run_python

import pyllama
from pyllama import Batch, Context


@pytest.fixture
def still_works(context, expected):
    """The context gives the same bytes as a fresh one after whatever the test did to it."""
    yield
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)


# Outputs


def test_a_context_reports_its_sizes(tiny):
    with Context(tiny, n_ctx=1000, n_batch=64, n_ubatch=32, n_seq_max=2) as context:
        assert context.n_batch == 64
        assert context.n_ubatch == 32
        assert context.n_seq_max == 2
        assert context.n_ctx >= 1000
        assert context.n_ctx_seq * 2 == context.n_ctx
        assert context.model is tiny
        assert "n_seq_max 2" in repr(context)


def test_n_ctx_zero_is_what_the_model_was_trained_with(tiny):
    with Context(tiny) as context:
        assert context.n_ctx == tiny.n_ctx_train


def test_logits_are_a_row_of_float32(tiny, context):
    row = logits_of(context, PROMPT)
    assert row.shape == (tiny.vocab.n_tokens,)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()
    assert row.std() > 0.1


def test_logits_are_a_copy(context):
    row = logits_of(context, PROMPT)
    kept = row.copy()
    row[:] = 0
    np.testing.assert_array_equal(context.logits(), kept)
    other = logits_of(context, [1, 99])
    assert not np.array_equal(other, kept)
    context.close()
    assert not row.any()
    assert np.isfinite(other).all()


def test_outputs_by_index(context):
    context.decode(Batch.from_tokens(PROMPT, outputs="all"))
    rows = [context.logits(index) for index in range(len(PROMPT))]
    assert len({row.tobytes() for row in rows}) == len(PROMPT)
    for back in range(1, len(PROMPT) + 1):
        np.testing.assert_array_equal(context.logits(-back), rows[-back])


def test_outputs_only_where_asked(context):
    batch = Batch(3)
    batch.add(1, 0)
    batch.add(10, 1, output=True)
    batch.add(20, 2)
    context.decode(batch)
    np.testing.assert_array_equal(context.logits(1), context.logits(-1))
    for index in (0, 2, 3, -2, -3, 1000, -1000, 2**31 - 1, -(2**31) + 1):
        with pytest.raises(IndexError, match="output"):
            context.logits(index)


def test_no_output_without_one(context):
    with pytest.raises(IndexError, match="output"):
        context.logits()
    context.decode(Batch.from_tokens(PROMPT, outputs="none"))
    with pytest.raises(IndexError, match="output"):
        context.logits()


@pytest.mark.parametrize("index", [1.0, "0", None, True, [0], float("nan")])
def test_an_output_index_is_an_integer(context, index):
    context.decode(Batch.from_tokens(PROMPT))
    with pytest.raises(TypeError, match="index"):
        context.logits(index)


def test_logits_depend_on_every_token_before(context):
    first = logits_of(context, PROMPT)
    assert not np.array_equal(logits_of(context, [2, *PROMPT[1:]]), first)
    np.testing.assert_array_equal(logits_of(context, PROMPT), first)


def test_token_by_token_is_close_to_all_at_once(context):
    at_once = logits_of(context, PROMPT)
    context.memory.clear()
    for pos, token in enumerate(PROMPT):
        context.decode_token(token, pos)
    np.testing.assert_allclose(context.logits(), at_once, atol=0.02)
    assert context.logits().argmax() == at_once.argmax()


def test_one_token_is_a_batch_of_one(tiny):
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        context.decode(Batch.from_tokens(PROMPT, seq_id=1))
        context.decode(Batch.from_tokens([7], pos=len(PROMPT), seq_id=1))
        expected = context.logits()
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT, seq_id=1))
        context.decode_token(7, len(PROMPT), 1)
        np.testing.assert_array_equal(context.logits(), expected)
        assert [context.memory.seq_pos_max(seq_id) for seq_id in (0, 1)] == [-1, len(PROMPT)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 0), ValueError, "token.*-1"),
        ((True, 0), TypeError, "token.*True"),
        ((1.0, 0), TypeError, r"token.*1\.0"),
        ((1, -1), ValueError, "pos.*-1"),
        ((1, None), TypeError, "pos.*None"),
        ((1, 0, -1), ValueError, "seq_id.*-1"),
        ((1, 0, "0"), TypeError, "seq_id.*'0'"),
        ((1, 0, 1), pyllama.InvalidBatchError, "sequence 1 is outside"),
    ],
)
def test_one_token_that_does_not_fit(context, still_works, arguments, error, message):
    with pytest.raises(error, match=message):
        context.decode_token(*arguments)
    assert context.memory.seq_pos_max(0) == -1


def test_a_full_memory_refuses_one_token(tiny):
    with Context(tiny, n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_tokens([1] * 256))
        with pytest.raises(pyllama.MemoryFullError, match="no room for 1 more"):
            context.decode_token(1, 256)


def test_a_batch_of_two_sequences(tiny, expected):
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        batch = Batch(2 * len(PROMPT))
        first = batch.add_tokens(PROMPT, seq_id=0)
        second = batch.add_tokens(PROMPT[::-1], seq_id=1)
        context.decode(batch)
        np.testing.assert_allclose(context.logits(first.stop - 1), expected, atol=0.02)
        assert not np.allclose(context.logits(second.stop - 1), expected, atol=0.02)


def test_a_batch_can_be_decoded_again(context):
    batch = Batch.from_tokens(PROMPT)
    context.decode(batch)
    first = context.logits()
    context.memory.clear()
    context.decode(batch)
    np.testing.assert_array_equal(context.logits(), first)


def test_the_recurrent_model_decodes(tiny_mamba):
    with Context(tiny_mamba, n_ctx=256, n_threads=1) as context:
        first = logits_of(context, PROMPT)
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(logits_of(context, PROMPT), first)
        assert not np.array_equal(logits_of(context, [2, *PROMPT[1:]]), first)


@pytest.mark.parametrize("flash_attn", ["auto", "disabled", "enabled"])
def test_flash_attention(tiny, expected, flash_attn):
    with Context(tiny, n_ctx=256, n_threads=1, flash_attn=flash_attn) as context:
        np.testing.assert_allclose(logits_of(context, PROMPT), expected, atol=0.05)
        assert flash_attn == "auto" or context.flash_attn is (flash_attn == "enabled")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_cache_types(tiny, expected, kind):
    with Context(tiny, n_ctx=256, n_threads=1, type_k=kind, type_v=kind) as context:
        np.testing.assert_allclose(logits_of(context, PROMPT), expected, atol=0.1)


def test_a_cache_type_that_does_not_fit_the_model_is_refused_with_the_reason(tiny):
    # Heads of 16 values cannot be kept in blocks of 32.
    with pytest.raises(pyllama.ContextError, match="block size"):
        Context(tiny, n_ctx=256, type_k="q8_0", type_v="q8_0", flash_attn="enabled")
    with pytest.raises(pyllama.ContextError, match="flash_attn"):
        Context(tiny, n_ctx=256, type_v="q4_0", flash_attn="disabled")


# Refused batches


def test_an_empty_batch(context, still_works):
    with pytest.raises(pyllama.InvalidBatchError, match="0 tokens"):
        context.decode(Batch(4))


def test_a_batch_larger_than_n_batch(tiny):
    with Context(tiny, n_ctx=256, n_batch=32, n_threads=1) as context:
        before = logits_of(context, PROMPT)
        with pytest.raises(pyllama.InvalidBatchError, match=r"33 tokens.*32"):
            context.decode(Batch.from_tokens([1] * 33))
        np.testing.assert_array_equal(logits_of(context, PROMPT), before)


@pytest.mark.parametrize("token", [10**6, 2**31 - 1])
def test_a_token_outside_the_vocabulary(tiny, context, still_works, token):
    with pytest.raises(pyllama.InvalidBatchError, match=f"token {token} is outside"):
        context.decode(Batch.from_tokens([1, token]))
    with pytest.raises(pyllama.InvalidBatchError, match="outside the vocabulary"):
        context.decode_token(tiny.vocab.n_tokens, 0)
    assert context.memory.seq_pos_max(0) == -1


@pytest.mark.parametrize("seq_id", [1, 255, 256, 100_000, 2**31 - 1])
def test_a_sequence_outside_the_context(context, still_works, seq_id):
    with pytest.raises(pyllama.InvalidBatchError, match=f"sequence {seq_id} is outside"):
        context.decode(Batch.from_tokens([1], seq_id=seq_id))


@pytest.mark.parametrize("seq_id", [2, 255, 256, 2**31 - 1])
def test_a_sequence_outside_a_context_with_one_memory(tiny, seq_id):
    with (
        Context(tiny, n_ctx=256, n_seq_max=2, kv_unified=True) as context,
        pytest.raises(pyllama.InvalidBatchError, match=f"sequence {seq_id} is outside"),
    ):
        context.decode(Batch.from_tokens([1], seq_id=seq_id))


@pytest.mark.parametrize("kv_unified", [False, True])
def test_a_token_of_two_sequences_needs_one_memory(tiny, kv_unified):
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1, kv_unified=kv_unified) as context:
        batch = Batch(1, n_seq_max=2)
        batch.add(1, 0, (0, 1), output=True)
        if kv_unified:
            context.decode(batch)
            assert context.memory.seq_pos_max(0) == context.memory.seq_pos_max(1) == 0
        else:
            with pytest.raises(pyllama.InvalidBatchError, match="kv_unified=True"):
                context.decode(batch)
        context.decode_token(2, context.memory.seq_pos_max(0) + 1)


@pytest.mark.parametrize("pos", [4, 6, 1000, 2**31 - 10])
def test_a_gap_in_the_positions(context, still_works, pos):
    context.decode(Batch.from_tokens(PROMPT))
    with pytest.raises(pyllama.InvalidBatchError, match="position"):
        context.decode(Batch.from_tokens([1], pos=pos))
    assert context.memory.seq_pos_max(0) == 4
    context.decode(Batch.from_tokens([1], pos=5))


def test_a_gap_within_a_batch(context, still_works):
    batch = Batch(2)
    batch.add(1, 0)
    batch.add(2, 2, output=True)
    with pytest.raises(pyllama.InvalidBatchError, match="position"):
        context.decode(batch)


def test_positions_that_fall(context, still_works):
    batch = Batch(2)
    batch.add(1, 1)
    batch.add(2, 0, output=True)
    with pytest.raises(pyllama.InvalidBatchError):
        context.decode(batch)


def test_a_full_memory(tiny, context, still_works):
    context.decode(Batch.from_tokens([1] * context.n_ctx))
    with pytest.raises(pyllama.MemoryFullError, match="n_ctx") as caught:
        context.decode(Batch.from_tokens([1], pos=context.n_ctx))
    assert caught.value.code == 1
    assert context.memory.seq_pos_max(0) == context.n_ctx - 1
    context.memory.seq_rm(0, context.n_ctx - 8)
    context.decode(Batch.from_tokens([1] * 8, pos=context.n_ctx - 8))


def test_a_full_sequence_leaves_the_others_room(tiny):
    with Context(tiny, n_ctx=512, n_seq_max=2) as context:
        assert context.n_ctx_seq == 256
        context.decode(Batch.from_tokens([1] * 256))
        with pytest.raises(pyllama.MemoryFullError):
            context.decode(Batch.from_tokens([1], pos=256))
        context.decode(Batch.from_tokens([1] * 256, seq_id=1))


@pytest.mark.parametrize("batch", [None, [1, 2], 3, "hello", object()])
def test_something_that_is_no_batch(context, batch):
    with pytest.raises(TypeError, match="batch must be"):
        context.decode(batch)


def test_encode_needs_an_encoder(context):
    with pytest.raises(pyllama.ContextError, match="no encoder"):
        context.encode(Batch.from_tokens([1]))


def test_decode_errors_are_builtin_errors_too(context):
    with pytest.raises(ValueError, match="tokens"):
        context.decode(Batch(1))
    with pytest.raises(RuntimeError):
        context.decode(Batch(1))


# Arguments

NAN = float("nan")


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("n_ctx", -1, ValueError),
        ("n_ctx", 2**32, ValueError),
        ("n_ctx", 2**70, ValueError),
        ("n_ctx", True, TypeError),
        ("n_ctx", "512", TypeError),
        ("n_ctx", 512.0, TypeError),
        ("n_ctx", NAN, TypeError),
        ("n_ctx", None, TypeError),
        ("n_ctx", object(), TypeError),
        ("n_batch", 0, ValueError),
        ("n_batch", -1, ValueError),
        ("n_batch", 2**31, ValueError),
        ("n_batch", "32", TypeError),
        ("n_ubatch", 0, ValueError),
        ("n_ubatch", 2**32, ValueError),
        ("n_ubatch", 1.5, TypeError),
        ("n_seq_max", 0, ValueError),
        ("n_seq_max", 10**6, ValueError),
        ("n_seq_max", "2", TypeError),
        ("n_threads", 0, ValueError),
        ("n_threads", -4, ValueError),
        ("n_threads", 10**6, ValueError),
        ("n_threads", 2.0, TypeError),
        ("n_threads_batch", 0, ValueError),
        ("n_threads_batch", "all", TypeError),
        ("flash_attn", "yes", ValueError),
        ("flash_attn", True, ValueError),
        ("flash_attn", {}, ValueError),
        ("type_k", "q2_k", ValueError),
        ("type_v", 1, ValueError),
    ],
)
def test_arguments_are_checked(tiny, argument, value, error):
    with pytest.raises(error, match=argument):
        Context(tiny, **{argument: value})


@pytest.mark.parametrize("model", [None, "model.gguf", 3, object(), pyllama.Model])
def test_something_that_is_no_model(model):
    with pytest.raises(TypeError, match="model must be"):
        Context(model)


def test_numpy_integers_are_integers(tiny):
    with Context(tiny, n_ctx=np.int64(256), n_batch=np.uint16(32)) as context:
        assert context.n_batch == 32


@pytest.mark.parametrize("n_ctx", [1, 2, 255, 257])
def test_small_and_odd_contexts(tiny, n_ctx):
    with Context(tiny, n_ctx=n_ctx) as context:
        assert context.n_ctx >= n_ctx
        context.decode(Batch.from_tokens([1]))
        assert context.logits().shape == (tiny.vocab.n_tokens,)


@pytest.mark.parametrize("n_batch", [1, 2**31 - 1])
def test_small_and_huge_batches(tiny, n_batch):
    with Context(tiny, n_ctx=256, n_batch=n_batch, n_ubatch=n_batch) as context:
        assert context.n_batch <= max(256, n_batch)
        context.decode(Batch.from_tokens([1]))


@pytest.mark.skipif(sys.platform == "win32", reason="the limit that keeps the test safe is POSIX")
@pytest.mark.parametrize("n_ctx", [2**24, 2**31 - 1, 2**31, 2**32 - 256, 2**32 - 1])
@pytest.mark.parametrize("kv_unified", [0, 1])
def test_a_context_that_no_memory_could_hold_is_refused(tiny_model_path, n_ctx, kv_unified):
    written = run_python(
        """
        import logging, resource, sys
        logging.disable()
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
        import pyllama

        model = pyllama.Model(sys.argv[1])
        try:
            pyllama.Context(model, n_ctx=int(sys.argv[2]), kv_unified=bool(int(sys.argv[3])))
        except (pyllama.ContextError, pyllama.NativeMemoryError) as error:
            print(error)
        with pyllama.Context(model, n_ctx=256) as context:
            context.decode(pyllama.Batch.from_tokens([1]))
        print("lives")
        """,
        tiny_model_path,
        n_ctx,
        kv_unified,
    )
    reason, lives = written.splitlines()
    assert len(reason) > 40
    assert lives == "lives"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere allocating fails")
@pytest.mark.parametrize("n_ctx", [2**31, 2**32 - 1])
def test_a_context_beyond_all_memory_is_refused_before_it_is_allocated(tiny, n_ctx, monkeypatch):
    monkeypatch.setattr("pyllama._context_memory.available_memory", lambda: 2**34)
    with pytest.raises(pyllama.ContextError, match=rf"n_ctx={n_ctx},.* GB of memory are available"):
        Context(tiny, n_ctx=n_ctx)


def test_the_least_that_a_context_takes_is_close_to_what_its_cells_take(tiny, monkeypatch):
    """2 layers of 2 heads of 16 values, keys and values in half precision, a cell and its mask."""
    token = 2 * 2 * 16 * 2 * 2 + 52 + 2
    n_ctx = 2**18
    available = n_ctx * token + 2**16
    monkeypatch.setattr("pyllama._context_memory.available_memory", lambda: available)
    monkeypatch.setattr("pyllama._context_memory.devices", list)
    Context(tiny, n_ctx=n_ctx, n_batch=1, n_ubatch=1).close()
    with pytest.raises(pyllama.ContextError, match=f"n_ctx={n_ctx + 512}"):
        Context(tiny, n_ctx=n_ctx + 512, n_batch=1, n_ubatch=1)
