"""Checks whether a context's parameters fit a model and each other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyllama._native._binding import lib
from pyllama.context_params import CACHE_TYPES, QUANTIZED_CACHE_TYPES
from pyllama.model import Model

if TYPE_CHECKING:
    from pyllama._native._binding import llama_context_params

_NAMES = {number: name for name, number in CACHE_TYPES.items()}
_QUANTIZED = {CACHE_TYPES[name] for name in QUANTIZED_CACHE_TYPES}


def require_consistent(model: Model, params: llama_context_params) -> None:
    """Refuse parameters for which an assertion of llama.cpp would fail."""
    causal = params.attention_type != lib.LLAMA_ATTENTION_TYPE_NON_CAUSAL
    n_batch = min(params.n_batch, params.n_ctx) if causal else params.n_batch
    if params.n_seq_max > n_batch:
        raise ValueError(
            f"n_seq_max must be at most n_batch ({n_batch}), got {params.n_seq_max}: a batch must "
            "have room for a token of each sequence"
        )
    if 0 < params.n_outputs_max < params.n_seq_max:
        raise ValueError(
            f"n_outputs_max must be at least n_seq_max ({params.n_seq_max}), got "
            f"{params.n_outputs_max}: each sequence gives one output at a time"
        )
    pooling = params.pooling_type
    if pooling == lib.LLAMA_POOLING_TYPE_UNSPECIFIED:
        pooling = model._in_use.number("pooling_type", pooling)
    n_ubatch = min(params.n_ubatch, n_batch)
    if pooling == lib.LLAMA_POOLING_TYPE_MEAN and n_ubatch % params.n_seq_max:
        raise ValueError(
            f"n_ubatch must be a multiple of n_seq_max ({params.n_seq_max}) to pool as 'mean', "
            f"got {n_ubatch}"
        )
    _require_whole_blocks(model, params)
    translates = model.has_encoder and model.has_decoder
    if translates and params.n_seq_max > 1 and not params.kv_unified:
        raise ValueError(
            f"kv_unified must be True for n_seq_max={params.n_seq_max} sequences of an "
            "encoder-decoder model"
        )
    if translates and params.type_v in _QUANTIZED:
        # Its attention has a bias, which flash attention does not support. Without flash attention,
        # llama.cpp transposes values, and writes outside memory if they are quantized.
        raise ValueError(
            "type_v must be 'f32', 'f16' or 'bf16' for an encoder-decoder model, which attends "
            f"without flash attention: got {_NAMES[params.type_v]!r}"
        )


def _require_whole_blocks(model: Model, params: llama_context_params) -> None:
    """Refuse quantized keys of heads that share a block: without flash attention they are garbage.

    With flash attention llama.cpp refuses them itself.
    """
    if params.flash_attn_type != lib.LLAMA_FLASH_ATTN_TYPE_DISABLED or model.is_recurrent:
        return
    if params.type_k in _QUANTIZED:
        head, block = _head_size(model), lib.ggml_blck_size(params.type_k)
        if head % block:
            raise ValueError(
                f"type_k must be 'f32', 'f16' or 'bf16' for heads of {head} values, which are no "
                f"whole blocks of {block}: got {_NAMES[params.type_k]!r}"
            )


def _head_size(model: Model) -> int:
    """The numbers in a key of one head; 0 if unknown."""
    size = model.n_embd // model.n_head if model.n_head else 0
    return model._in_use.number("attention.key_length", size)


def reason_not_to_shift(model: Model, params: llama_context_params) -> str | None:
    """Why the keys of a context cannot be moved to other positions, or None if they can.

    llama.cpp only asks the model. Its graph for the shift ends the process with some types.
    """
    if model.rope_type == "none" or params.type_k not in (*_QUANTIZED, CACHE_TYPES["bf16"]):
        return None
    kind = f"keys of type {_NAMES[params.type_k]!r}"
    if params.type_k == CACHE_TYPES["bf16"]:
        return f"llama.cpp cannot rotate {kind}: make the context with type_k='f16'"
    if not _rotates_quantized_keys(model):
        return (
            f"llama.cpp rotates {kind} only in heads whose size is a multiple of 64, and as a "
            "whole: make the context with type_k='f16'"
        )
    return None


def _rotates_quantized_keys(model: Model) -> bool:
    """Whether the shift finds the matrix with which it undoes the keys' own rotation."""
    if any(
        model._in_use.text(name) is not None
        for name in (
            "attention.key_length_swa",
            "attention.key_length_mla",
            "attention.kv_lora_rank",
        )
    ):
        return False  # heads of several sizes, or only partly rotated
    head = _head_size(model)
    disabled = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") not in ("", "0")
    rotated = model._in_use.number("rope.dimension_count", head)
    return head > 0 and head % 64 == 0 == head - rotated and not disabled
