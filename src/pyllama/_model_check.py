"""Finds model files that llama.cpp loads and that then crash it.

llama.cpp refuses most damaged files with an error. It loads some, and the process ends when it
computes: an assertion fails on a compute thread, where nothing can catch it. Such files are found
here, by their header alone.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyllama._gguf_file import DamagedFile, Tensor, read_header

# Unspecified (numbers of either kind have it), none, mean, cls, last, rank.
POOLING_TYPES = {-1, 2**32 - 1, *range(5)}
# Files with other content, by their general.type.
_NO_MODELS = {
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
    "mmproj": "a projector for images or sound, which belongs to a model",
}

MAX_DUMMY_TOKENS = 2**22  # 16 times the largest known vocabulary; each token takes 40 bytes

# They compute with a window even if the file says that there is none.
_NEEDS_WINDOW = {"afmoe"}
# Element types that llama.cpp stores during computation, or that no operation multiplies with.
_NO_WEIGHTS = {"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"}
# Tables of ids, which are integers.
_ID_TABLES = re.compile(r"(?:ffn_gate_tid2eid\.weight|d2t|masked_embd_ordering\.weight)$")
# Added, multiplied elementwise or used in a convolution: such operations only take 32-bit floats.
_F32_ONLY = re.compile(
    r"""(?:
      (?<!\.weight)(?<!\.lora_a)(?<!\.lora_b)        # bias, scale, ssm_a, ssm_d
    | norm(?:_\w+)?\.weight
    | (?:(?<!ple_)conv1d(?:_[qkv])?|shortconv\.conv)\.weight
    | (?:rope_freqs|rope_factors_\w+|attn_sinks|\w+_res_score|hc_\w*base|compressor_ape)\.weight
    | (?:time|channel)_mix_(?:lerp_\w+|first|decay|ln|w0|a0|v0|k_k|k_a|r_k)\.weight
    )$""",
    re.VERBOSE,
)


def check_files(
    files: Sequence[str | int],
    offset: int,
    kv_overrides: Mapping[str, bool | int | float | str] | None,
) -> frozenset[str]:
    """Return the names of a model's tensors.

    Refuses a model that llama.cpp would load and that would then crash it.

    Args:
        files: the paths of its parts, or a descriptor. A single path includes the parts that are
            named like it.

    Raises:
        DamagedFile: the message names the key or tensor, and its value.
    """
    first, *others = (read_header(file, offset) for file in files)
    metadata = {**first.metadata}
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in _NO_MODELS:
        raise DamagedFile(f"it is {_NO_MODELS[kind]}, and no model")
    if isinstance(files[0], str) and not others:
        others = [read_header(part) for part in _other_parts(files[0], metadata)]
    for name, value in (kv_overrides or {}).items():
        # llama.cpp ignores one of another type.
        if type(metadata.get(name, value)) is type(value):
            metadata[name] = value
    tensors = [tensor for header in (first, *others) for tensor in header.tensors]
    _check_model(metadata, tensors)
    return frozenset(tensor.name for tensor in tensors)


def _other_parts(path: str, metadata: Mapping[str, Any]) -> list[str]:
    """The existing parts beside the first one. llama.cpp reports missing ones."""
    count = metadata.get("split.count", 0)
    match = re.fullmatch(r"(.*)-00001-of-\d{5}\.gguf", path, re.DOTALL)
    if not match or not isinstance(count, int) or not 1 < count < 2**16:
        return []
    names = (f"{match[1]}-{number:05}-of-{count:05}.gguf" for number in range(2, count + 1))
    return list(itertools.takewhile(os.path.isfile, names))


def _check_model(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    architecture = metadata.get("general.architecture")
    settings = {
        name.removeprefix(f"{architecture}."): value
        for name, value in metadata.items()
        if name.startswith(f"{architecture}.")
    }
    for name, value in settings.items():
        # Norms assert that it is not negative; NaN is not a valid value.
        if "epsilon" in name and isinstance(value, float) and not value >= 0:
            raise DamagedFile(f"{architecture}.{name} must be 0 or more, it is {value}")
    _check_rope(architecture, settings)
    if architecture in _NEEDS_WINDOW and not settings.get("attention.sliding_window"):
        raise DamagedFile(f"{architecture}.attention.sliding_window must be more than 0")
    pooling = settings.get("pooling_type", 0)
    if isinstance(pooling, int) and pooling not in POOLING_TYPES:
        raise DamagedFile(
            f"{architecture}.pooling_type is {pooling}, which llama.cpp does not have"
        )
    dummies = settings.get("vocab_size", 0)
    if isinstance(dummies, int) and dummies > MAX_DUMMY_TOKENS:
        raise DamagedFile(f"{architecture}.vocab_size is {dummies}; at most {MAX_DUMMY_TOKENS}")
    for tensor in tensors:
        _check_type(tensor)


def _check_rope(architecture: Any, settings: Mapping[str, Any]) -> None:
    """Rotary embeddings rotate pairs of dimensions, at most as many as a head has."""
    n_head, n_embd = (
        _of_first_layer(settings.get(name)) for name in ("attention.head_count", "embedding_length")
    )
    if not n_head or not n_embd:
        return
    for suffix in "", "_swa":
        size = _of_first_layer(settings.get(f"attention.key_length{suffix}")) or n_embd // n_head
        turned = _of_first_layer(settings.get(f"rope.dimension_count{suffix}"))
        if turned is None:
            turned = size
        if not 0 < turned <= size or turned % 2:
            raise DamagedFile(
                f"{architecture}.rope.dimension_count{suffix} must be even and at most the size of "
                f"a head, {size}; it is {turned}"
            )


def _of_first_layer(value: Any) -> int | None:
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else None


def _check_type(tensor: Tensor) -> None:
    name = tensor.type_name
    if name in _NO_WEIGHTS and not _ID_TABLES.search(tensor.name):
        raise DamagedFile(
            f"tensor {tensor.name!r} has elements of type {name}, which are no weights"
        )
    if name != "f32" and _F32_ONLY.search(tensor.name) and not _ID_TABLES.search(tensor.name):
        raise DamagedFile(f"tensor {tensor.name!r} must have elements of type f32, not {name}")
