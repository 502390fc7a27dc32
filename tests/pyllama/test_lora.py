"""LoRA adapters: what they change, and what is refused."""

from __future__ import annotations

import gc
import struct

import gguf
import numpy as np
import pytest
import synthetic
from decoding import PROMPT, logits_of
from synthetic_files import write_lora, write_tensors

import pyllama

RANK = 4
ALPHA = 8.0
N_EMBD, N_FF, N_KV = 64, 128, 32

# Each tensor with its columns and rows.
SHAPES = {
    "blk.0.attn_q.weight": (N_EMBD, N_EMBD),
    "blk.0.attn_k.weight": (N_EMBD, N_KV),
    "blk.1.attn_v.weight": (N_EMBD, N_KV),
    "blk.1.attn_output.weight": (N_EMBD, N_EMBD),
    "blk.0.ffn_up.weight": (N_EMBD, N_FF),
    "blk.1.ffn_down.weight": (N_FF, N_EMBD),
    "output.weight": (N_EMBD, 271),
}


def random_factors(seed, shapes=SHAPES):
    """lora_a of shape (rank, columns) and lora_b of shape (rows, rank) for each tensor."""
    random = np.random.default_rng(seed)
    return {
        name: (
            random.standard_normal((RANK, columns), dtype=np.float32) / np.float32(8),
            random.standard_normal((rows, RANK), dtype=np.float32) / np.float32(8),
        )
        for name, (columns, rows) in shapes.items()
    }


def merged(factors, scale=1.0):
    """What the factors add to the weights."""
    return {
        name: (scale * ALPHA / RANK) * (b.astype(np.float64) @ a)
        for name, (a, b) in factors.items()
    }


def added(*deltas):
    names = {name for delta in deltas for name in delta}
    return {name: sum(delta[name] for delta in deltas if name in delta) for name in names}


@pytest.fixture(scope="module")
def logits_with_weights(tmp_path_factory):
    """The logits of a model into whose weights deltas were merged with numpy."""
    folder = tmp_path_factory.mktemp("merged")

    def compute(deltas, **options):
        path = synthetic.write_model(folder / "merged.gguf", deltas=deltas, **options)
        with pyllama.Model(path) as model, exact_context(model) as context:
            return logits_of(context, PROMPT)

    return compute


def exact_context(model):
    """A context that rounds nothing to half precision."""
    return pyllama.Context(
        model, n_ctx=256, n_threads=1, type_k="f32", type_v="f32", flash_attn="disabled"
    )


@pytest.fixture
def exact(tiny):
    with exact_context(tiny) as context:
        yield context


@pytest.fixture
def lora_path(tmp_path):
    return write_lora(tmp_path / "lora.gguf", random_factors(1), alpha=ALPHA)


@pytest.fixture
def lora(tiny, lora_path):
    with pyllama.LoraAdapter(tiny, lora_path) as adapter:
        yield adapter


# What it changes


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_an_adapter_does_what_merged_weights_do(lora, exact, expected, logits_with_weights, scale):
    pyllama.set_adapters_lora(exact, {lora: scale})
    logits = logits_of(exact, PROMPT)
    truth = logits_with_weights(merged(random_factors(1), scale))
    assert np.abs(truth - expected).max() > 0.1
    np.testing.assert_allclose(logits, truth, atol=2e-5)


def test_several_adapters_add_up(tiny, lora, tmp_path, exact, logits_with_weights):
    shapes = {"blk.0.attn_q.weight": (N_EMBD, N_EMBD), "blk.0.ffn_gate.weight": (N_EMBD, N_FF)}
    other = write_lora(tmp_path / "other.gguf", random_factors(2, shapes), alpha=ALPHA)
    with pyllama.LoraAdapter(tiny, other) as second:
        pyllama.set_adapters_lora(exact, {lora: 0.5, second: 1.5})
        logits = logits_of(exact, PROMPT)
        truth = logits_with_weights(
            added(merged(random_factors(1), 0.5), merged(random_factors(2, shapes), 1.5))
        )
        np.testing.assert_allclose(logits, truth, atol=2e-5)


