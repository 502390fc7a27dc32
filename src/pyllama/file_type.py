"""What the tensors of a file are quantized to, by llama.cpp's names (enum llama_ftype)."""

from __future__ import annotations

from typing import Literal, cast

from pyllama._native._binding import lib

#: Mixtures of types that llama.cpp can write; ``"NVFP4"`` it can only read.
FileType = Literal[
    "F32",
    "F16",
    "BF16",
    "Q1_0",
    "Q2_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q2_K_S",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ2_M",
    "IQ3_XXS",
    "IQ3_XS",
    "IQ3_S",
    "IQ3_M",
    "IQ4_NL",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
    "MXFP4_MOE",
    "NVFP4",
]

_ALL, _MOSTLY = "LLAMA_FTYPE_ALL_", "LLAMA_FTYPE_MOSTLY_"

FILE_TYPES: dict[str, int] = {
    name.removeprefix(_ALL).removeprefix(_MOSTLY): getattr(lib, name)
    for name in dir(lib)
    if name.startswith((_ALL, _MOSTLY))
}
_NAMES = {number: name for name, number in FILE_TYPES.items()}


def file_type(number: int) -> FileType | None:
    """The name of a ``llama_ftype``, which may be marked as guessed from the tensors."""
    return cast("FileType | None", _NAMES.get(number & ~lib.LLAMA_FTYPE_GUESSED))
