"""Tiny models written by transformers with random weights, converted and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import sentencepiece
import torch
import transformers

import pyllama
from adapter.errors import ConversionError
from adapter.models.conversion import convert
from adapter.models.pool import ModelPool

# peft and transformers deprecate each other's names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TEXT = "hello world, the weather is fine today and the sea is calm"

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama": (transformers.LlamaConfig, {}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None, "head_dim": 16}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16}),
    "phi3": (transformers.Phi3Config, {}),
    "gemma2": (
        transformers.Gemma2Config,
        {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    ),
    # Of its layers every sixth sees all of the text, and the others a window.
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
            "num_hidden_layers": 7,
            "sliding_window": 8,
        },
    ),
}


@pytest.fixture(scope="session")
def write_tokenizer(tmp_path_factory):
    """Write a sentencepiece model of 300 pieces, which knows every byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = folder / "lines.txt"
    lines.write_text("\n".join(f"{TEXT} {number}" for number in range(200)))

    def write(*, adds_space: bool) -> Path:
        prefix = folder / f"tokenizer-{adds_space}"
        sentencepiece.SentencePieceTrainer.train(
            input=str(lines),
            model_prefix=str(prefix),
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            add_dummy_prefix=adds_space,
            minloglevel=2,
        )
        return prefix.with_suffix(".model")

    return write


@pytest.fixture(scope="session")
def tokenizer(write_tokenizer) -> Path:
    """The one of most models: it puts a space before a text."""
    return write_tokenizer(adds_space=True)


def write_model(folder: Path, kind: str, tokenizer: Path) -> torch.nn.Module:
    """Write a model with random weights as transformers does, and return it."""
    make, changes = MODELS[kind]
    torch.manual_seed(0)
    config = make(vocab_size=300, **{**COMMON, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    facts = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    facts["tokenizer_class"] = "LlamaTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return model.eval()


@pytest.mark.parametrize("kind", MODELS)
def test_a_converted_model_has_the_tokens_and_the_logits_of_the_original(
    kind, write_tokenizer, tmp_path
):
    # llama.cpp expects tokens of Phi's own in what is called so.
    folder = tmp_path / "model"
    tokenizer = write_tokenizer(adds_space=not kind.startswith("gemma"))
    original = write_model(folder, kind, tokenizer)
    path = convert(folder, tmp_path / "{type}.gguf", outtype="f32")
    assert path.name == "F32.gguf"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    with pyllama.Model(path) as model:
        tokens = model.vocab.tokenize(TEXT)
        assert tokens == [1, *pieces.encode(TEXT)]
        with torch.no_grad():
            expected = original(torch.tensor([tokens])).logits[0].numpy()
        with pyllama.Context(
            model, n_ctx=256, n_threads=1, type_k="f32", type_v="f32", flash_attn="disabled"
        ) as context:
            batch = pyllama.Batch(len(tokens))
            batch.add_tokens(tokens, outputs="all")
            context.decode(batch)
            found = context.all_logits()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3


def test_a_converted_model_is_quantized_and_answers(tokenizer, tmp_path):
    folder = tmp_path / "llama"
    write_model(folder, "llama", tokenizer)
    done = []
    path = convert(folder, tmp_path / "tiny-{type}.gguf", outtype="f16", report=done.append)
    assert path.name == "tiny-F16.gguf"
    assert done == sorted(done)
    pyllama.quantize(path, tmp_path / "tiny-Q8_0.gguf", "Q8_0")
    with ModelPool(tmp_path, context_length=128) as pool:
        loaded = pool.load_model("tiny-Q8_0")
        assert loaded.tokenize("hello")


def test_an_adapter_on_its_base_equals_the_merged_weights(tokenizer, tmp_path):
    folder = tmp_path / "llama"
    original = write_model(folder, "llama", tokenizer)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(original, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base = convert(folder, tmp_path / "base.gguf", outtype="f32")
    lora = convert(
        tmp_path / "adapter", tmp_path / "lora-{type}.gguf", outtype="f32", lora_base=folder
    )
    assert lora.name == "lora-F32.gguf"
    merged = adapted.merge_and_unload().eval()
    with pyllama.Model(base) as model, pyllama.LoraAdapter(model, lora) as adapter:
        tokens = model.vocab.tokenize(TEXT)
        with torch.no_grad():
            expected = merged(torch.tensor([tokens])).logits[0].numpy()
        with pyllama.Context(
            model, n_ctx=256, n_threads=1, type_k="f32", type_v="f32", flash_attn="disabled"
        ) as context:
            pyllama.set_adapters_lora(context, {adapter: 1.0})
            batch = pyllama.Batch(len(tokens))
            batch.add_tokens(tokens, outputs="all")
            context.decode(batch)
            found = context.all_logits()
    assert np.abs(found - expected).max() < 1e-3


def test_a_folder_that_the_converter_does_not_know_leaves_nothing(tokenizer, tmp_path):
    folder = tmp_path / "llama"
    write_model(folder, "llama", tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyKnows"]}))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConversionError, match="NobodyKnows"):
        convert(folder, out / "x.gguf")
    assert list(out.iterdir()) == []
