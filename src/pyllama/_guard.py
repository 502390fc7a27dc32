"""Turns what guarded calls caught into Python exceptions, and C strings into str."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from pyllama._native._binding import ffi, lib
from pyllama.errors import (
    ClosedError,
    LlamaError,
    NativeAssertionError,
    NativeError,
    NativeMemoryError,
)

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer

# What a guarded call that returns an integer returns if it caught something.
CAUGHT: int = lib.PYLLAMA_CAUGHT

_EXCEPTIONS: dict[int, type[LlamaError]] = {
    lib.PYLLAMA_CAUGHT_NOTHING: NativeError,
    lib.PYLLAMA_CAUGHT_EXCEPTION: NativeError,
    lib.PYLLAMA_CAUGHT_ASSERTION: NativeAssertionError,
    lib.PYLLAMA_CAUGHT_OUT_OF_MEMORY: NativeMemoryError,
    lib.PYLLAMA_CAUGHT_REFUSED: NativeMemoryError,
    lib.PYLLAMA_CAUGHT_ENDING: ClosedError,
}


def raise_caught(what: str) -> NoReturn:
    """Raise for the guarded call that just failed on this thread.

    Args:
        what: what was being done, as the beginning of the message.
    """
    kind = lib.pyllama_caught()
    detail = to_str(lib.pyllama_caught_message()) if kind else last_errors()
    raise caught_error(kind, detail, what)


def raise_if_caught(what: str) -> None:
    """Raise if the guarded call that just ended on this thread caught something.

    For calls whose return value on failure is also a valid result.
    """
    if lib.pyllama_caught():
        raise_caught(what)


def caught_error(kind: int, detail: str, what: str) -> LlamaError:
    """What a guarded call caught, by its pyllama_caught_kind, as an exception."""
    error = _EXCEPTIONS[kind](f"{what}: {detail or 'llama.cpp gave no reason'}")
    if isinstance(error, NativeMemoryError):
        error.nothing_changed = kind == lib.PYLLAMA_CAUGHT_REFUSED
    return error


def check(code: int, what: str) -> int:
    """Return what a guarded call returned, or raise what it caught."""
    if code == CAUGHT:
        raise_caught(what)
    return code


def last_errors() -> str:
    """The errors that llama.cpp logged during this thread's last guarded call."""
    lines = [line.strip() for line in to_str(lib.pyllama_last_errors()).splitlines()]
    return "; ".join(filter(None, lines)).replace(":; ", ": ")  # a line may introduce the next one


def to_str(text: Pointer[bytes]) -> str:
    """A C string as str. Invalid UTF-8 is replaced, since files may contain anything."""
    raw: bytes = ffi.string(text)
    return raw.decode("utf-8", "replace")


def guarded_str(text: Pointer[bytes], what: str) -> str:
    """A string of llama.cpp's as str. Raises what the call that returned it caught."""
    if text == ffi.NULL:
        raise_caught(what)
    return to_str(text)


def take_str(text: Pointer[bytes], what: str) -> str:
    """A C string that we own as str, freed. Raises what the call that made it caught."""
    if text == ffi.NULL:
        raise_caught(what)
    try:
        return to_str(text)
    finally:
        lib.pyllama_free(text)
