"""A context's parameters: their words, what llama.cpp calls them, and what does not fit."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pyllama._native._binding import lib
from pyllama.ggml_type import GGML_TYPES
from pyllama.model import Model

FlashAttention = Literal["auto", "disabled", "enabled"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
RopeScaling = Literal["unspecified", "none", "linear", "yarn", "longrope"]
Pooling = Literal["unspecified", "none", "mean", "cls", "last", "rank"]
Attention = Literal["unspecified", "causal", "non_causal"]

FLASH_ATTENTION: dict[str, int] = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "disabled": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "enabled": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}
CACHE_TYPES: dict[str, int] = {name: GGML_TYPES[name] for name in get_args(CacheType)}
ROPE_SCALING: dict[str, int] = {
    "unspecified": lib.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
    "none": lib.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": lib.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": lib.LLAMA_ROPE_SCALING_TYPE_YARN,
    "longrope": lib.LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}
POOLING: dict[str, int] = {
    "unspecified": lib.LLAMA_POOLING_TYPE_UNSPECIFIED,
    "none": lib.LLAMA_POOLING_TYPE_NONE,
    "mean": lib.LLAMA_POOLING_TYPE_MEAN,
    "cls": lib.LLAMA_POOLING_TYPE_CLS,
    "last": lib.LLAMA_POOLING_TYPE_LAST,
    "rank": lib.LLAMA_POOLING_TYPE_RANK,
}
POOLING_NAMES: dict[int, Pooling] = {
    lib.LLAMA_POOLING_TYPE_NONE: "none",
    lib.LLAMA_POOLING_TYPE_MEAN: "mean",
    lib.LLAMA_POOLING_TYPE_CLS: "cls",
    lib.LLAMA_POOLING_TYPE_LAST: "last",
    lib.LLAMA_POOLING_TYPE_RANK: "rank",
}
ATTENTION: dict[str, int] = {
    "unspecified": lib.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
    "causal": lib.LLAMA_ATTENTION_TYPE_CAUSAL,
    "non_causal": lib.LLAMA_ATTENTION_TYPE_NON_CAUSAL,
}


def require_consistent(model: Model, params: Any) -> None:
    """Refuse what llama.cpp would answer with a failed assertion."""
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
    prefix = model.metadata.get("general.architecture", "")
    pooling = params.pooling_type
    if pooling == lib.LLAMA_POOLING_TYPE_UNSPECIFIED:
        pooling = int(model.metadata.get(f"{prefix}.pooling_type", pooling))
    n_ubatch = min(params.n_ubatch, n_batch)
    if pooling == lib.LLAMA_POOLING_TYPE_MEAN and n_ubatch % params.n_seq_max:
        raise ValueError(
            f"n_ubatch must be a multiple of n_seq_max ({params.n_seq_max}) to pool as 'mean', "
            f"got {n_ubatch}"
        )
    translates = model.has_encoder and model.has_decoder
    if translates and params.n_seq_max > 1 and not params.kv_unified:
        raise ValueError(
            f"kv_unified must be True for n_seq_max={params.n_seq_max} sequences of an "
            "encoder-decoder model"
        )
