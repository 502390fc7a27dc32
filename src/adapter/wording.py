"""How counts, and errors of the operating system, read in a message."""

from __future__ import annotations

import os


def counted(number: int, noun: str) -> str:
    """A number of things, in words such as "1 part" and "2 parts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def short_count(number: int) -> str:
    """A count of parameters in the form of model names, such as 135M; nothing for 0."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number or "")


def file_size(n_bytes: int) -> str:
    """A size in powers of 1000, as file managers and hubs show it."""
    size = float(n_bytes)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def reason_of(error: OSError) -> str:
    """What the operating system says, and of which file, without Python's number."""
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    name = error.filename
    return f"{name if isinstance(name, int) else os.fsdecode(name)}: {error.strerror}"
