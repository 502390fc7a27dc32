"""States that are refused: of other contexts, too large, or damaged."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from decoding import PROMPT
from memories import ARCHITECTURES, PREFIX, make, span

import pyllama
from pyllama import Batch, StateError

# Foreign states


def foreign(memory_models, data_of, **options):
    with make(memory_models["llama"], **options) as context:
        context.decode(Batch.from_tokens(PROMPT))
        return data_of(context.state)


FOREIGN = {
    "another n_seq_max": {"n_seq_max": 1},
    "one memory": {"kv_unified": True},
    "other keys": {"type_k": "f32"},
    "other values": {"type_v": "bf16"},
    "other RoPE": {"rope_freq_base": 5000.0},
}


@pytest.mark.parametrize("difference", FOREIGN)
def test_the_state_of_another_context_is_refused_before_anything_changes(memory_models, difference):
    with make(memory_models["llama"]) as context:
        context.decode(Batch.from_tokens(PREFIX))
        before = context.state.get_data()
        one = foreign(memory_models, lambda state: state.seq_get_data(0), **FOREIGN[difference])
        every = foreign(memory_models, lambda state: state.get_data(), **FOREIGN[difference])
        if difference not in ("another n_seq_max", "one memory"):  # a sequence fits any number
            with pytest.raises(StateError, match="the state is of"):
                context.state.seq_set_data(one, 0)
        with pytest.raises(StateError, match="the state is of"):
            context.state.set_data(every)
        assert context.state.get_data() == before


def test_the_state_of_a_model_with_other_metadata_is_refused(write_tiny_model):
    path = write_tiny_model()
    with (
        pyllama.Model(path, kv_overrides={"llama.rope.freq_base": 500.0}) as other,
        pyllama.Model(path) as model,
        make(other) as source,
        make(model) as context,
    ):
        source.decode(Batch.from_tokens(PROMPT))
        with pytest.raises(StateError, match="another model"):
            context.state.set_data(source.state.get_data())


def test_the_state_of_another_model_is_refused(memory_models, write_tiny_model, tmp_path):
    with (
        pyllama.Model(write_tiny_model(n_layer=3)) as other,
        make(other) as source,
        make(memory_models["llama"]) as context,
    ):
        source.decode(Batch.from_tokens(PROMPT))
        source.state.save_file(tmp_path / "all")
        source.state.seq_save_file(tmp_path / "one", 0)
        context.decode(Batch.from_tokens(PREFIX))
        with pytest.raises(StateError, match="another model"):
            context.state.seq_set_data(source.state.seq_get_data(0), 0)
        assert span(context) == (0, 39)
        # The format of files says no more than what llama.cpp checks while it reads.
        with pytest.raises(StateError, match="layer"):
            context.state.seq_load_file(tmp_path / "one", 0)
        assert span(context) == (-1, -1)
        context.decode(Batch.from_tokens(PREFIX, seq_id=1))
        with pytest.raises(StateError, match="layer"):
            context.state.load_file(tmp_path / "all")
        assert span(context, 1) == (-1, -1)
        context.decode(Batch.from_tokens(PROMPT))


@pytest.mark.parametrize("source", ARCHITECTURES)
def test_files_of_other_architectures(memory_models, memory_model, source, tmp_path):
    if memory_models[source] is memory_model:
        return
    with make(memory_models[source]) as context:
        context.decode(Batch.from_tokens(PROMPT))
        context.state.save_file(tmp_path / "all")
        context.state.seq_save_file(tmp_path / "one", 0)
    with make(memory_model) as context:
        with pytest.raises(StateError, match="architecture"):
            context.state.load_file(tmp_path / "all")
        with pytest.raises(StateError):
            context.state.seq_load_file(tmp_path / "one", 0)
        context.decode(Batch.from_tokens(PROMPT))


def test_more_tokens_than_there_is_room_for(memory_models, tmp_path):
    with make(memory_models["llama"], n_ctx=1024) as large:
        large.decode(Batch.from_tokens([7] * 400))
        data = large.state.seq_get_data(0)
        large.state.seq_save_file(tmp_path / "one", 0)
        large.state.save_file(tmp_path / "all")
    with make(memory_models["llama"]) as small:
        small.decode(Batch.from_tokens(PROMPT))
        small.decode(Batch.from_tokens(PROMPT, seq_id=1))
        with pytest.raises(StateError, match="room for 256"):
            small.state.seq_load_file(tmp_path / "one", 0)
        with pytest.raises(StateError, match="room for 256"):
            small.state.load_file(tmp_path / "all")
        assert span(small) == (0, 4)
        with pytest.raises(StateError, match="room for 256"):
            small.state.seq_set_data(data, 0)
        assert span(small) == (0, 4)
        assert span(small, 1) == (0, 4)


def test_a_memory_that_is_taken_by_others(memory_models):
    with make(memory_models["llama"], n_ctx=256, kv_unified=True) as context:
        context.decode(Batch.from_tokens([7] * 100))
        data = context.state.seq_get_data(0)
        context.decode(Batch.from_tokens([7] * 120, seq_id=1))
        context.state.seq_set_data(data, 0)
        context.memory.seq_rm(0)
        context.decode(Batch.from_tokens([7] * 50, pos=120, seq_id=1))
        with pytest.raises(StateError, match="available cells"):
            context.state.seq_set_data(data, 0)
        assert span(context) == (-1, -1)
        assert span(context, 1) == (0, 169)


def test_one_sequence_is_not_all(memory_models, tmp_path):
    with make(memory_models["llama"]) as context:
        context.decode(Batch.from_tokens(PROMPT))
        with pytest.raises(StateError, match="seq_set_data"):
            context.state.set_data(context.state.seq_get_data(0))
        with pytest.raises(StateError, match="set_data"):
            context.state.seq_set_data(context.state.get_data(), 0)
        context.state.save_file(tmp_path / "all")
        context.state.seq_save_file(tmp_path / "one", 0)
        with pytest.raises(StateError, match="whole context"):
            context.state.load_file(tmp_path / "one")
        with pytest.raises(StateError, match="one sequence"):
            context.state.seq_load_file(tmp_path / "all", 0)


# Damaged states


def test_every_truncation_and_every_flipped_byte_is_found(memory_model):
    with make(memory_model) as context:
        context.decode(Batch.from_tokens(PROMPT))
        before, one, every = context.state.get_data(), *states_of(context)
        for data, restore in (
            (one, lambda x: context.state.seq_set_data(x, 0)),
            (every, context.state.set_data),
        ):
            step = max(1, len(data) // 1000)
            for length in range(0, len(data), step):
                with pytest.raises(StateError):
                    restore(data[:length])
            for index in range(0, len(data), step):
                damaged = bytearray(data)
                damaged[index] ^= 1 << index % 8
                with pytest.raises(StateError):
                    restore(damaged)
            with pytest.raises(StateError, match="bytes long"):
                restore(data + b"\0")
        assert context.state.get_data() == before


def states_of(context):
    return context.state.seq_get_data(0), context.state.get_data()


INTERESTING = [0, 1, 2, 255, 256, 512, 65536, 2**31 - 1, 2**31, 2**32 - 1]


def mutated(content, chance):
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 3])):
        # Half of the changes hit what comes before the tensors.
        index = chance.randrange(len(damaged) if chance.random() < 0.5 else min(len(damaged), 200))
        if chance.random() < 0.5:
            damaged[index] = chance.randrange(256)
        else:
            struct.pack_into(
                "<I", damaged, index // 4 * 4 % (len(damaged) - 4), chance.choice(INTERESTING)
            )
    return bytes(damaged)


@pytest.mark.parametrize("kv_unified", [False, True])
def test_damaged_files_load_or_are_refused(memory_model, kv_unified, tmp_path):
    """Whatever the file holds: an exception at most, and the context goes on."""
    path = tmp_path / "state"
    chance = random.Random(7)
    with make(memory_model, kv_unified=kv_unified) as context:
        for seq_id in (0, 1):
            context.decode(Batch.from_tokens(PROMPT, seq_id=seq_id))
        context.state.save_file(path, PROMPT)
        every = path.read_bytes()
        context.state.seq_save_file(path, 0, PROMPT)
        one = path.read_bytes()
        for content, load in (
            (every, lambda: context.state.load_file(path)),
            (one, lambda: context.state.seq_load_file(path, 1)),
        ):
            lengths = [*range(120), *range(120, len(content), max(1, len(content) // 60))]
            attempts = [content[:length] for length in lengths]
            for attempt in attempts:
                path.write_bytes(attempt)
                with pytest.raises(StateError):
                    load()
            attempts = [mutated(content, chance) for _ in range(250)]
            attempts += [content + b"\0", content[:12] + chance.randbytes(500)]
            for attempt in attempts:
                path.write_bytes(attempt)
                try:
                    load()
                except StateError:
                    continue
                for seq_id in (0, 1):
                    assert -1 <= span(context, seq_id)[1] < 2**31 - 1
                context.memory.seq_rm(0)
                context.decode(Batch.from_tokens(PROMPT))
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        assert np.isfinite(context.logits()).all()


def test_a_count_that_would_need_gigabytes(memory_models, tmp_path):
    """llama.cpp would make room for what a length says before it looks whether it is there."""
    path = tmp_path / "state"
    with make(memory_models["llama"]) as context:
        context.state.save_file(path)
        content = bytearray(path.read_bytes())
        struct.pack_into("<I", content, 12, 2**32 - 1)
        path.write_bytes(content)
        with pytest.raises(StateError, match="architecture"):
            context.state.load_file(path)


def test_a_file_larger_than_memory(monkeypatch, memory_models, tmp_path):
    with make(memory_models["llama"]) as context:
        context.state.save_file(tmp_path / "state")
        monkeypatch.setattr("pyllama.state.fits", lambda _size: False)
        with pytest.raises(StateError, match="larger than memory"):
            context.state.load_file(tmp_path / "state")
