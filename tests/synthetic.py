"""Tiny GGUF models with random weights: of a real architecture and shape, worthless as models.

Written in milliseconds, so that tests of the binding need no download.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from synthetic_files import add_metadata, finish

Architecture = Literal["llama", "mamba", "t5"]
Tokenizer = Literal["bpe", "spm", "none"]

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
    chat_template: str | list[dict[str, str]] | None = CHATML,
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
        scores, ``"none"`` leaves the vocabulary without tokenizer.
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
    writer.add_layer_norm_rms_eps(1e-5)
    n_vocab = _add_tokenizer(writer, tokenizer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    weights = _Weights(writer, seed, deltas or {})
    weights.matrix("token_embd.weight", n_vocab, n_embd)
    weights.matrix("output.weight", n_vocab, n_embd)
    if architecture == "llama":
        weights.ones("output_norm.weight", n_embd)
        _add_llama(writer, weights, n_embd, n_head, n_head_kv, n_layer, n_ff)
    elif architecture == "mamba":
        weights.ones("output_norm.weight", n_embd)
        _add_mamba(writer, weights, n_embd, n_layer)
    else:
        _add_t5(writer, weights, n_embd, n_head, n_layer, n_ff)

    finish(writer)
    if split_max_tensors:
        return path.with_name(f"{path.stem}-00001-of-{len(writer.tensors):05}.gguf")
    return path


def _add_llama(
    writer: gguf.GGUFWriter,
    weights: _Weights,
    n_embd: int,
    n_head: int,
    n_head_kv: int,
    n_layer: int,
    n_ff: int,
) -> None:
    n_embd_kv = n_embd // n_head * n_head_kv
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_rope_dimension_count(n_embd // n_head)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm.weight", n_embd)
        weights.matrix(f"{block}.attn_q.weight", n_embd, n_embd)
        weights.matrix(f"{block}.attn_k.weight", n_embd_kv, n_embd)
        weights.matrix(f"{block}.attn_v.weight", n_embd_kv, n_embd)
        weights.matrix(f"{block}.attn_output.weight", n_embd, n_embd)
        weights.ones(f"{block}.ffn_norm.weight", n_embd)
        weights.matrix(f"{block}.ffn_gate.weight", n_ff, n_embd)
        weights.matrix(f"{block}.ffn_up.weight", n_ff, n_embd)
        weights.matrix(f"{block}.ffn_down.weight", n_embd, n_ff)


def _add_mamba(writer: gguf.GGUFWriter, weights: _Weights, n_embd: int, n_layer: int) -> None:
    d_inner, d_conv, d_state, dt_rank = 2 * n_embd, 4, 16, n_embd // 16
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(d_conv)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(d_state)
    writer.add_ssm_time_step_rank(dt_rank)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        weights.ones(f"{block}.attn_norm.weight", n_embd)
        weights.matrix(f"{block}.ssm_in.weight", 2 * d_inner, n_embd)
        weights.matrix(f"{block}.ssm_conv1d.weight", d_inner, d_conv)
        weights.ones(f"{block}.ssm_conv1d.bias", d_inner)
        weights.matrix(f"{block}.ssm_x.weight", dt_rank + 2 * d_state, d_inner)
        weights.matrix(f"{block}.ssm_dt.weight", d_inner, dt_rank)
        weights.ones(f"{block}.ssm_dt.bias", d_inner)
        # The state must decay: A is negative.
        decay = -np.tile(np.arange(1, d_state + 1, dtype=np.float32), (d_inner, 1))
        writer.add_tensor(f"{block}.ssm_a", decay)
        weights.ones(f"{block}.ssm_d", d_inner)
        weights.matrix(f"{block}.ssm_out.weight", n_embd, d_inner)


def _add_t5(
    writer: gguf.GGUFWriter,
    weights: _Weights,
    n_embd: int,
    n_head: int,
    n_layer: int,
    n_ff: int,
) -> None:
    """An encoder and a decoder of as many layers."""
    n_buckets = 32
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_relative_attn_buckets_count(n_buckets)
    writer.add_decoder_start_token_id(BOS)
    for side, attentions in (("enc", ("attn",)), ("dec", ("attn", "cross_attn"))):
        weights.ones(f"{side}.output_norm.weight", n_embd)
        for layer in range(n_layer):
            block = f"{side}.blk.{layer}"
            for attention in attentions:
                weights.ones(f"{block}.{attention}_norm.weight", n_embd)
                for part in ("q", "k", "v", "o"):
                    weights.matrix(f"{block}.{attention}_{part}.weight", n_embd, n_embd)
            weights.ones(f"{block}.ffn_norm.weight", n_embd)
            weights.matrix(f"{block}.ffn_up.weight", n_ff, n_embd)
            weights.matrix(f"{block}.ffn_down.weight", n_embd, n_ff)
        weights.matrix(f"{side}.blk.0.attn_rel_b.weight", n_buckets, n_head)


class _Weights:
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


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> int:
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
        tokens += [merge.replace(" ", "") for merge in MERGES]
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(MERGES)
    else:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [gguf.TokenType.BYTE] * 256
        tokens += ["▁", "▁hello", "▁world", "h", "e", "l", "o"]
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    return len(tokens)


def _byte_spellings() -> list[str]:
    """How byte-level BPE spells each byte: printable ones as themselves, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)
    ]
