"""Whether the machine has the memory that a context needs, before llama.cpp takes it.

Linux hands out more memory than there is, and ends the process that then uses it.
"""

from __future__ import annotations

from pyllama._system_memory import available_memory
from pyllama.device import devices
from pyllama.errors import ContextError
from pyllama.model import Model

# What llama.cpp's host memory keeps for each token: position, token, shift, and a set of sequences.
_CELL_BYTES = 4 + 4 + 4 + 256 // 8

# Bytes of one value in a KV cache of each type.
_VALUE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}


def require_memory(model: Model, n_ctx: int, type_k: str, type_v: str) -> None:
    """Refuse a context that cannot fit into the machine and its GPUs together.

    The need is estimated from below, so that nothing is refused that could fit: layers whose
    memory the metadata does not tell count as nothing.

    :raises ContextError: it needs more than is available.
    """
    available = available_memory()
    if available is None:  # not Linux: there an allocation that is too large fails
        return
    needed = n_ctx * (_CELL_BYTES + _kv_bytes(model, type_k, type_v))
    available += sum(device.memory[0] for device in devices() if device.type in ("gpu", "igpu"))
    if needed > available:
        raise ContextError(
            f"n_ctx={n_ctx} for {model.desc} needs at least {needed / 1e9:.1f} GB, but "
            f"{available / 1e9:.1f} GB of memory are available; make n_ctx smaller"
        )


def _kv_bytes(model: Model, type_k: str, type_v: str) -> float:
    """Bytes of the keys and values of one token, in all layers; 0 where that is not told."""
    prefix = model.metadata.get("general.architecture", "")

    def size(name: str) -> int:
        return int(model.metadata.get(f"{prefix}.attention.{name}", 0))

    n_head = size("head_count")
    varies = model.is_recurrent or model.is_hybrid or model.n_swa or size("key_length_mla")
    if varies or not n_head:
        return 0.0
    n_head_kv = size("head_count_kv")  # 0 where each layer has its own
    head = model.n_embd // n_head
    keys = n_head_kv * (size("key_length") or head) * _VALUE_BYTES[type_k]
    values = n_head_kv * (size("value_length") or head) * _VALUE_BYTES[type_v]
    return (model.n_layer - size("shared_kv_layers")) * (keys + values)
