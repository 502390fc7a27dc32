"""How counts, and errors of the operating system, read in a message."""

from __future__ import annotations

import os


def counted(number: int, noun: str) -> str:
    """A number of things, in words such as "1 part" and "2 parts"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reason_of(error: OSError) -> str:
    """What the operating system says, and of which file, without Python's number."""
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    name = error.filename
    return f"{name if isinstance(name, int) else os.fsdecode(name)}: {error.strerror}"
