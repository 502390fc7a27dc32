"""A folder for files that are not complete, on the disk where they will be."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"
_UNLOCKED = 60.0
"""Seconds after which a folder without a lock is nobody's: it is locked as soon as it is made."""


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder for the block. Those that were left by processes that were killed are deleted.

    Raises:
        OSError: it cannot be made.
    """
    from filelock import FileLock

    for left in parent.glob(f"{prefix}*"):
        _delete_if_left(left)
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made:
        lock = FileLock(Path(made, _LOCK))
        with suppress(OSError, NotImplementedError):  # a file system without locks
            lock.acquire(timeout=0)
        try:
            yield Path(made)
        finally:
            lock.release()


def _delete_if_left(folder: Path) -> None:
    from filelock import FileLock

    with suppress(OSError, NotImplementedError):  # another process has the lock, or there are none
        if time.time() - folder.stat().st_mtime > _UNLOCKED:
            with FileLock(folder / _LOCK, timeout=0):
                pass
            shutil.rmtree(folder)
