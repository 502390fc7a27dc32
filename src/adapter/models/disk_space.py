"""Whether a disk has room for a file."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapter.wording import file_size

SPARE = 64 * 2**20
"""Bytes to leave free on a disk."""


def too_little_room(folder: Path, n_bytes: int) -> str | None:
    """What is free on a folder's disk, in words, if that is too little; None if the bytes fit.

    Raises:
        OSError: the folder is not there, or cannot be read.
    """
    free = shutil.disk_usage(folder).free
    if n_bytes + SPARE <= free:
        return None
    spare = f", of which {file_size(SPARE)} stay unused" if n_bytes <= free else ""
    return f"{file_size(free)} free{spare}"