def test_an_adapter_of_the_token_embeddings(tiny, tmp_path, exact, logits_with_weights):
    random = np.random.default_rng(3)
    # Here lora_a is not transposed: a row for each token.
    a = random.standard_normal((271, RANK), dtype=np.float32) / np.float32(4)
    b = random.standard_normal((N_EMBD, RANK), dtype=np.float32) / np.float32(4)
    path = write_lora(tmp_path / "lora.gguf", {"token_embd.weight": (a, b)}, alpha=ALPHA)
    with pyllama.LoraAdapter(tiny, path) as adapter:
        pyllama.set_adapters_lora(exact, {adapter: 1.0})
        logits = logits_of(exact, PROMPT)
    truth = logits_with_weights({"token_embd.weight": (ALPHA / RANK) * (a @ b.T)})
    np.testing.assert_allclose(logits, truth, atol=2e-5)


def test_without_alpha_the_scale_alone_counts(tiny, tmp_path, exact, logits_with_weights):
    path = write_lora(tmp_path / "lora.gguf", random_factors(1), alpha=0.0)
    with pyllama.LoraAdapter(tiny, path) as adapter:
        pyllama.set_adapters_lora(exact, {adapter: 1.0})
        logits = logits_of(exact, PROMPT)
    truth = logits_with_weights(merged(random_factors(1), RANK / ALPHA))
    np.testing.assert_allclose(logits, truth, atol=2e-5)


@pytest.mark.parametrize("none", [{}, "zero"])
def test_taking_adapters_out_again(lora, context, expected, none):
    pyllama.set_adapters_lora(context, {lora: 1.0})
    assert not np.allclose(logits_of(context, PROMPT), expected, atol=0.1)
    pyllama.set_adapters_lora(context, {lora: 0.0} if none == "zero" else {})
    assert np.array_equal(logits_of(context, PROMPT), expected)


def test_each_context_has_its_own(tiny, lora, context, expected):
    with pyllama.Context(tiny, n_ctx=256, n_threads=1) as other:
        pyllama.set_adapters_lora(other, {lora: 1.0})
        assert np.array_equal(logits_of(context, PROMPT), expected)
        assert not np.array_equal(logits_of(other, PROMPT), expected)


def test_an_adapter_in_half_precision_and_quantized(tiny, tmp_path, context):
    factors = random_factors(1, {"blk.0.ffn_up.weight": (N_EMBD, N_FF)})
    found = []
    for kind in (np.float32, np.float16):
        cast = {name: (a.astype(kind), b.astype(kind)) for name, (a, b) in factors.items()}
        path = write_lora(tmp_path / "lora.gguf", cast, alpha=ALPHA)
        with pyllama.LoraAdapter(tiny, path) as adapter:
            pyllama.set_adapters_lora(context, {adapter: 1.0})
            found.append(logits_of(context, PROMPT))
    np.testing.assert_allclose(found[0], found[1], atol=0.02)


# What it tells


def test_metadata_and_invocation_tokens(tiny, tmp_path):
    path = write_lora(
        tmp_path / "lora.gguf",
        random_factors(1),
        metadata={
            "general.name": "synthetic adapter",
            "adapter.lora.task_name": "testing",
        },
    )
    with pyllama.LoraAdapter(tiny, path) as adapter:
        assert adapter.metadata["general.name"] == "synthetic adapter"
        assert adapter.metadata["adapter.lora.task_name"] == "testing"
        assert float(adapter.metadata["adapter.lora.alpha"]) == ALPHA
        assert adapter.alora_invocation_tokens == ()
        assert adapter.path == str(path)
        assert "lora.gguf" in repr(adapter)
    assert "closed" in repr(adapter)
    with pytest.raises(TypeError):
        adapter.metadata["general.name"] = "other"


def test_an_activated_lora_reports_its_tokens(tiny, tmp_path):
    path = tmp_path / "lora.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    writer.add_key_value(
        "adapter.alora.invocation_tokens",
        [5, 6, 7],
        gguf.GGUFValueType.ARRAY,
        gguf.GGUFValueType.UINT32,
    )
    for name, (a, b) in random_factors(1).items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pyllama.LoraAdapter(tiny, path) as adapter:
        assert adapter.alora_invocation_tokens == (5, 6, 7)


# What is refused


