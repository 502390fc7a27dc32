"""Loading models: what they tell, and what a file that is none leads to."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import synthetic

import pyllama


def test_a_model_reports_its_shape(tiny, tiny_model_path):
    assert tiny.path == str(tiny_model_path)
    assert (tiny.n_embd, tiny.n_layer, tiny.n_head, tiny.n_head_kv) == (64, 2, 4, 2)
    assert tiny.n_ctx_train == 512
    assert tiny.n_swa == 0
    assert tiny.has_decoder
    assert not tiny.has_encoder
    assert not tiny.is_recurrent
    assert not tiny.vocab_only
    assert tiny.desc.startswith("llama")
    assert tiny.metadata["general.name"] == "synthetic"
    assert tiny.metadata["tokenizer.chat_template"] == synthetic.CHATML
    # Embedding, output and norms, and in each layer q, k, v, o, two norms and three matrices.
    n_vocab = tiny.vocab.n_tokens
    assert tiny.n_params == 2 * n_vocab * 64 + 64 + 2 * (3 * 64 * 64 + 2 * 64 + 3 * 64 * 128)
    assert tiny.size == 4 * tiny.n_params


def test_a_model_reports_how_it_is_made(tiny):
    assert (tiny.n_embd_inp, tiny.n_embd_out, tiny.n_layer_nextn) == (64, 64, 0)
    assert tiny.rope_type == "norm"
    assert tiny.rope_freq_scale_train == 1.0
    assert tiny.ftype == "F32"
    assert tiny.decoder_start_token is None
    assert not tiny.is_diffusion
    assert tiny.classifier_labels == ()
    assert dict(tiny.sampling_metadata) == {}
    assert tiny.chat_template_names == ()


def test_what_else_a_file_may_say(write_tiny_model):
    path = write_tiny_model(
        metadata={
            "llama.classifier.output_labels": ["bad", "göod"],
            "general.sampling.top_k": 40,
            "general.sampling.temp": 0.5,
            "tokenizer.chat_template.tool_use": "{{ tools }}",
            "tokenizer.chat_template.rag": "{{ documents }}",
            "llama.rope.scaling.type": "linear",
            "llama.rope.scaling.factor": 4.0,
        },
    )
    with pyllama.Model(path) as model:
        assert model.classifier_labels == ("bad", "göod")
        assert model.sampling_metadata["top_k"] == "40"
        assert float(model.sampling_metadata["temp"]) == 0.5
        assert sorted(model.chat_template_names) == ["rag", "tool_use"]
        assert model.chat_template("tool_use") == "{{ tools }}"
        assert model.chat_template() == synthetic.CHATML
        assert model.rope_freq_scale_train == 0.25
        with pytest.raises(TypeError):
            model.sampling_metadata["top_k"] = "1"


def test_a_recurrent_model_has_no_rotary_positions(tiny_mamba):
    assert tiny_mamba.rope_type == "none"


@pytest.mark.parametrize(
    ("name", "error"), [(3, TypeError), (b"a", TypeError), ("\ud800", ValueError)]
)
def test_names_of_templates_are_checked(tiny, name, error):
    with pytest.raises(error, match="name"):
        tiny.chat_template(name)


def test_metadata_cannot_be_changed(tiny):
    with pytest.raises(TypeError):
        tiny.metadata["general.name"] = "other"


def test_a_recurrent_model_says_so(tiny_mamba):
    assert tiny_mamba.is_recurrent
    assert not tiny_mamba.is_hybrid


def test_chat_template_is_none_without_one(write_tiny_model):
    with pyllama.Model(write_tiny_model(chat_template=None), vocab_only=True) as model:
        assert model.chat_template() is None


def test_chat_template_by_name(tiny):
    assert tiny.chat_template() == synthetic.CHATML
    assert tiny.chat_template("tool_use") is None


def test_repr_names_file_and_state(tiny_model_path):
    model = pyllama.Model(tiny_model_path, vocab_only=True)
    assert tiny_model_path.name in repr(model)
    model.close()
    assert "closed" in repr(model)


@pytest.mark.parametrize(("metadata", "ftype"), [({"general.file_type": 15}, "Q4_K_M"), ({}, None)])
def test_vocab_only_knows_the_quantization_that_the_file_tells(write_tiny_model, metadata, ftype):
    with pyllama.Model(write_tiny_model(metadata=metadata), vocab_only=True) as model:
        assert model.ftype == ftype


def test_vocab_only_has_a_vocabulary_and_no_weights(tiny_model_path):
    with pyllama.Model(tiny_model_path, vocab_only=True) as model:
        assert model.vocab_only
        assert model.vocab.tokenize("hello", add_special=False)
        with pytest.raises(pyllama.ContextError, match="vocab_only"):
            pyllama.Context(model)


@pytest.mark.parametrize("load_mode", ["auto", "none", "mmap"])
def test_load_modes_give_the_same_model(tiny_model_path, load_mode):
    with pyllama.Model(tiny_model_path, load_mode=load_mode, check_tensors=True) as model:
        assert model.desc.startswith("llama")


def test_the_cpu_alone_can_be_asked_for(tiny_model_path):
    with pyllama.Model(tiny_model_path, devices=[]) as model:
        assert model.n_layer == 2


def test_a_path_may_hold_any_characters(tiny_model_path, tmp_path):
    path = tmp_path / "modèle 🦙 %s.gguf"
    path.write_bytes(tiny_model_path.read_bytes())
    with pyllama.Model(os.fspath(path), vocab_only=True) as model:
        assert model.path == str(path)


# Progress


def test_progress_rises_to_one(tiny_model_path):
    fractions = []
    pyllama.Model(tiny_model_path, progress=fractions.append).close()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 1


@pytest.mark.parametrize("answer", [None, True, 1])
def test_only_false_cancels_a_load(tiny_model_path, answer):
    pyllama.Model(tiny_model_path, progress=lambda _: answer).close()


def test_returning_false_cancels_a_load(tiny_model_path):
    calls = []

    def stop(fraction):
        calls.append(fraction)
        return False

    with pytest.raises(pyllama.ModelLoadCancelled, match="cancelled"):
        pyllama.Model(tiny_model_path, progress=stop)
    assert len(calls) == 1


def test_a_load_can_be_cancelled_in_the_middle(tiny_model_path):
    with pytest.raises(pyllama.ModelLoadCancelled):
        pyllama.Model(tiny_model_path, progress=lambda fraction: fraction < 0.3)


class _OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [_OwnError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_progress_callback_raises_arrives_as_itself(tiny_model_path, error):
    def fail(_):
        raise error

    with pytest.raises(type(error)) as caught:
        pyllama.Model(tiny_model_path, progress=fail)
    assert caught.value is error


def test_progress_must_be_callable(tiny_model_path):
    with pytest.raises(TypeError):
        pyllama.Model(tiny_model_path, progress=3)


# Files that are no models


def test_a_missing_file(tmp_path):
    path = tmp_path / "absent.gguf"
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf"):
        pyllama.Model(path)


@pytest.mark.parametrize(
    ("kind", "words"), [("adapter", "LoRA"), ("imatrix", "importance"), ("mmproj", "projector")]
)
@pytest.mark.parametrize("vocab_only", [True, False])
def test_a_file_of_another_kind_is_called_by_its_name(write_tiny_model, kind, words, vocab_only):
    path = write_tiny_model(metadata={"general.type": kind})
    with pytest.raises(pyllama.ModelLoadError, match=rf"it is an? {words}.*, and no model"):
        pyllama.Model(path, vocab_only=vocab_only)


def test_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match="folder"):
        pyllama.Model(tmp_path)


def test_a_null_character_in_the_path():
    with pytest.raises(ValueError, match="null character"):
        pyllama.Model("model\0.gguf")


@pytest.mark.parametrize("path", [None, 3, b"model.gguf", True, object(), ["a"]])
def test_a_path_of_another_type(path):
    with pytest.raises(TypeError):
        pyllama.Model(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"GGML" + bytes(64), b"PK\3\4", b"\0" * 1000])
def test_a_file_without_the_magic(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
        pyllama.Model(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "Git LFS leaves .*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>", "a web page.*download the file again"),
        (b"\xef\xbb\xbf\n<HTML lang=en>", "a web page"),
        ((300).to_bytes(8, "little") + b'{"__metadata__":{}}', "safetensors.*convert_hf_to_gguf"),
        (b"PK\x03\x04" + bytes(60), "PyTorch"),
        (b"lmgg" + bytes(60), "GGML, the format before GGUF"),
        (b'{"error": "Entry not found"}', "is JSON"),
        (b"", "is empty; download it again"),
        (b"\x7fELF" + bytes(60), "begins with b'.x7fELF'"),
        (b"GGUF\0\0\0\3" + bytes(16), "big-endian byte order.*gguf_convert_endian"),
    ],
)
def test_a_file_of_another_kind_is_named_for_what_it_is(tmp_path, content, named):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for load in (
        lambda: pyllama.Model(path),
        lambda: pyllama.Model.from_bytes(content),
        lambda: pyllama.Model.from_splits([path]),
    ):
        with pytest.raises(pyllama.ModelLoadError, match=named):
            load()


def assert_refused(path: Path) -> None:
    with pytest.raises(pyllama.ModelLoadError) as caught:
        pyllama.Model(path)
    message = str(caught.value)
    assert str(path) in message
    # It says more than that something failed.
    assert len(message) > len(str(path)) + 30
    assert "gave no reason" not in message


def test_nothing_but_the_magic(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    assert_refused(path)


@pytest.mark.parametrize("version", [0, 1, 99, 2**32 - 1])
def test_a_version_that_nobody_knows(tmp_path, tiny_model_path, version):
    path = tmp_path / "model.gguf"
    content = bytearray(tiny_model_path.read_bytes())
    content[4:8] = struct.pack("<I", version)
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("offset", [8, 16])
@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**40, 10**6])
def test_absurd_counts_of_tensors_and_keys(tmp_path, tiny_model_path, offset, count):
    path = tmp_path / "model.gguf"
    content = bytearray(tiny_model_path.read_bytes())
    content[offset : offset + 8] = struct.pack("<Q", count)
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("kept", [8, 15, 24, 60, 300, 2000, 9000, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path, tiny_model_path, kept):
    path = tmp_path / "model.gguf"
    content = tiny_model_path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert_refused(path)


@pytest.mark.parametrize("seed", range(36))
def test_random_bytes_after_the_magic(tmp_path, seed):
    path = tmp_path / "model.gguf"
    random = np.random.default_rng(seed)
    header = b"GGUF" + (struct.pack("<I", 3) if seed % 2 else b"")
    path.write_bytes(header + random.bytes(int(random.integers(1, 5000))))
    assert_refused(path)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_header_is_refused_or_loads(tmp_path, tiny_model_path, seed):
    """Whatever llama.cpp makes of it, it ends in a model or in a ModelLoadError."""
    path = tmp_path / "model.gguf"
    random = np.random.default_rng(seed)
    content = bytearray(tiny_model_path.read_bytes())
    for place in random.integers(8, 2000, size=20):
        content[place] = random.integers(256)
    path.write_bytes(content)
    try:
        model = pyllama.Model(path)
    except pyllama.ModelLoadError:
        assert_refused(path)
    else:
        model.close()


def test_an_architecture_that_nobody_knows(tmp_path, tiny_model_path):
    path = tmp_path / "model.gguf"
    content = tiny_model_path.read_bytes()
    name = b"general.architecture"
    value = content.index(b"llama", content.index(name))
    path.write_bytes(content[:value] + b"lama2" + content[value + 5 :])
    with pytest.raises(pyllama.ModelLoadError, match="lama2"):
        pyllama.Model(path)


def test_a_tensor_of_the_wrong_shape(tmp_path, tiny_model_path):
    path = tmp_path / "model.gguf"
    content = bytearray(tiny_model_path.read_bytes())
    name = b"output_norm.weight"
    # After the name: the number of dimensions as uint32, then each as uint64.
    shape = content.index(name) + len(name) + 4
    assert struct.unpack_from("<Q", content, shape) == (64,)
    struct.pack_into("<Q", content, shape, 32)
    path.write_bytes(content)
    assert_refused(path)


def test_after_a_refused_file_a_good_one_loads(tmp_path, tiny_model_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model_path.read_bytes()[:1000])
    for _ in range(3):
        assert_refused(path)
    pyllama.Model(tiny_model_path).close()


# Arguments


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("n_gpu_layers", 2**31, ValueError),
        ("n_gpu_layers", "all", TypeError),
        ("n_gpu_layers", 1.5, TypeError),
        ("n_gpu_layers", True, TypeError),
        ("n_gpu_layers", None, TypeError),
        ("main_gpu", -1, ValueError),
        ("main_gpu", 10**6, ValueError),
        ("split_mode", "diagonal", ValueError),
        ("split_mode", 1, ValueError),
        ("split_mode", [], ValueError),
        ("load_mode", "slowly", ValueError),
        ("tensor_split", [], ValueError),
        ("tensor_split", [0.0, 0.0], ValueError),
        ("tensor_split", [1.0] * 1000, ValueError),
        ("tensor_split", [float("nan")], ValueError),
        ("tensor_split", [-1.0], ValueError),
        ("tensor_split", ["half"], TypeError),
        ("tensor_split", 3, TypeError),
        ("devices", ["CPU"], TypeError),
        ("devices", 3, TypeError),
    ],
)
def test_arguments_are_checked(tiny_model_path, argument, value, error):
    with pytest.raises(error, match=argument):
        pyllama.Model(tiny_model_path, **{argument: value})


# Closing


def test_closing_twice(tiny_model_path):
    model = pyllama.Model(tiny_model_path)
    assert not model.closed
    model.close()
    model.close()
    assert model.closed


def test_with_closes(tiny_model_path):
    with pyllama.Model(tiny_model_path) as model:
        pass
    assert model.closed


def test_use_after_close(tiny_model_path):
    model = pyllama.Model(tiny_model_path)
    vocab = model.vocab
    model.close()
    uses = [
        lambda: vocab.tokenize("hello"),
        lambda: vocab.detokenize([1]),
        lambda: vocab.token_to_piece(1),
        lambda: vocab.get_text(1),
        lambda: vocab.get_score(1),
        lambda: vocab.is_eog(1),
        lambda: vocab.is_control(1),
        lambda: model.chat_template(),
        lambda: pyllama.Context(model),
        lambda: pyllama.ChatTemplate(model),
        lambda: pyllama.Detokenizer(vocab).push(1),
    ]
    for use in uses:
        with pytest.raises(pyllama.ClosedError, match="closed"):
            use()
    # What was read while loading stays.
    assert model.n_layer == 2
    assert len(vocab) == vocab.n_tokens


def test_closing_a_model_closes_its_contexts(tiny_model_path):
    model = pyllama.Model(tiny_model_path)
    contexts = [pyllama.Context(model, n_ctx=256) for _ in range(2)]
    model.close()
    assert all(context.closed for context in contexts)
    with pytest.raises(pyllama.ClosedError):
        contexts[0].decode(pyllama.Batch.from_tokens([1]))
