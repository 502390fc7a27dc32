"""Small GGUF files beside models: LoRA adapters, control vectors, importance matrices."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def holding(content: bytes) -> bytes:
    """A whole GGUF file without tensors, 45 bytes longer than the content that it holds."""
    key = struct.pack("<Q1sIQ", 1, b"k", gguf.GGUFValueType.STRING, len(content))
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key + content


def write_lora(
    path: Path,
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    alpha: float = 8.0,
    architecture: str = "llama",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LoRA adapter of lora_a and lora_b for each tensor, and return its path."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    add_metadata(writer, metadata or {})
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    finish(writer)
    return path


def write_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    architecture: str,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a file of tensors: a control vector, or an imatrix."""
    writer = gguf.GGUFWriter(path, architecture)
    add_metadata(writer, metadata or {})
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_metadata(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    """Add keys of the types that their values have; int becomes uint32, and a list an array."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            assert isinstance(value, Sequence)
            writer.add_array(key, value)
