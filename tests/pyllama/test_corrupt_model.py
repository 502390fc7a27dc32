"""Damaged model files either load, and then work, or are refused. The process lives on."""

from __future__ import annotations

import itertools
import math

import gguf
import pytest
from fuzz import MODELS, SMALL
from fuzzing import Use, assert_harmless, mutations, truncations
from gguf_parts import (
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    Parts,
    Tensor,
    size_of,
)

import pyllama

USE = Use("using_files:use_model")


@pytest.fixture(scope="module", params=MODELS)
def parts(request, write_tiny_model):
    return Parts(write_tiny_model(**SMALL, **MODELS[request.param]).read_bytes())


@pytest.fixture(scope="module")
def llama(write_tiny_model):
    return Parts(write_tiny_model(**SMALL).read_bytes())


def test_an_intact_file_is_accepted(parts):
    assert assert_harmless(USE, [("intact", parts.to_bytes())]) == {"accepted": 1}


def test_cut_files(parts):
    data = parts.to_bytes()
    places = [field.offset for field in parts.fields]
    kinds = assert_harmless(USE, truncations(data, [*places, parts.header_size, len(data)]))
    assert set(kinds) == {"refused"}


def test_files_without_a_key_or_a_tensor(parts):
    kinds = assert_harmless(USE, parts.without_a_part())
    assert kinds["refused"] > kinds["accepted"] > 0


def test_one_wrong_number(parts):
    every_fourth = itertools.islice(parts.wrong_numbers(), 1, None, 4)
    kinds = assert_harmless(USE, every_fourth)
    assert kinds["refused"] > kinds["accepted"] > 0


def test_random_damage(parts):
    files = mutations(parts.to_bytes(), seed=1, count=500, end=parts.header_size)
    kinds = assert_harmless(USE, files)
    assert kinds["refused"] > kinds["accepted"] > 0


# Settings that contradict each other, or the tensors. Such files are well formed.

NUMBERS = [0, 1, 3, 31, 64, 512, 65_536, 2**31 - 1, 2**32 - 1]
REALS = [0.0, -1.0, 1e38, math.inf, -math.inf, math.nan]
SETTINGS = {
    "attention.causal": (BOOL, [True, False]),
    "attention.clamp_kqv": (FLOAT32, REALS),
    "attention.head_count": (UINT32, NUMBERS),
    "attention.head_count_kv": (UINT32, NUMBERS),
    "attention.key_length": (UINT32, NUMBERS),
    "attention.layer_norm_epsilon": (FLOAT32, REALS),
    "attention.layer_norm_rms_epsilon": (FLOAT32, REALS),
    "attention.max_alibi_bias": (FLOAT32, REALS),
    "attention.scale": (FLOAT32, REALS),
    "attention.sliding_window": (UINT32, NUMBERS),
    "attention.value_length": (UINT32, NUMBERS),
    "block_count": (UINT32, NUMBERS),
    "context_length": (UINT32, NUMBERS),
    "embedding_length": (UINT32, NUMBERS),
    "embedding_length_out": (UINT32, NUMBERS),
    "expert_count": (UINT32, NUMBERS),
    "expert_used_count": (UINT32, NUMBERS),
    "feed_forward_length": (UINT32, NUMBERS),
    "logit_scale": (FLOAT32, REALS),
    "nextn_predict_layers": (UINT32, NUMBERS),
    "pooling_type": (UINT32, NUMBERS),
    "rope.dimension_count": (UINT32, NUMBERS),
    "rope.freq_base": (FLOAT32, REALS),
    "rope.scaling.factor": (FLOAT32, REALS),
    "rope.scaling.original_context_length": (UINT32, NUMBERS),
    "rope.scaling.type": (STRING, ["", "none", "yarn", "longrope", "%s%n"]),
    "vocab_size": (UINT32, NUMBERS),
}


def test_settings_that_contradict_each_other(llama):
    files = [
        (f"{name} = {value}", llama.with_key(f"llama.{name}", kind, value))
        for name, (kind, values) in SETTINGS.items()
        for value in values
    ]
    files += [
        (f"{name} = [{value}] * 2", llama.with_key(f"llama.{name}", UINT32, [value] * 2))
        for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
        for value in NUMBERS
    ]
    assert_harmless(USE, files)


