"""The options of a load: what they change, and which values are refused."""

from __future__ import annotations

import inspect
import signal

import numpy as np
import pytest
from decoding import PROMPT, logits_of

import pyllama
from pyllama.model_params import ModelOptions, ModelParams

CPU = next(device for device in pyllama.devices() if device.type == "cpu")


def logits_with(path, **options):
    with (
        pyllama.Model(path, **options) as model,
        pyllama.Context(model, n_ctx=256, n_threads=1) as context,
    ):
        return logits_of(context, PROMPT)


@pytest.mark.parametrize(
    "options",
    [
        {"load_mode": "mlock"},
        {"load_mode": "mmap_mlock"},
        {"load_mode": "direct_io"},
        {"lazy_mode": "off"},
        {"lazy_mode": "on"},
        {"use_extra_bufts": False},
        {"no_host": True},
        {"load_mtp": True},
        {"tensor_split": [1.0]},
        {"tensor_buft_overrides": {r"ffn_(up|down)": CPU, "attn": CPU}},
        {"tensor_buft_overrides": {}},
        {"kv_overrides": {}},
        {"kv_overrides": {"no.such.key": 3}},
    ],
)
def test_options_that_leave_the_logits_alone(tiny_model_path, expected, options):
    assert np.array_equal(logits_with(tiny_model_path, devices=[], **options), expected)


def test_overrides_of_metadata(tiny_model_path, expected):
    overrides = {
        "llama.context_length": 4096,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 7,
    }
    with pyllama.Model(tiny_model_path, kv_overrides=overrides) as model:
        assert model.n_ctx_train == 4096
        assert not model.vocab.add_bos
        assert model.vocab.eos == 7
    shifted = logits_with(
        tiny_model_path, kv_overrides={"llama.attention.layer_norm_rms_epsilon": 10.0}
    )
    assert not np.allclose(shifted, expected, atol=0.1)


def test_an_override_of_a_string(tiny_model_path):
    with pytest.raises(pyllama.ModelLoadError, match="no-such-tokenizer"):
        pyllama.Model(tiny_model_path, kv_overrides={"tokenizer.ggml.model": "no-such-tokenizer"})


def test_an_override_of_another_type_is_ignored_with_a_warning(tiny_model_path, caplog):
    with pyllama.Model(tiny_model_path, kv_overrides={"llama.context_length": "long"}) as model:
        assert model.n_ctx_train == 512
    assert "Bad metadata override type" in caplog.text


def test_tensors_are_checked_on_demand(tiny_model_path, tmp_path):
    """A quantized tensor with a scale that is no number."""
    quantized = tmp_path / "q.gguf"
    pyllama.quantize(tiny_model_path, quantized, "Q8_0")
    content = bytearray(quantized.read_bytes())
    content[-34:-32] = b"\xff\x7f"
    quantized.write_bytes(content)
    pyllama.Model(quantized).close()
    with pytest.raises(pyllama.ModelLoadError, match="invalid data"):
        pyllama.Model(quantized, check_tensors=True)


def test_ctrl_c_stops_a_load(tiny_model_path, capfd, heeding_ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        pyllama.Model(tiny_model_path, progress=lambda _: signal.raise_signal(signal.SIGINT))
    assert capfd.readouterr().err == ""
    pyllama.Model(tiny_model_path).close()


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("lazy_mode", "slowly", ValueError),
        ("lazy_mode", 1, ValueError),
        ("kv_overrides", [("key", 1)], TypeError),
        ("kv_overrides", {3: 1}, TypeError),
        ("kv_overrides", {"key": None}, TypeError),
        ("kv_overrides", {"key": [1]}, TypeError),
        ("kv_overrides", {"": 1}, ValueError),
        ("kv_overrides", {"k" * 128: 1}, ValueError),
        ("kv_overrides", {"a\0b": 1}, ValueError),
        ("kv_overrides", {"\ud800": 1}, ValueError),
        ("kv_overrides", {"key": "v" * 128}, ValueError),
        ("kv_overrides", {"key": "é" * 64}, ValueError),
        ("kv_overrides", {"key": 2**32}, ValueError),
        ("kv_overrides", {"key": -(2**31) - 1}, ValueError),
        ("kv_overrides", {"key": float("nan")}, ValueError),
        ("kv_overrides", {"key": 1e300}, ValueError),
        ("tensor_buft_overrides", {"ffn": "CPU"}, TypeError),
        ("tensor_buft_overrides", {3: CPU}, TypeError),
        ("tensor_buft_overrides", [("ffn", CPU)], TypeError),
        ("tensor_buft_overrides", {"": CPU}, ValueError),
        ("tensor_buft_overrides", {"a" * 257: CPU}, ValueError),
        ("tensor_buft_overrides", {str(i): CPU for i in range(4096)}, ValueError),
        ("no_such_option", 1, TypeError),
    ],
)
def test_arguments_are_checked(tiny_model_path, argument, value, error):
    with pytest.raises(error, match=argument):
        pyllama.Model(tiny_model_path, **{argument: value})


def test_a_pattern_that_is_no_regular_expression(tiny_model_path):
    with pytest.raises(pyllama.ModelLoadError, match="regular expression"):
        pyllama.Model(tiny_model_path, tensor_buft_overrides={"([": CPU})


def test_the_typed_options_are_those_that_are_taken():
    taken = inspect.signature(ModelParams).parameters
    assert list(ModelOptions.__annotations__) == list(taken)


KEYS = [
    "llama.block_count",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.rope.dimension_count",
    "llama.expert_count",
    "llama.vocab_size",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [0, 1, 3, 7, -1, 1000, 65536, 2**31 - 1, 2**32 - 1])
def test_absurd_overrides_are_refused_or_can_be_used(tiny_model_path, key, value):
    try:
        logits_with(tiny_model_path, kv_overrides={key: value})
    except pyllama.LlamaError:
        pyllama.Model(tiny_model_path, vocab_only=True).close()
