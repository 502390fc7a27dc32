"""States: taking, setting, saving and loading them; and bytes that are no state."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from decoding import PROMPT
from memories import PREFIX, make, next_logits, span

import pyllama
from pyllama import Batch, Context, StateError


def tolerance(model):
    """llama.cpp puts the next tokens of a sliding window elsewhere, once all of it was set."""
    return 0.02 if model.n_swa else 0


# There and back


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("swa_full", [False, True])
def test_a_sequence_continues_in_another_context_to_the_byte(memory_model, kv_unified, swa_full):
    options = {"kv_unified": kv_unified, "swa_full": swa_full}
    with make(memory_model, **options) as context:
        context.decode(Batch.from_tokens(PREFIX, seq_id=1))
        data = context.state.seq_get_data(1)
        assert len(data) == context.state.seq_get_size(1)
        expected = next_logits(context, seq_id=1)
    with make(memory_model, **options) as context:
        context.decode(Batch.from_tokens([3, 4, 5]))
        context.state.seq_set_data(data, 0)
        assert span(context)[1] == len(PREFIX) - 1
        assert span(context, 1) == (-1, -1)
        np.testing.assert_array_equal(next_logits(context), expected)


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize(("n_seq_max", "seq_id"), [(1, 0), (2, 0), (5, 4)])
@pytest.mark.parametrize("by_file", [False, True])
def test_a_sequence_continues_among_any_number_of_others(
    memory_model, tmp_path, kv_unified, n_seq_max, seq_id, by_file
):
    with make(memory_model, n_seq_max=3, n_ctx=768) as context:
        for other in (0, 2):
            context.decode(Batch.from_tokens(PROMPT, seq_id=other))
        context.decode(Batch.from_tokens(PREFIX, seq_id=1))
        data = context.state.seq_get_data(1)
        context.state.seq_save_file(tmp_path / "state", 1)
        expected = next_logits(context, seq_id=1)
    with make(
        memory_model, n_seq_max=n_seq_max, n_ctx=256 * n_seq_max, kv_unified=kv_unified
    ) as context:
        if by_file:
            context.state.seq_load_file(tmp_path / "state", seq_id)
        else:
            context.state.seq_set_data(data, seq_id)
        assert span(context, seq_id)[1] == len(PREFIX) - 1
        again = context.state.seq_get_data(seq_id)
        np.testing.assert_array_equal(next_logits(context, seq_id=seq_id), expected)
    with make(memory_model, n_seq_max=3, n_ctx=768) as context:
        context.state.seq_set_data(again, 2)
        np.testing.assert_array_equal(next_logits(context, seq_id=2), expected)


def test_an_empty_sequence_empties_another_among_more(memory_model):
    with make(memory_model) as context:
        nothing = context.state.seq_get_data(0)
    with make(memory_model, n_seq_max=4, n_ctx=1024) as context:
        context.decode(Batch.from_tokens(PREFIX, seq_id=3))
        context.state.seq_set_data(nothing, 3)
        assert span(context, 3) == (-1, -1)


@pytest.mark.parametrize("kv_unified", [False, True])
def test_a_whole_memory_continues_in_another_context_to_the_byte(memory_model, kv_unified):
    def continued(context):
        batch = Batch.from_tokens([50, 51], pos=[40, 5], seq_id=[0, 1], outputs="all")
        context.decode(batch)
        return context.all_logits()

    with make(memory_model, kv_unified=kv_unified) as context:
        context.decode(Batch.from_tokens(PREFIX))
        context.decode(Batch.from_tokens(PROMPT, seq_id=1))
        data = context.state.get_data()
        assert len(data) == context.state.get_size()
        expected = continued(context)
    with make(memory_model, kv_unified=kv_unified) as context:
        context.decode(Batch.from_tokens([3, 4, 5], seq_id=1))
        context.state.set_data(data)
        np.testing.assert_allclose(
            continued(context), expected, rtol=0, atol=tolerance(memory_model)
        )


def test_files_go_there_and_back(memory_model, tmp_path):
    path, tokens = tmp_path / "a.state", PREFIX[:3]
    with make(memory_model) as context:
        context.decode(Batch.from_tokens(PREFIX))
        context.state.save_file(path, tokens)
        context.state.seq_save_file(tmp_path / "b.state", 0, np.array(tokens))
        expected = next_logits(context)
    assert sorted(os.listdir(tmp_path)) == ["a.state", "b.state"]
    with make(memory_model) as context:
        assert context.state.load_file(path).tolist() == tokens
        np.testing.assert_allclose(
            next_logits(context), expected, rtol=0, atol=tolerance(memory_model)
        )
    with make(memory_model) as context:
        found = context.state.seq_load_file(tmp_path / "b.state", 1)
        assert found.dtype == np.int32
        assert found.tolist() == tokens
        np.testing.assert_array_equal(next_logits(context, seq_id=1), expected)


def test_a_file_holds_what_llama_cpp_says_it_holds(memory_models, tmp_path):
    """Read without pyllama: LLAMA_STATE_SEQ_MAGIC, version, tokens, and the positions of cells."""
    with make(memory_models["llama"], n_seq_max=1) as context:
        context.decode(Batch.from_tokens(PROMPT))
        context.state.seq_save_file(tmp_path / "one", 0, PROMPT)
    content = (tmp_path / "one").read_bytes()
    magic, version, n_tokens = struct.unpack_from("<III", content)
    assert (magic, version, n_tokens) == (0x67677371, 3, len(PROMPT))
    assert list(struct.unpack_from("<5i", content, 12)) == PROMPT
    n_stream, n_cells = struct.unpack_from("<II", content, 32)
    assert (n_stream, n_cells) == (1, len(PROMPT))
    cells = np.frombuffer(content, dtype=np.int32, count=15, offset=40).reshape(5, 3)
    assert cells.tolist() == [[pos, 1, 0] for pos in range(5)]


def test_an_empty_memory_is_a_state_too(memory_model, tmp_path):
    with make(memory_model) as context:
        empty, nothing = context.state.get_data(), context.state.seq_get_data(0)
        context.state.save_file(tmp_path / "empty")
        for restore in (
            lambda: context.state.set_data(empty),
            lambda: context.state.seq_set_data(nothing, 0),
            lambda: context.state.load_file(tmp_path / "empty"),
        ):
            context.decode(Batch.from_tokens(PROMPT))
            restore()
            assert span(context) == (-1, -1)


def test_a_model_without_memory_has_a_state_of_nothing(write_tiny_model, tmp_path):
    with (
        pyllama.Model(write_tiny_model(architecture="bert")) as bert,
        make(bert, embeddings=True) as context,
    ):
        context.state.set_data(context.state.get_data())
        context.state.seq_set_data(context.state.seq_get_data(0), 1)
        context.state.save_file(tmp_path / "none", [1])
        assert context.state.load_file(tmp_path / "none").tolist() == [1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, "numpy", "floats"])
def test_any_buffer_will_do(memory_models, kind):
    with make(memory_models["llama"]) as context:
        context.decode(Batch.from_tokens(PROMPT))
        data = context.state.seq_get_data(0)
        if kind == "numpy":
            data = np.frombuffer(data, dtype=np.uint8).reshape(2, -1)
        elif kind == "floats":
            data = np.frombuffer(data, dtype=np.float32)
        else:
            data = kind(data)
        context.state.seq_set_data(data, 1)
        assert span(context, 1) == (0, 4)


def test_into_a_buffer_of_the_caller(memory_models):
    with make(memory_models["llama"]) as context:
        context.decode(Batch.from_tokens(PROMPT))
        size = context.state.seq_get_size(0)
        for buffer in (bytearray(size + 10), np.zeros(size + 10, dtype=np.uint8)):
            assert context.state.seq_get_data_into(buffer, 0) == size
            assert bytes(buffer[:size]) == context.state.seq_get_data(0)
            assert not any(buffer[size:])
        whole = bytearray(context.state.get_size())
        context.state.get_data_into(whole)
        assert whole == context.state.get_data()
        with pytest.raises(ValueError, match=f"{size} bytes"):
            context.state.seq_get_data_into(bytearray(size - 1), 0)
        with pytest.raises(TypeError, match="writeable"):
            context.state.seq_get_data_into(bytes(size), 0)


@pytest.mark.parametrize(
    ("name", "swa_full"), [("mamba", True), ("jamba", True), ("gemma2", False)]
)
def test_a_partial_state_goes_back_to_where_it_was_taken(memory_models, name, swa_full):
    with make(memory_models[name], swa_full=swa_full) as context:
        context.decode(Batch.from_tokens(PREFIX))
        partial = context.state.seq_get_data(0, partial_only=True)
        assert len(partial) <= context.state.seq_get_size(0)
        assert len(partial) == context.state.seq_get_size(0, partial_only=True)
        expected = next_logits(context)
        context.decode(Batch.from_tokens([60, 61], pos=len(PREFIX) + 1))
        if name != "mamba":
            assert len(partial) < context.state.seq_get_size(0)
        if name == "gemma2":
            context.memory.seq_rm(0, len(PREFIX))
        context.state.seq_set_data(partial, 0)
        assert span(context)[1] == len(PREFIX) - 1
        if name != "jamba":  # whose attention layers cannot forget without the recurrent ones
            np.testing.assert_array_equal(next_logits(context), expected)


@pytest.mark.model
def test_a_prefix_of_a_real_model_continues_to_the_byte(smollm2, tmp_path):
    tokens = smollm2.vocab.tokenize("The capital of France is")
    with Context(smollm2, n_ctx=256) as context:
        context.decode(Batch.from_tokens(tokens))
        context.state.seq_save_file(tmp_path / "prefix", 0, tokens)
        data, expected = context.state.seq_get_data(0), next_logits(context)
    with Context(smollm2, n_ctx=512) as context:
        context.state.seq_set_data(data, 0)
        np.testing.assert_array_equal(next_logits(context), expected)
        assert context.state.seq_load_file(tmp_path / "prefix", 0).tolist() == tokens
        np.testing.assert_array_equal(next_logits(context), expected)


# What waits for the next decode


def test_no_state_while_a_copy_or_shift_is_pending(memory_models):
    with make(memory_models["llama"]) as context:
        context.decode(Batch.from_tokens(PREFIX))
        data = context.state.seq_get_data(0)
        for change in (
            lambda: context.memory.seq_cp(0, 1),
            lambda: context.memory.seq_add(0, 20, -1, -1),
            lambda: context.memory.seq_div(0, 20, -1, 2),
        ):
            change()
            for use in (
                context.state.get_data,
                lambda: context.state.seq_get_data(0),
                lambda: context.state.seq_set_data(data, 1),
                lambda: context.state.seq_save_file("never", 0),
            ):
                with pytest.raises(StateError, match="decode before"):
                    use()
            context.memory.clear()
            context.decode(Batch.from_tokens(PREFIX))
            assert context.state.seq_get_data(0) == data


# Arguments


@pytest.mark.parametrize("data", ["text", 3, None, [1, 2], object(), np.zeros((4, 4))[:, ::2]])
def test_something_that_is_no_bytes(memory_models, data):
    with make(memory_models["llama"]) as context:
        for restore in (context.state.set_data, lambda x: context.state.seq_set_data(x, 0)):
            with pytest.raises(TypeError, match="data must be"):
                restore(data)
        for take in (context.state.get_data_into, lambda x: context.state.seq_get_data_into(x, 0)):
            with pytest.raises(TypeError, match="buffer must be"):
                take(data)


@pytest.mark.parametrize(
    ("seq_id", "error"), [(-1, ValueError), (2, ValueError), (2**31, ValueError), ("0", TypeError)]
)
def test_sequences_are_checked(memory_models, seq_id, error):
    with make(memory_models["llama"]) as context:
        state = context.state
        for use in (
            lambda: state.seq_get_size(seq_id),
            lambda: state.seq_get_data(seq_id),
            lambda: state.seq_get_data_into(bytearray(10), seq_id),
            lambda: state.seq_set_data(b"", seq_id),
            lambda: state.seq_save_file("never", seq_id),
            lambda: state.seq_load_file("never", seq_id),
        ):
            with pytest.raises(error, match="seq_id"):
                use()


def test_paths_and_tokens_are_checked(memory_models, tmp_path):
    with make(memory_models["llama"]) as context:
        for path, error in ((b"bytes", TypeError), (3, TypeError), ("a\0b", ValueError)):
            with pytest.raises(error):
                context.state.save_file(path)
            with pytest.raises(error):
                context.state.load_file(path)
        with pytest.raises(FileNotFoundError):
            context.state.load_file(tmp_path / "missing")
        with pytest.raises(FileNotFoundError):
            context.state.save_file(tmp_path / "missing" / "state")
        with pytest.raises(IsADirectoryError):
            context.state.load_file(tmp_path)
        with pytest.raises(IsADirectoryError):
            context.state.save_file(tmp_path)
        for tokens, error in (([-1], ValueError), ([10**6], ValueError), (["a"], TypeError)):
            with pytest.raises(error, match="tokens"):
                context.state.save_file(tmp_path / "state", tokens)
        assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_file_before_it(memory_models, tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"before")
    with make(memory_models["llama"]) as context:
        context.decode(Batch.from_tokens(PREFIX))
        context.memory.seq_cp(0, 1)
        with pytest.raises(StateError):
            context.state.save_file(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_closed_context(memory_models):
    context = make(memory_models["llama"])
    data = context.state.get_data()
    context.close()
    for use in (
        context.state.get_size,
        context.state.get_data,
        lambda: context.state.set_data(data),
        lambda: context.state.seq_get_data(0),
        lambda: context.state.save_file(Path("never")),
    ):
        with pytest.raises(pyllama.ClosedError):
            use()
