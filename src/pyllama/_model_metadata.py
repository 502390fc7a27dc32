"""What llama.h reports about a model as text."""

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
    """Keys and values as texts. Arrays are left out."""
    return {
        read_string(lib.guarded_model_meta_key, pointer, index): read_string(
            lib.guarded_model_meta_val, pointer, index
        )
        for index in range(lib.llama_model_meta_count(pointer))
    }


class MetadataInUse:
    """The metadata of a model's file, with the given overrides.

    Args:
        file: llama.cpp's metadata, which is the file's even with overrides.
        given: overrides of keys.
    """

    def __init__(
        self, file: Mapping[str, str], given: Mapping[str, bool | int | float | str] | None
    ) -> None:
        self._file = file
        # As llama.cpp writes values of a file.
        self._all = {
            **file,
            **{
                key: str(value).lower() if isinstance(value, bool) else str(value)
                for key, value in (given or {}).items()
            },
        }
        #: The model's architecture, such as ``"llama"``.
        self.architecture = self._all.get("general.architecture", "")

    def items(self) -> list[tuple[str, str]]:
        """All keys with their values, in order."""
        return sorted(self._all.items())

    def text(self, name: str) -> str | None:
        """A setting of the architecture, such as ``"attention.causal"``; None if it is not set."""
        return self._all.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: int) -> int:
        """A setting that is an integer. llama.cpp ignores overrides that are not."""
        for metadata in (self._all, self._file):
            if (value := metadata.get(f"{self.architecture}.{name}", "")).isdecimal():
                return int(value)
        return default


def classifier_labels(pointer: Pointer[llama_model]) -> tuple[str, ...]:
    """The labels of its outputs, in order."""
    labels = []
    # Models that are no classifiers have 1 output without a label.
    for index in range(lib.llama_model_n_cls_out(pointer)):
        label = lib.llama_model_cls_label(pointer, index)
        if label != ffi.NULL:
            labels.append(to_str(label))
    return tuple(labels)
