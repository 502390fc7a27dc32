"""Whether a disk has room for a file."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapter.wording import file_size

SPARE = 64 * 2**20
"""Bytes to leave free on a disk."""


def too_little_room(folder: Path, n_bytes: int) -> str | None:
    """The size of what is free on a folder's disk, if that is too little; None if the bytes fit.

    Raises:
        OSError: the folder is not there, or cannot be read.
    """
    free = shutil.disk_usage(folder).free
    return file_size(free) if n_bytes + SPARE > free else None
