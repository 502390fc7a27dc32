"""Checks whether the machine has the memory for a context before llama.cpp allocates it.

Linux hands out more memory than there is, and ends the process that uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllama._native._binding import lib
from pyllama._system_memory import available_memory
from pyllama.device import devices
from pyllama.errors import ContextError
from pyllama.model import Model

if TYPE_CHECKING:
    from pyllama._native._binding import llama_context_params

# What llama_kv_cells keeps of each cell: position, token, 2D position, shift, and 256 sequences.
_CELL_BYTES = 4 + 4 + 8 + 4 + 256 // 8
_LITTLE = 2**26
_FLOAT = 4
_MASK_VALUE = 2  # of the attention mask, in half precision at least


def require_memory(model: Model, params: llama_context_params) -> None:
    """Refuse a context that cannot fit.

    Raises:
        ContextError: it needs more than is free in the machine and on its GPUs together.
    """
    needed = least_bytes(model, params)
    if not fits(needed):
        raise ContextError(
            f"a context of n_ctx={params.n_ctx}, n_batch={params.n_batch}, "
            f"n_ubatch={params.n_ubatch} for {model.desc} needs at least {needed / 1e9:.1f} GB, "
            f"but {available_bytes() / 1e9:.1f} GB of memory are available; make them smaller"
        )


def least_bytes(model: Model, params: llama_context_params) -> int:
    """The fewest bytes that the context takes.

    This is a lower estimate, so that nothing is refused that could fit. Parts whose size llama.cpp
    does not report (recurrent states, layers with a sliding window, scratch space) count as
    nothing.
    """
    causal = model._in_use.text("attention.causal") != "false"
    n_ctx = params.n_ctx
    n_batch = min(params.n_batch, n_ctx) if causal else params.n_batch
    needed = n_batch * _FLOAT  # which output belongs to which token
    if not causal or model.is_diffusion:
        return int(needed)
    n_ubatch = min(n_batch, params.n_ubatch)
    n_outputs = min(n_ubatch, params.n_outputs_max or n_ubatch)
    needed += n_outputs * model.vocab.n_tokens * _FLOAT
    if model.is_recurrent:
        return int(needed)
    needed += n_ctx * _CELL_BYTES
    if not model.n_swa or params.swa_full:
        n_ctx_seq = n_ctx if params.kv_unified else n_ctx // params.n_seq_max
        needed += n_ctx_seq * n_ubatch * _MASK_VALUE
        needed += n_ctx * _cell_bytes(model, params)
    return int(needed)


def _cell_bytes(model: Model, params: llama_context_params) -> int:
    """Bytes of the keys and values of one token, in all layers."""

    def size(name: str) -> int:
        return model._in_use.number(f"attention.{name}", 0)

    n_head_kv = size("head_count_kv")
    if not n_head_kv and model.n_head_kv == size("head_count"):
        n_head_kv = model.n_head_kv  # otherwise there is one for each layer, of unknown size
    head = model.n_embd // model.n_head if model.n_head else 0
    keys = n_head_kv * (size("key_length") or head)
    values = n_head_kv * (size("value_length") or head)
    if size("key_length_mla"):
        values = 0  # stored within the keys
    n_layer = model.n_layer - size("shared_kv_layers")
    if model.is_hybrid:
        n_layer = 1  # it is unknown how many have attention
    return int(n_layer * (_stored(params.type_k, keys) + _stored(params.type_v, values)))


def _stored(kind: int, count: int) -> int:
    return int(count * lib.ggml_type_size(kind) // lib.ggml_blck_size(kind))


def fits(size: int) -> bool:
    """Whether this much memory is available. Small amounts are not checked."""
    return size < _LITTLE or size <= available_bytes()


def available_bytes() -> int:
    """Memory that can be had now, of the machine and of its GPUs together."""
    found = devices()
    host = available_memory()
    if host is None:  # unknown: rely on what ggml reports
        host = sum(device.memory[0] for device in found if device.type == "cpu")
    return host + sum(device.memory[0] for device in found if device.type in ("gpu", "igpu"))
