"""The types that tensors are stored in, by ggml's own names (enum ggml_type)."""

from __future__ import annotations

from typing import Literal, get_args

from pyllama._guard import to_str
from pyllama._native._binding import lib

#: The types that llama.cpp can write when it quantizes.
GgmlType = Literal[
    "f32",
    "f16",
    "bf16",
    "q1_0",
    "q2_0",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "q2_K",
    "q3_K",
    "q4_K",
    "q5_K",
    "q6_K",
    "iq1_s",
    "iq1_m",
    "iq2_xxs",
    "iq2_xs",
    "iq2_s",
    "iq3_xxs",
    "iq3_s",
    "iq4_nl",
    "iq4_xs",
    "tq1_0",
    "tq2_0",
    "mxfp4",
    "nvfp4",
]

# ggml's names of all its types, including those that only occur during a computation.
GGML_TYPES: dict[str, int] = {
    to_str(lib.ggml_type_name(number)): number for number in range(lib.GGML_TYPE_COUNT)
}

WRITABLE_TYPES: dict[str, int] = {name: GGML_TYPES[name] for name in get_args(GgmlType)}


def row_size(name: str, n: int) -> int:
    """Bytes that n values of a type take (``ggml_row_size``)."""
    number = GGML_TYPES[name]
    size: int = lib.ggml_type_size(number) * n // lib.ggml_blck_size(number)
    return size
