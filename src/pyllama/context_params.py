"""The parameters of a context: arguments, checked, and the C struct made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from pyllama._arguments import INT32_MAX, UINT32_MAX, choice, integer, real
from pyllama._native._binding import lib
from pyllama.device import cpu_math_cores
from pyllama.ggml_type import GGML_TYPES
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from pyllama._native._binding import llama_context_params

FlashAttention = Literal["auto", "disabled", "enabled"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
RopeScaling = Literal["unspecified", "none", "linear", "yarn", "longrope"]
Pooling = Literal["unspecified", "none", "mean", "cls", "last", "rank"]
Attention = Literal["unspecified", "causal", "non_causal"]

CACHE_TYPES: dict[str, int] = {name: GGML_TYPES[name] for name in get_args(CacheType)}
QUANTIZED_CACHE_TYPES = frozenset(CACHE_TYPES) - {"f32", "f16", "bf16"}


def _numbers(words: Any, prefix: str) -> dict[str, int]:
    """llama.h's names of the words: ``LLAMA_…_TYPE_`` and the word."""
    return {word: getattr(lib, f"{prefix}_{word.upper()}") for word in get_args(words)}


_POOLING = _numbers(Pooling, "LLAMA_POOLING_TYPE")
POOLING_NAMES: dict[int, Any] = {
    number: name for name, number in _POOLING.items() if name != "unspecified"
}

# A check takes the argument's name and value, and returns what C gets. None is resolved later.
_Check = Callable[[str, Any], Any]


def _in_struct(check: _Check, name: str | None = None) -> Mapping[str, Any]:
    """How a field is checked, and its name in C if that differs."""
    return {"check": check, "in_struct": name}


def _whole(low: int, high: int) -> Mapping[str, Any]:
    return _in_struct(lambda name, value: integer(name, value, low, high))


def _optional(low: int, high: int) -> Mapping[str, Any]:
    return _in_struct(
        lambda name, value: None if value is None else integer(name, value, low, high)
    )


def _real(high: float) -> Mapping[str, Any]:
    return _in_struct(lambda name, value: real(name, value, 0.0, high))


def _word(numbers: Mapping[str, int], name: str | None = None) -> Mapping[str, Any]:
    return _in_struct(partial(choice, choices=numbers), name)


_YARN = _in_struct(lambda name, value: -1.0 if value is None else real(name, value, 0.0, 1e6))
_SWITCH = _in_struct(lambda _, value: bool(value))
_CACHE = _word(CACHE_TYPES)


