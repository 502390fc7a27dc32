"""The words for a context's parameters, and what llama.cpp calls them."""

from __future__ import annotations

from typing import Literal, get_args

from pyllama._native._binding import lib
from pyllama.ggml_type import GGML_TYPES

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
