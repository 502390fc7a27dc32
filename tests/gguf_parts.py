"""GGUF files taken apart, for tests that put them together wrongly."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import gguf
from fuzzing import EXTREMES, Named

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = 32


@dataclass(frozen=True)
class Field:
    """A number of the header: what it means, where it stands, how wide it is."""

    name: str
    offset: int
    width: int


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape, the number of its element type, and its bytes."""

    shape: tuple[int, ...]
    type: int
    data: bytes


class Parts:
    """The keys and tensors of a file, each with its bytes, and the numbers of its header."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self.fields: list[Field] = []
        self._number("version", 4)
        n_tensors = self._number("count of tensors", 8)
        n_keys = self._number("count of keys", 8)
        self.keys = dict(self._key(index) for index in range(n_keys))
        described = [self._tensor(index) for index in range(n_tensors)]
        #: Where the tensors' data begins.
        self.header_size = self._at + -self._at % _ALIGNMENT
        self.tensors = {}
        for name, shape, kind, offset in described:
            begin = self.header_size + offset
            end = begin + size_of(shape, kind)
            self.tensors[name] = Tensor(shape, kind, data[begin:end])

    def to_bytes(self) -> bytes:
        header = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        header += b"".join(self.keys.values())
        body = bytearray()
        for name, tensor in self.tensors.items():
            n_dims = len(tensor.shape)
            header += _text(name) + struct.pack(f"<I{n_dims}Q", n_dims, *tensor.shape)
            header += struct.pack("<IQ", tensor.type, len(body))
            body += tensor.data + bytes(-len(tensor.data) % _ALIGNMENT)
        return header + bytes(-len(header) % _ALIGNMENT) + bytes(body)

    def with_key(self, name: str, kind: int, value: object) -> bytes:
        """The file with a key set; for an array the kind is that of its elements."""
        return self._changed(self.keys, name, _text(name) + _value(kind, value))

    def with_tensor(self, name: str, tensor: Tensor) -> bytes:
        """The file with another tensor in the place of one."""
        return self._changed(self.tensors, name, tensor)

    def without_a_part(self) -> Iterator[Named]:
        """The file without one of its keys or tensors."""
        for parts in (self.keys, self.tensors):
            for name in list(parts):
                yield f"without {name}", self._changed(parts, name, None)

    def wrong_numbers(self) -> Iterator[Named]:
        """The file with one number of its header wrong, by a little or very much."""
        for field in self.fields:
            end = field.offset + field.width
            value = int.from_bytes(self._data[field.offset : end], "little")
            near = {(value + by) % 2 ** (8 * field.width) for by in (-1, 1, 7, value)}
            for wrong in sorted({*EXTREMES[field.width], *near, value // 2} - {value}):
                number = wrong.to_bytes(field.width, "little")
                damaged = self._data[: field.offset] + number + self._data[end:]
                yield f"{field.name}: {wrong:#x}, not {value:#x}", damaged

    def _changed(self, parts: dict, name: str, part: object) -> bytes:
        before = dict(parts)
        if part is None:
            del parts[name]
        else:
            parts[name] = part
        try:
            return self.to_bytes()
        finally:
            parts.clear()
            parts.update(before)

    def _number(self, name: str, width: int) -> int:
        self.fields.append(Field(name, self._at, width))
        self._at += width
        return int.from_bytes(self._data[self._at - width : self._at], "little")

    def _string(self, name: str) -> str:
        length = self._number(f"length of {name}", 8)
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _key(self, index: int) -> tuple[str, bytes]:
        begin = self._at
        name = self._string(f"key {index}")
        kind = self._number(f"type of {name}", 4)
        if kind == ARRAY:
            self._array(name)
        elif kind == STRING:
            self._string(name)
        else:
            self._number(name, struct.calcsize(_FORMS[kind]))
        return name, self._data[begin : self._at]

    def _array(self, name: str) -> None:
        kind = self._number(f"element type of {name}", 4)
        count = self._number(f"count of {name}", 8)
        for index in range(count):
            recorded = len(self.fields)
            if kind == STRING:
                self._string(f"{name}[{index}]")
            else:
                self._number(f"{name}[{index}]", struct.calcsize(_FORMS[kind]))
            if 2 < index < count - 1:
                del self.fields[recorded:]  # as good as those before

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(f"name of tensor {index}")
        n_dims = self._number(f"dimensions of {name}", 4)
        shape = tuple(self._number(f"dimension {dim} of {name}", 8) for dim in range(n_dims))
        kind = self._number(f"type of {name}", 4)
        return name, shape, kind, self._number(f"offset of {name}", 8)


def size_of(shape: tuple[int, ...], kind: int) -> int:
    """The bytes that a tensor takes."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    elements = 1
    for dimension in shape:
        elements *= dimension
    return elements // block * size


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind: int, value: object) -> bytes:
    if isinstance(value, list):
        elements = (_scalar(kind, element) for element in value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(elements)
    return struct.pack("<I", kind) + _scalar(kind, value)


def _scalar(kind: int, value: object) -> bytes:
    return _text(value) if kind == STRING else struct.pack(f"<{_FORMS[kind]}", value)