@dataclass(frozen=True, kw_only=True)
class ContextParams:
    """How a context is made (``llama_context_params``): the arguments of ``Context``, checked.

    Args:
        n_ctx: tokens that its memory holds, over all sequences; 0 for what the model was trained
            with.
        n_batch: the most tokens in one ``decode``; None for 2048.
        n_ubatch: the most tokens computed at once.
        n_seq_max: sequences it can hold; ids are 0 to n_seq_max - 1.
        n_rs_seq: for each sequence of a recurrent model, earlier states to keep, so that this many
            tokens can be removed from its end; models that cannot do so ignore it.
        n_outputs_max: the most outputs of one ``decode``; 0 for n_batch. Fewer save memory.
        n_threads: threads for one token at a time; None for ``cpu_math_cores``.
        n_threads_batch: threads for several tokens at a time; None for the same as n_threads.
        rope_scaling_type: how positions beyond those of the training are made to fit.
        pooling_type: how the embeddings of a sequence's tokens are combined into one.
        attention_type: whether tokens see those after them. Without causal attention a batch holds
            at most n_ubatch tokens.
        flash_attn: whether to use flash attention.
        rope_freq_base: RoPE's base frequency; 0 for the model's.
        rope_freq_scale: RoPE's factor of positions; 0 for the model's.
        yarn_ext_factor: YaRN's mix of extrapolation; None for the model's, as for the others.
        yarn_attn_factor: YaRN's factor of attention.
        yarn_beta_fast: YaRN's low correction dimension.
        yarn_beta_slow: YaRN's high correction dimension.
        yarn_orig_ctx: context length before YaRN; 0 for the model's.
        type_k: how keys are stored; quantized types save memory and cost precision. With "bf16",
            and with quantized types in heads whose size is no multiple of 64, positions cannot be
            shifted (``Memory.can_shift``).
        type_v: how values are stored; quantized types need flash attention, which encoder-decoder
            models do not have.
        offload_kqv: keep keys and values in the device's memory.
        op_offload: let the device compute large operations on weights kept by the host.
        swa_full: give layers with a sliding window a memory as large as the others', so that old
            tokens can come back into the window when later ones are removed.
        kv_unified: one memory for all sequences, instead of an equal part for each. Without it a
            sequence has n_ctx / n_seq_max tokens, and what is computed for one does not depend on
            the others.
        embeddings: compute embeddings as well as logits.
        no_perf: do not measure times for ``performance``.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range.
    """

    n_ctx: int = field(default=0, metadata=_whole(0, UINT32_MAX))
    n_batch: int | None = field(default=None, metadata=_optional(1, INT32_MAX))
    n_ubatch: int = field(default=512, metadata=_whole(1, INT32_MAX))
    n_seq_max: int = field(default=1, metadata=_whole(1, lib.llama_max_parallel_sequences()))
    n_rs_seq: int = field(default=0, metadata=_whole(0, 256))
    n_outputs_max: int = field(default=0, metadata=_whole(0, INT32_MAX))
    n_threads: int | None = field(default=None, metadata=_optional(1, MAX_THREADS))
    n_threads_batch: int | None = field(default=None, metadata=_optional(1, MAX_THREADS))
    rope_scaling_type: RopeScaling = field(
        default="unspecified", metadata=_word(_numbers(RopeScaling, "LLAMA_ROPE_SCALING_TYPE"))
    )
    pooling_type: Pooling = field(default="unspecified", metadata=_word(_POOLING))
    attention_type: Attention = field(
        default="unspecified", metadata=_word(_numbers(Attention, "LLAMA_ATTENTION_TYPE"))
    )
    flash_attn: FlashAttention = field(
        default="auto",
        metadata=_word(_numbers(FlashAttention, "LLAMA_FLASH_ATTN_TYPE"), "flash_attn_type"),
    )
    rope_freq_base: float = field(default=0.0, metadata=_real(1e12))
    rope_freq_scale: float = field(default=0.0, metadata=_real(1e6))
    yarn_ext_factor: float | None = field(default=None, metadata=_YARN)
    yarn_attn_factor: float | None = field(default=None, metadata=_YARN)
    yarn_beta_fast: float | None = field(default=None, metadata=_YARN)
    yarn_beta_slow: float | None = field(default=None, metadata=_YARN)
    yarn_orig_ctx: int = field(default=0, metadata=_whole(0, INT32_MAX))
    type_k: CacheType = field(default="f16", metadata=_CACHE)
    type_v: CacheType = field(default="f16", metadata=_CACHE)
    offload_kqv: bool = field(default=True, metadata=_SWITCH)
    op_offload: bool = field(default=True, metadata=_SWITCH)
    swa_full: bool = field(default=True, metadata=_SWITCH)
    kv_unified: bool = field(default=False, metadata=_SWITCH)
    embeddings: bool = field(default=False, metadata=_SWITCH)
    no_perf: bool = field(default=True, metadata=_SWITCH)

    def __post_init__(self) -> None:
        in_struct: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            checked = each.metadata["check"](each.name, value)
            in_struct[each.metadata["in_struct"] or each.name] = checked
            if value is not None and not isinstance(value, str):  # NumPy's numbers become plain
                object.__setattr__(self, each.name, checked)
        object.__setattr__(self, "_in_struct", in_struct)

    @property
    def quantizes_values(self) -> bool:
        """Whether type_v is a quantized type, which only flash attention can read."""
        return self.type_v in QUANTIZED_CACHE_TYPES

    def _struct(self) -> llama_context_params:
        """A ``llama_context_params`` with these values. What None stands for is filled in."""
        values: dict[str, Any] = dict(vars(self)["_in_struct"])
        values["n_batch"] = values["n_batch"] or 2048
        values["n_threads"] = values["n_threads"] or cpu_math_cores()
        values["n_threads_batch"] = values["n_threads_batch"] or values["n_threads"]
        struct = lib.llama_context_default_params()
        for name, value in values.items():
            setattr(struct, name, value)
        return struct


def with_options(
    name: str, params: ContextParams | None, options: Mapping[str, Any]
) -> ContextParams:
    """The parameters given as an argument, or the defaults, with the options replaced."""
    if params is None:
        return ContextParams(**options)
    if not isinstance(params, ContextParams):
        raise TypeError(f"{name} must be a pyllama.ContextParams, got {params!r}")
    return replace(params, **options)


class ContextOptions(TypedDict, total=False):
    """The same as keyword arguments of ``Context``, all optional."""

    n_ctx: int
    n_batch: int | None
    n_ubatch: int
    n_seq_max: int
    n_rs_seq: int
    n_outputs_max: int
    n_threads: int | None
    n_threads_batch: int | None
    rope_scaling_type: RopeScaling
    pooling_type: Pooling
    attention_type: Attention
    flash_attn: FlashAttention
    rope_freq_base: float
    rope_freq_scale: float
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None
    yarn_orig_ctx: int
    type_k: CacheType
    type_v: CacheType
    offload_kqv: bool
    op_offload: bool
    swa_full: bool
    kv_unified: bool
    embeddings: bool
    no_perf: bool
