"""What a child process must survive or tell of; see fuzzing.run_in_child."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pyllama


def nothing(path: Path) -> None:
    pass


def refuse(path: Path) -> None:
    raise pyllama.ModelLoadError(str(path))


def segfault(path: Path) -> None:
    ctypes.string_at(0)


def hang(path: Path) -> None:
    threading.Event().wait()


def eat_memory(path: Path) -> None:
    bytearray(1 << 40)


def raise_key_error(path: Path) -> None:
    raise KeyError(path)