def refused(model, path, match):
    with pytest.raises(pyllama.AdapterError, match=match):
        pyllama.LoraAdapter(model, path)


def test_files_that_are_no_adapters(tiny, tiny_model_path, tmp_path):
    refused(tiny, tiny_model_path, "general.type")
    with pytest.raises(FileNotFoundError):
        pyllama.LoraAdapter(tiny, tmp_path / "absent.gguf")
    with pytest.raises(IsADirectoryError):
        pyllama.LoraAdapter(tiny, tmp_path)
    other = tmp_path / "other.bin"
    other.write_bytes(b"PK\3\4")
    with pytest.raises(pyllama.ModelLoadError, match="no GGUF file"):
        pyllama.LoraAdapter(tiny, other)


def test_an_adapter_for_another_architecture(tiny, tiny_mamba, tmp_path, lora_path):
    refused(tiny_mamba, lora_path, "arch")
    path = write_lora(tmp_path / "other.gguf", random_factors(1), architecture="no-such")
    refused(tiny, path, "arch")


def test_an_adapter_for_other_shapes(tiny, tmp_path):
    path = tmp_path / "lora.gguf"
    for shapes, match in [
        ({"blk.7.attn_q.weight": (N_EMBD, N_EMBD)}, "does not exist"),
        ({"blk.0.attn_q.weight": (N_EMBD, 63)}, "incorrect shape"),
        ({"blk.0.attn_q.weight": (32, N_EMBD)}, "incorrect shape"),
    ]:
        refused(tiny, write_lora(path, random_factors(1, shapes)), match)
    a, b = np.ones((2, N_EMBD), np.float32), np.ones((N_EMBD, 3), np.float32)
    refused(tiny, write_lora(path, {"blk.0.attn_q.weight": (a, b)}), "do not fit each other")
    a, b = np.ones((271, 2), np.float32), np.ones((N_EMBD, 3), np.float32)
    refused(tiny, write_lora(path, {"token_embd.weight": (a, b)}), "do not fit each other")
    a, b = np.ones((3, 2, N_EMBD), np.float32), np.ones((3, N_EMBD, 2), np.float32)
    refused(tiny, write_lora(path, {"blk.0.attn_q.weight": (a, b)}), "do not fit each other")


@pytest.mark.parametrize("kind", [np.int32, np.int8, np.float64])
def test_an_adapter_of_types_that_cannot_be_multiplied(tiny, tmp_path, kind):
    a, b = np.ones((2, N_EMBD), kind), np.ones((N_EMBD, 2), kind)
    path = write_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": (a, b)})
    refused(tiny, path, "of type")


def test_a_tensor_without_its_pair_or_of_another_name(tiny, tmp_path):
    path = tmp_path / "lora.gguf"
    values = np.ones((2, N_EMBD), np.float32)
    metadata = {"general.type": "adapter", "adapter.type": "lora"}
    for name, match in [
        ("blk.0.attn_q.weight.lora_a", "only one of"),
        ("blk.0.attn_q.weight.lora_b", "only one of"),
        ("blk.0.attn_q.weight", "unexpected suffix"),
    ]:
        write_tensors(path, {name: values}, architecture="llama", metadata=metadata)
        refused(tiny, path, match)


