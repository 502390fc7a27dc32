"""What llama.h tells about a model in texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyllama._guard import check, to_str
from pyllama._native._binding import ffi, lib

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_model


def read_string(getter: Callable[..., int], *arguments: Any) -> str:
    """What a llama.h function writes into a buffer, whatever its length."""
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        length = check(getter(*arguments, buffer, size), "reading metadata")
        if length < size:
            return to_str(buffer) if length >= 0 else ""
        size = length + 1


def metadata_of(pointer: Pointer[llama_model]) -> dict[str, str]:
    """Keys and values as texts; arrays are left out."""
    return {
        read_string(lib.guarded_model_meta_key, pointer, index): read_string(
            lib.guarded_model_meta_val, pointer, index
        )
        for index in range(lib.llama_model_meta_count(pointer))
    }


def as_metadata(overrides: Mapping[str, bool | int | float | str]) -> dict[str, str]:
    """Values as llama.cpp writes those of a file."""
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in overrides.items()
    }


def classifier_labels(pointer: Pointer[llama_model]) -> tuple[str, ...]:
    """The labels of its outputs, in order."""
    labels = []
    # Its number of outputs is 1 for models that are no classifiers; those have no label.
    for index in range(lib.llama_model_n_cls_out(pointer)):
        label = lib.llama_model_cls_label(pointer, index)
        if label != ffi.NULL:
            labels.append(to_str(label))
    return tuple(labels)
