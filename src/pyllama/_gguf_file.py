"""Reads the header of a GGUF file, without its weights."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from pyllama._native._binding import ffi, lib
from pyllama.ggml_type import GGML_TYPES, row_size

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer

# gguf_type: how a scalar is stored. A string and an array are 8 and 9.
_SCALARS = {
    code: struct.Struct("=" + form)
    for code, form in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32  # of the tensors, unless general.alignment says otherwise

_TYPE_NAMES = {number: name for name, number in GGML_TYPES.items()}

_LENGTH = struct.Struct("=Q")
_TYPE = struct.Struct("=I")

MAX_ARRAY_READ = (
    1024  # longest array of numbers that is read: one for each layer, but no vocabulary
)


class DamagedFile(ValueError):
    """The file is not valid GGUF, or contains something that would crash llama.cpp."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it. The first dimension is the innermost."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def type_name(self) -> str:
        return _TYPE_NAMES.get(self.type, "?")

    @property
    def size(self) -> int:
        """Its bytes; 0 if its type or shape is none that ggml has."""
        if self.type_name not in GGML_TYPES or not self.shape or min(self.shape) < 0:
            return 0
        try:
            return row_size(self.type_name, self.shape[0]) * prod(self.shape[1:])
        except ZeroDivisionError:  # a type that ggml removed
            return 0


@dataclass(frozen=True)
class Header:
    """The metadata and the tensors of a file.

    ``metadata`` holds scalars, strings, and short arrays of numbers as tuples. Another array of n
    elements is ``range(n)``.
    """

    metadata: Mapping[str, Any]
    tensors: Sequence[Tensor]


def read_header(file: str | int, offset: int = 0) -> Header:
    """Read the header of a file, without its weights.

    Args:
        file: its path, or a descriptor, which stays open.
        offset: where in the file the GGUF begins.

    Raises:
        DamagedFile: it is not valid GGUF, or ends before its last tensor does.
    """
    with (
        open(file, "rb", closefd=isinstance(file, str)) as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ffi.from_buffer("uint8_t[]", data) as pointer,
    ):
        return _Reader(data, pointer, offset).read()


class _Reader:
    def __init__(self, data: mmap.mmap, pointer: Pointer[int], begin: int) -> None:
        self._data = data
        self._pointer = pointer
        self._size = len(data)
        self._begin = begin
        self._at = begin + 4  # after the magic number
        self._what = "its counts"

    def read(self) -> Header:
        try:
            version = self._scalar(_TYPE)
            if version not in (2, 3):
                raise DamagedFile(f"it is GGUF of version {version}; llama.cpp reads 2 and 3")
            n_tensors, n_keys = self._scalar(_LENGTH), self._scalar(_LENGTH)
            # Each takes some bytes at least, which bounds the count by the file's size.
            for what, count, least in ("keys", n_keys, 13), ("tensors", n_tensors, 24):
                if count * least > self._size:
                    raise DamagedFile(
                        f"it says that it holds {count} {what}, in {self._size} bytes"
                    )
            metadata = dict(self._key(index) for index in range(n_keys))
            tensors = [self._tensor(index) for index in range(n_tensors)]
        except struct.error:
            raise DamagedFile(
                f"it ends at byte {self._size}, inside {self._what}; it may be incomplete"
            ) from None
        self._check_end(metadata.get("general.alignment", _ALIGNMENT), tensors)
        return Header(metadata, tensors)

    def _check_end(self, alignment: object, tensors: Sequence[Tensor]) -> None:
        """Refuse a file that was cut. llama.cpp checks everything else about the places."""
        last = max(tensors, key=lambda tensor: tensor.offset + tensor.size, default=None)
        if last is None:
            return
        end = self._at + last.offset + last.size
        if isinstance(alignment, int) and alignment > 0 and not self._begin % alignment:
            end += -self._at % alignment
        if end > self._size:
            raise DamagedFile(
                f"it has {self._size} bytes, and its tensors end at byte {end}: it is incomplete; "
                "download it again"
            )

    def _scalar(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return value

    def _string(self) -> str:
        length = self._scalar(_LENGTH)
        end = self._at + length
        if end > self._size:
            raise DamagedFile(
                f"{self._what} has a text of {length} bytes at byte {self._at - 8}, in a file of "
                f"{self._size}; it may be incomplete"
            )
        text = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end
        return text

    def _key(self, index: int) -> tuple[str, Any]:
        self._what = f"key {index}"
        name = self._string()
        self._what = f"key {name!r}"
        kind = self._scalar(_TYPE)
        if kind == _STRING:
            return name, self._string()
        if kind == _ARRAY:
            return name, self._array()
        return name, self._scalar(self._form(kind))

    def _array(self) -> Sequence[Any]:
        kind = self._scalar(_TYPE)
        count = self._scalar(_LENGTH)
        if kind == _STRING:
            end = lib.pyllama_end_of_strings(self._pointer, self._size, self._at, count)
        else:
            form = self._form(kind)
            end = self._at + count * form.size
        if not 0 <= end <= self._size:
            raise DamagedFile(
                f"{self._what} has {count} elements at byte {self._at}, in a file of "
                f"{self._size} bytes; it may be incomplete"
            )
        begin, self._at = self._at, end
        if kind == _STRING or count > MAX_ARRAY_READ:
            return range(count)
        return struct.unpack_from(f"={count}{form.format[-1]}", self._data, begin)

    def _form(self, kind: int) -> struct.Struct:
        try:
            return _SCALARS[kind]
        except KeyError:
            raise DamagedFile(f"{self._what} is of type {kind}, which GGUF does not have") from None

    def _tensor(self, index: int) -> Tensor:
        self._what = f"tensor {index}"
        name = self._string()
        self._what = f"tensor {name!r}"
        n_dims = self._scalar(_TYPE)
        if n_dims > 4:
            raise DamagedFile(f"{self._what} has {n_dims} dimensions; there are 4 at most")
        shape = struct.unpack_from(f"={n_dims}q", self._data, self._at)
        self._at += 8 * n_dims
        tensor_type = self._scalar(_TYPE)
        return Tensor(name, shape, tensor_type, self._scalar(_LENGTH))