def test_shapes_that_fit_the_settings_but_not_the_computation(write_tiny_model):
    assert_harmless(
        USE,
        (
            (
                f"n_embd {n_embd}, n_head {n_head}, n_head_kv {n_head_kv}",
                write_tiny_model(
                    n_embd=n_embd, n_head=n_head, n_head_kv=n_head_kv, n_layer=1, n_ff=3
                ).read_bytes(),
            )
            for n_embd, n_head, n_head_kv in itertools.product(
                [1, 2, 7, 32, 33], [1, 2, 3, 32], [1, 2, 3]
            )
        ),
    )


def test_tensors_of_every_type(llama):
    files = []
    for name in ("token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"):
        shape = llama.tensors[name].shape
        for kind in gguf.GGMLQuantizationType:
            tensor = Tensor(shape, kind, bytes(size_of(shape, kind)))
            files.append((f"{name} of {kind.name}", llama.with_tensor(name, tensor)))
    kinds = assert_harmless(USE, files)
    assert kinds["accepted"] > 5


def test_vocabularies_that_contradict_themselves(write_tiny_model):
    spm = Parts(write_tiny_model(**SMALL, tokenizer="spm").read_bytes())
    files = []
    for key, kind in ("scores", FLOAT32), ("token_type", INT32):
        name = f"tokenizer.ggml.{key}"
        files += [
            (f"{key} of kind {other}", spm.with_key(name, other, [1] * 300))
            for other in (UINT32, BOOL, FLOAT32)
        ]
        files += [
            (f"{count} {key}", spm.with_key(name, kind, [1] * count)) for count in (0, 1, 100)
        ]
    for token in ("bos", "eos", "eot", "unknown", "padding", "fim_pre", "mask"):
        name = f"tokenizer.ggml.{token}_token_id"
        files += [(f"{token} = {value}", spm.with_key(name, UINT32, value)) for value in NUMBERS]
    texts = [["a"] * 268, [""] * 268, ["a" * 1000] + [f"t{i}" for i in range(267)], []]
    files += [
        (f"tokens {text[:1]}", spm.with_key("tokenizer.ggml.tokens", STRING, text))
        for text in texts
    ]
    for model in (
        "llama",
        "gpt2",
        "bert",
        "t5",
        "rwkv",
        "plamo2",
        "gemma4",
        "test",
        "",
        "x" * 10_000,
    ):
        files.append(
            (f"tokenizer {model[:9]}", spm.with_key("tokenizer.ggml.model", STRING, model))
        )
    assert_harmless(USE, files)


# What is refused before llama.cpp sees it


def load(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    pyllama.Model(path, vocab_only=True).close()


@pytest.mark.parametrize("value", [-1.0, -math.inf, math.nan])
def test_a_norm_needs_an_epsilon(tmp_path, llama, value):
    data = llama.with_key("llama.attention.layer_norm_rms_epsilon", FLOAT32, value)
    with pytest.raises(pyllama.ModelLoadError, match=rf"rms_epsilon must be 0 or more.* {value}"):
        load(tmp_path, data)


@pytest.mark.parametrize("value", [15, 18, 2**31])
def test_rotary_dimensions_come_in_pairs_and_fit_a_head(tmp_path, llama, value):
    data = llama.with_key("llama.rope.dimension_count", UINT32, value)
    with pytest.raises(pyllama.ModelLoadError, match=rf"even and at most.* 16; it is {value}"):
        load(tmp_path, data)


def test_a_norm_is_of_32_bit_floats(tmp_path, llama):
    data = llama.with_tensor("output_norm.weight", Tensor((32,), 1, bytes(64)))
    with pytest.raises(pyllama.ModelLoadError, match=r"'output_norm\.weight' must .* f32, not f16"):
        load(tmp_path, data)


@pytest.mark.parametrize("kind", ["I8", "I32", "F64"])
def test_weights_are_no_integers(tmp_path, llama, kind):
    number = gguf.GGMLQuantizationType[kind]
    tensor = Tensor((32, 32), number, bytes(size_of((32, 32), number)))
    with pytest.raises(pyllama.ModelLoadError, match=f"type {kind.lower()}, which are no weights"):
        load(tmp_path, llama.with_tensor("blk.0.attn_q.weight", tensor))


def test_a_count_of_dummy_tokens_is_limited(tmp_path, write_tiny_model):
    parts = Parts(write_tiny_model(**SMALL, tokenizer="none").read_bytes())
    with pytest.raises(pyllama.ModelLoadError, match="vocab_size is 4294967295"):
        load(tmp_path, parts.with_key("llama.vocab_size", UINT32, 2**32 - 1))
