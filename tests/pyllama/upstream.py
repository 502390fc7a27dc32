"""llama_tokenize() itself, to compare with, and llama.cpp's vocabularies."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import cache
from pathlib import Path

import pyllama
from pyllama._native import _binding

VENDOR = Path(__file__).parents[2] / "vendor"


@cache
def data_folder() -> Path:
    """llama.cpp's folder of vocabularies and templates, from the pinned archive."""
    script = VENDOR / "fetch_llama_cpp.py"
    subprocess.run([sys.executable, str(script), "--test-data"], check=True)
    return VENDOR / "test-data" / "models"


def vocabularies() -> list[Path]:
    return sorted(data_folder().glob("ggml-vocab-*.gguf"))


@cache
def _library() -> ctypes.CDLL:
    folder = Path(_binding.__file__).parent / "lib"
    (path,) = [
        file
        for file in folder.iterdir()
        if file.stem in ("libllama", "llama") and "so.d" not in str(file)
    ]
    return ctypes.CDLL(str(path))


def llama_tokenize(
    vocab: pyllama.Vocab, text: str, *, add_special: bool = False, parse_special: bool = False
) -> list[int]:
    data = text.encode()
    tokens = (ctypes.c_int32 * (len(data) + 8))()
    count = _library().llama_tokenize(
        ctypes.c_void_p(int(_binding.ffi.cast("intptr_t", vocab._pointer))),
        data,
        ctypes.c_int32(len(data)),
        tokens,
        ctypes.c_int32(len(tokens)),
        ctypes.c_bool(add_special),
        ctypes.c_bool(parse_special),
    )
    assert count >= 0
    return list(tokens[:count])
