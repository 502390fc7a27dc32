"""A folder for files that are not complete, on the disk where they will be."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "pyllama-scratch.lock"
"""A file within such a folder, which its process has locked. Only folders that have one are ever
deleted: others with such a name are somebody's own."""

_UNLOCKED = 60.0
"""Seconds after which a folder whose file is not locked was left behind."""


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a folder for the block. Those that were left by processes that were killed are deleted.

    Raises:
        OSError: it cannot be made.
    """
    from filelock import FileLock

    with suppress(OSError):  # a folder may be writeable and not readable
        for left in parent.glob(f"{prefix}*"):
            _delete_if_left(left)
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as made:
        lock = FileLock(Path(made, _LOCK))
        try:
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError):  # where there are no locks, nobody deletes it
            Path(made, _LOCK).unlink(missing_ok=True)
        try:
            yield Path(made)
        finally:
            lock.release()


def _delete_if_left(folder: Path) -> None:
    from filelock import FileLock

    lock = folder / _LOCK
    with suppress(OSError, NotImplementedError):  # another process has the lock, or there are none
        if not folder.is_symlink() and time.time() - lock.stat().st_mtime > _UNLOCKED:
            with FileLock(lock, timeout=0):
                pass
            shutil.rmtree(folder)
