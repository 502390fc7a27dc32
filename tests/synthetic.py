"""Tiny GGUF models with random weights: of a real architecture and shape, worthless as models.

Written in milliseconds, so that tests of the binding need no download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import gguf
import numpy as np
import synthetic_architectures as architectures
from synthetic_files import add_metadata, finish

Architecture = Literal["llama", "mamba", "gemma2", "jamba", "qwen2vl", "qwen3", "bert", "t5"]
Tokenizer = Literal["bpe", "spm", "rwkv", "none"]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The first ids of every vocabulary written here.
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
UNK, BOS, EOS, IM_START, IM_END = range(len(SPECIAL_TOKENS))

# Pairs that the byte-level tokenizer joins, in order of their rank.
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ġwo r", "Ġwor l", "Ġworl d", "Ġ t")


def write_model(
    path: Path,
    *,
    architecture: Architecture = "llama",
    tokenizer: Tokenizer = "bpe",
    pre: str = "gpt-2",
    merges: tuple[str, ...] = MERGES,
    add_bos: bool = True,
    add_eos: bool = False,
    control_tokens: tuple[str, ...] = (),
    user_defined_tokens: tuple[str, ...] = (),
    chat_template: str | list[dict[str, str]] | None = CHATML,
    extra_tokens: tuple[str, ...] = (),
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_layer: int = 2,
    n_ff: int = 128,
    n_ctx_train: int = 512,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    deltas: Mapping[str, np.ndarray] | None = None,
    split_max_tensors: int = 0,
) -> Path:
    """Write a model whose weights depend on nothing but the arguments, and return its path.

    :param tokenizer: ``"bpe"`` knows every byte and a few merges, ``"spm"`` adds whole words with
        scores, ``"rwkv"`` knows all bytes but one, ``"none"`` leaves the vocabulary without
        tokenizer.
    :param pre: the name of the pre-tokenizer of ``"bpe"``.
    :param merges: the pairs that it joins.
    :param add_bos: whether the tokenizer begins every text with BOS.
    :param add_eos: whether it ends every text with EOS.
    :param control_tokens: more control tokens, behind all others.
    :param user_defined_tokens: tokens that stand for their text wherever it is, behind those.
    :param extra_tokens: more normal tokens of ``"bpe"`` and ``"rwkv"``, spelt as they spell bytes.
    :param metadata: more keys; int becomes uint32, and a list an array.
    :param deltas: added to the tensors of these names.
    :param split_max_tensors: split the model into files of so many tensors, and return the first.
    """
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    writer.add_name("synthetic")
    add_metadata(writer, metadata or {})
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    more = {"CONTROL": control_tokens, "USER_DEFINED": user_defined_tokens}
    n_vocab = add_tokenizer(writer, tokenizer, pre, merges, (add_bos, add_eos), extra_tokens, more)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    weights = Weights(writer, seed, deltas or {})
    weights.matrix("token_embd.weight", n_vocab, n_embd)
    shape = Shape(n_vocab, n_embd, n_head, n_head_kv, n_layer, n_ff, n_ctx_train)
    _ADD_LAYERS[architecture](writer, weights, shape)

    finish(writer)
    if split_max_tensors:
        return path.with_name(f"{path.stem}-00001-of-{len(writer.tensors):05}.gguf")
    return path


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    n_vocab: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_layer: int
    n_ff: int
    n_ctx_train: int

    @property
    def n_embd_kv(self) -> int:
        return self.n_embd // self.n_head * self.n_head_kv


class Weights:
    """Adds tensors of random numbers, scaled so that activations keep their size."""

    def __init__(
        self, writer: gguf.GGUFWriter, seed: int, deltas: Mapping[str, np.ndarray]
    ) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)
        self._deltas = deltas

    def matrix(self, name: str, rows: int, columns: int) -> None:
        values = self._random.standard_normal((rows, columns), dtype=np.float32)
        values *= np.float32(1.5 / np.sqrt(columns))
        if name in self._deltas:
            values += self._deltas[name]
        self._writer.add_tensor(name, values)

    def ones(self, name: str, size: int) -> None:
        self._writer.add_tensor(name, np.ones(size, dtype=np.float32))

    def norm(self, name: str, size: int) -> None:
        self.ones(f"{name}.weight", size)
        self.ones(f"{name}.bias", size)


def _add_llama(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    weights.ones("output_norm.weight", shape.n_embd)
    weights.matrix("output.weight", shape.n_vocab, shape.n_embd)
    for layer in range(shape.n_layer):
        architectures.add_attention(weights, f"blk.{layer}", shape)
        architectures.add_feed_forward(weights, f"blk.{layer}", shape)


def _add_mamba(writer: gguf.GGUFWriter, weights: Weights, shape: Shape) -> None:
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    sizes = architectures.add_mamba_shape(writer, shape.n_embd)
    weights.ones("output_norm.weight", shape.n_embd)
    weights.matrix("output.weight", shape.n_vocab, shape.n_embd)
    for layer in range(shape.n_layer):
        weights.ones(f"blk.{layer}.attn_norm.weight", shape.n_embd)
        architectures.add_mamba_layer(writer, weights, f"blk.{layer}", shape.n_embd, *sizes)


_ADD_LAYERS = {
    "llama": _add_llama,
    "mamba": _add_mamba,
    "gemma2": architectures.add_gemma2,
    "jamba": architectures.add_jamba,
    "qwen2vl": architectures.add_qwen2vl,
    "qwen3": architectures.add_qwen3,
    "bert": architectures.add_bert,
    "t5": architectures.add_t5,
}


def add_tokenizer(
    writer: gguf.GGUFWriter,
    tokenizer: Tokenizer,
    pre: str = "gpt-2",
    merges: tuple[str, ...] = MERGES,
    added: tuple[bool, bool] = (True, False),
    extra_tokens: tuple[str, ...] = (),
    more: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> int:
    """Write a vocabulary, and return its size."""
    if tokenizer == "none":
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(300)
        return 300
    tokens = list(SPECIAL_TOKENS)
    types = [gguf.TokenType.CONTROL] * len(tokens)
    types[UNK] = gguf.TokenType.UNKNOWN
    if tokenizer == "bpe":
        tokens += _byte_spellings()
        tokens += [merge.replace(" ", "") for merge in merges]
        tokens += extra_tokens
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges)
    elif tokenizer == "rwkv":
        tokens += [f"\\x{byte:02x}" for byte in range(255)]
        tokens += extra_tokens
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
        writer.add_tokenizer_model("rwkv")
    else:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [gguf.TokenType.BYTE] * 256
        tokens += ["▁", "▁hello", "▁world", "h", "e", "l", "o"]
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
        writer.add_tokenizer_model("llama")
        n_tokens = len(tokens) + sum(map(len, more.values()))
        writer.add_token_scores([-float(index) for index in range(n_tokens)])
    for kind, texts in more.items():
        tokens += texts
        types += [gguf.TokenType[kind]] * len(texts)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(added[0])
    writer.add_add_eos_token(added[1])
    return len(tokens)


def _byte_spellings() -> list[str]:
    """How byte-level BPE spells each byte: printable ones as themselves, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)
    ]