def test_truncated_adapters(tiny, lora_path, tmp_path):
    content = lora_path.read_bytes()
    path = tmp_path / "cut.gguf"
    for kept in [4, 8, 20, 24, 60, 200, 500, 900, len(content) // 2, len(content) - 64]:
        path.write_bytes(content[:kept])
        refused(tiny, path, "cut.gguf")


@pytest.mark.parametrize("seed", range(60))
def test_damaged_adapters_are_refused_or_can_be_used(tiny, lora_path, tmp_path, context, seed):
    random = np.random.default_rng(seed)
    content = bytearray(lora_path.read_bytes())
    for place in random.integers(4, 1500, size=int(random.integers(1, 5))):
        if seed % 2:
            content[place] = random.integers(256)
        else:
            value = int(random.choice([0, 1, 2**31, 2**32 - 1]))
            struct.pack_into("<I", content, int(place) // 4 * 4, value)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF" + content[4:])
    try:
        adapter = pyllama.LoraAdapter(tiny, path)
    except pyllama.AdapterError:
        return
    with adapter:
        pyllama.set_adapters_lora(context, {adapter: 1.0})
        logits_of(context, PROMPT)


def test_an_adapter_of_another_model_is_refused(lora, tiny_model_path):
    with (
        pyllama.Model(tiny_model_path) as other,
        pyllama.Context(other, n_ctx=256) as context,
        pytest.raises(ValueError, match="context's model"),
    ):
        pyllama.set_adapters_lora(context, {lora: 1.0})


def test_arguments_are_checked(tiny, lora, context, lora_path):
    for adapters in ([lora], [(lora, 1.0)], None, lora, {"lora": 1.0}, {1: 1.0}):
        with pytest.raises(TypeError, match="adapters"):
            pyllama.set_adapters_lora(context, adapters)
    for scale in (float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="adapters"):
            pyllama.set_adapters_lora(context, {lora: scale})
    for scale in ("1", None, True):
        with pytest.raises(TypeError, match="adapters"):
            pyllama.set_adapters_lora(context, {lora: scale})
    with pytest.raises(TypeError, match="context"):
        pyllama.set_adapters_lora(tiny, {lora: 1.0})
    for model in (None, context, lora_path):
        with pytest.raises(TypeError, match="model"):
            pyllama.LoraAdapter(model, lora_path)


def test_a_vocabulary_alone_takes_no_adapter(tiny_model_path, lora_path):
    with pyllama.Model(tiny_model_path, vocab_only=True) as model:
        refused(model, lora_path, "does not exist in base model")


# Closing


def test_closing_an_adapter_takes_it_out(tiny, lora_path, context, expected):
    adapter = pyllama.LoraAdapter(tiny, lora_path)
    pyllama.set_adapters_lora(context, {adapter: 1.0})
    adapter.close()
    adapter.close()
    assert np.array_equal(logits_of(context, PROMPT), expected)
    with pytest.raises(pyllama.ClosedError):
        pyllama.set_adapters_lora(context, {adapter: 1.0})
    assert np.array_equal(logits_of(context, PROMPT), expected)


def test_a_context_keeps_its_adapters_alive(tiny, lora_path, context, expected):
    pyllama.set_adapters_lora(context, {pyllama.LoraAdapter(tiny, lora_path): 1.0})
    first = logits_of(context, PROMPT)
    gc.collect()
    assert np.array_equal(logits_of(context, PROMPT), first)
    assert not np.array_equal(first, expected)


def test_an_adapter_nobody_has_any_more_is_freed_by_the_next(tiny, lora_path):
    adapter = pyllama.LoraAdapter(tiny, lora_path)
    del adapter
    gc.collect()
    assert tiny._retired_adapters
    pyllama.LoraAdapter(tiny, lora_path).close()
    assert not tiny._retired_adapters


@pytest.mark.parametrize("order", ["mca", "mac", "cma", "cam", "amc", "acm"])
def test_closing_in_any_order(tiny_model_path, lora_path, order):
    model = pyllama.Model(tiny_model_path)
    adapter = pyllama.LoraAdapter(model, lora_path)
    context = pyllama.Context(model, n_ctx=256)
    pyllama.set_adapters_lora(context, {adapter: 1.0})
    logits_of(context, PROMPT)
    things = {"m": model, "c": context, "a": adapter}
    for letter in order:
        things[letter].close()
    assert model.closed
    assert context.closed
    assert adapter.closed


def test_closing_the_model_closes_its_adapters(tiny_model_path, lora_path):
    model = pyllama.Model(tiny_model_path)
    adapter = pyllama.LoraAdapter(model, lora_path)
    model.close()
    assert adapter.closed
    assert adapter.metadata  # what was read while loading stays
    with pytest.raises(pyllama.ClosedError):
        pyllama.LoraAdapter(model, lora_path)


def test_an_adapter_outlives_the_last_name_of_its_model(tiny_model_path, lora_path):
    adapter = pyllama.LoraAdapter(pyllama.Model(tiny_model_path), lora_path)
    gc.collect()
    with pyllama.Context(adapter.model, n_ctx=256) as context:
        pyllama.set_adapters_lora(context, {adapter: 1.0})
        logits_of(context, PROMPT)
