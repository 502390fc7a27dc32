"""The words for a context's parameters, and what llama.cpp calls them."""

from __future__ import annotations

from typing import Literal

from pyllama._native._binding import lib

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
CACHE_TYPES: dict[str, int] = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": lib.GGML_TYPE_BF16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
}
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
