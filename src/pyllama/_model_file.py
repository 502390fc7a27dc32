"""Files that models are read from and written to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyllama._arguments import INT32_MAX, integer
from pyllama.errors import ModelLoadError
from pyllama.scratch_folder import scratch_folder

_INT64_MAX = 2**63 - 1


def path_text(name: str, path: str | os.PathLike[str]) -> str:
    """The path as str."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str or a path, got {path!r}")
    if "\0" in text:
        raise ValueError(f"{name} must not contain a null character, got {text!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{name} is no name that a file can have: {text!r}") from None
    return text


def readable_file(name: str, path: str | os.PathLike[str], kind: str) -> str:
    """The path as str, if it names a readable file."""
    text = path_text(name, path)
    if os.path.isdir(text):
        raise IsADirectoryError(f"{name} must be {kind}, but {text} is a folder")
    with open(text, "rb"):
        return text


def readable_gguf(path: str | os.PathLike[str], name: str = "path") -> str:
    """The path as str, if it names a file that begins like GGUF."""
    text = readable_file(name, path, "a GGUF file")
    with open(text, "rb") as file:
        require_magic(file.read(BEGINNING), text)
    return text


BEGINNING = 64  # bytes that identify a file's type

_LFS = b"version https://git-lfs"
_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt", b"ggla")
_CONVERT = "convert the model to GGUF with llama.cpp's convert_hf_to_gguf.py"


def require_magic(beginning: bytes, name: str) -> None:
    """Refuse a file that is not GGUF in this machine's byte order. The error says what it is."""
    if beginning[:4] != b"GGUF":
        what, remedy = _other_kind(beginning)
        raise ModelLoadError(f"{name} is no GGUF file: it {what}; {remedy}.")
    version = beginning[4:8]
    if version in (b"\0\0\0\2", b"\0\0\0\3") and sys.byteorder == "little":
        raise ModelLoadError(
            f"{name} is a GGUF file in big-endian byte order, and this machine's is little-endian: "
            "convert it with gguf-py's gguf_convert_endian.py, or get the usual one."
        )


def _other_kind(beginning: bytes) -> tuple[str, str]:
    """What a file is by its first bytes, and what to do about it."""
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if beginning.startswith(_LFS):
        return (
            "is the pointer that Git LFS leaves in place of a large file",
            "run 'git lfs pull' in the repository, or download the file itself",
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "is a web page, as a download gives where it needs a login or the address is wrong",
            "open it to see what it says, and download the file again",
        )
    if len(beginning) > 9 and beginning[8:9] == b"{" and beginning[5:8] == b"\0\0\0":
        return "is in safetensors format", _CONVERT
    if beginning.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "is a checkpoint of PyTorch or an archive", f"unpack it if need be, and {_CONVERT}"
    if beginning.startswith(_GGML):
        return (
            "is a file in GGML, the format before GGUF",
            "get the model as GGUF; llama.cpp reads the old format no more",
        )
    if start.startswith(b"{"):
        return "is JSON", "give the file that holds the weights"
    if not beginning:
        return "is empty", "download it again"
    return f"begins with {beginning[:4]!r}, not b'GGUF'", "give the path of a model in GGUF format"


def descriptor_and_offset(file: BinaryIO | int, offset: int | None) -> tuple[int, int]:
    """The descriptor of an open file, and where in it to begin."""
    if isinstance(file, int):
        descriptor = integer("file", file, 0, INT32_MAX)
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
    else:
        try:
            descriptor, position = file.fileno(), file.tell()
        except (AttributeError, OSError, ValueError) as error:
            raise TypeError(
                "file must be an open, seekable file of the operating system or its descriptor, "
                f"got {file!r}: {error}. Model.from_bytes() takes bytes"
            ) from None
    return descriptor, integer("offset", position if offset is None else offset, 0, _INT64_MAX)


@contextlib.contextmanager
def position_kept(descriptor: int) -> Iterator[None]:
    """Put a descriptor's position back at the end."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        yield
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def beginning_at(descriptor: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, BEGINNING)


@contextlib.contextmanager
def anonymous_file(data: Any) -> Iterator[BinaryIO]:
    """A file without a name that holds the data."""
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"data must be a contiguous buffer of bytes, got {type(data)}") from None
    with _new_anonymous_file() as file:
        file.write(view)
        file.flush()
        yield file


def _new_anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("pyllama"), "w+b")
    import tempfile  # this may take a while

    return cast("BinaryIO", tempfile.TemporaryFile())


def writable_path(name: str, path: str | os.PathLike[str]) -> str:
    """The path as str, if a file can stand there."""
    text = path_text(name, path)
    if not os.path.basename(text) or os.path.isdir(text):
        raise IsADirectoryError(f"{name} must be the path of a file to write, got {text!r}")
    folder = os.path.dirname(text) or os.curdir
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{name} lies in a folder that does not exist: {text!r}")
    return text


@contextlib.contextmanager
def replaced_when_done(target: str) -> Iterator[str]:
    """A path to write to. The file replaces the target on success, and is removed otherwise."""
    with scratch_folder(Path(target).parent) as folder:
        temporary = os.path.join(folder, os.path.basename(target))
        yield temporary
        os.replace(temporary, target)
