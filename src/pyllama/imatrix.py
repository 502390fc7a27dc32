"""Importance matrices: how much each column of a tensor matters when it is quantized."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllama import _model_file
from pyllama import device as _device  # noqa: F401  (installs the log before anything logs)
from pyllama._guard import guarded_str, raise_caught, raise_if_caught
from pyllama._handle import Handle
from pyllama._native import _binding
from pyllama._native._binding import ffi, lib
from pyllama.errors import NativeError, QuantizeError
from pyllama.model_params import utf8

if TYPE_CHECKING:
    from pyllama._native._binding import Array, Pointer, llama_model_imatrix_data, pyllama_imatrix

_PROGRAM = "llama-imatrix.exe" if sys.platform == "win32" else "llama-imatrix"

# Beyond it the squares in quantization overflow, and an assertion of llama.cpp fails.
MAX_IMPORTANCE = 1e12


def imatrix_program() -> Path:
    """The path of llama.cpp's own program that computes importance matrices.

    Run it in a process of its own, with the options of llama-imatrix: ``-m`` for the model, ``-f``
    for the text and ``-o`` for the file to write. It uses the libraries and the backend modules
    beside it, and loads modules of the current folder as well: run it in a folder of yours.
    """
    return Path(os.path.dirname(_binding.__file__)) / "lib" / _PROGRAM


def load_imatrix(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """Read the file that ``llama-imatrix`` writes, in its current or its older format.

    ``common_imatrix_load``.

    Returns:
        for each tensor's name the mean of its squared inputs, a float32 array of shape
        (n_columns,), or (n_columns * n_experts,) for the tensors of experts. Experts that no token
        reached have ones.

    Raises:
        QuantizeError: the file is no imatrix.
    """
    return read_imatrix("path", path)


def read_imatrix(argument: str, path: str | os.PathLike[str]) -> dict[str, NDArray[np.float32]]:
    """Like ``load_imatrix``, for an argument of another name."""
    name = _model_file.readable_file(argument, path, "an imatrix file")
    pointer = lib.guarded_imatrix_load(os.fsencode(name))
    if pointer == ffi.NULL:
        try:
            raise_caught(f"loading the imatrix {name}")
        except NativeError as error:
            raise QuantizeError(str(error)) from None
    with Handle(pointer, lib.guarded_imatrix_free):
        return {
            guarded_str(lib.guarded_imatrix_name(pointer, index), "reading an imatrix"): _values(
                pointer, index
            )
            for index in range(lib.guarded_imatrix_count(pointer))
        }


def imatrix_array(
    imatrix: Mapping[str, NDArray[np.float32]] | None,
) -> tuple[Array[llama_model_imatrix_data], list[Array[Any]]]:
    """An array of ``llama_model_imatrix_data``, terminated by an entry without a name, and its
    data.
    """
    if imatrix is None:
        return ffi.NULL, []
    if not isinstance(imatrix, Mapping):
        raise TypeError(f"imatrix must be a mapping or a path, got {imatrix!r}")
    array = ffi.new("struct llama_model_imatrix_data[]", len(imatrix) + 1)
    pointees: list[Array[Any]] = []
    for entry, (name, values) in zip(array, imatrix.items(), strict=False):
        if not isinstance(name, str):
            raise TypeError(f"imatrix must have names of tensors for keys, got {name!r}")
        text = ffi.new("char[]", utf8("imatrix", name))
        data = ffi.from_buffer("float[]", _checked(name, values))
        entry.name, entry.data, entry.size = text, data, len(data)
        pointees += [text, data]
    return array, pointees


def _values(pointer: Pointer[pyllama_imatrix], index: int) -> NDArray[np.float32]:
    size = ffi.new("size_t *")
    values = lib.guarded_imatrix_values(pointer, index, size)
    raise_if_caught("reading an imatrix")
    return np.array(np.frombuffer(ffi.buffer(values, 4 * size[0]), dtype=np.float32))


def _checked(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        array = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"imatrix[{name!r}] must be numbers, got {values!r}") from None
    if array.ndim != 1 or not array.size:
        raise ValueError(f"imatrix[{name!r}] must have one dimension, got shape {array.shape}")
    if not ((array >= 0) & (array <= MAX_IMPORTANCE)).all():
        raise ValueError(f"imatrix[{name!r}] must hold values from 0 to {MAX_IMPORTANCE:g}")
    return array
