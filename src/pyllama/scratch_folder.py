"""A folder for files that are not complete, on the disk where they will be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# filelock, shutil and tempfile are imported where they are used: ``import pyllama`` does without.

_LOCK = "pyllama-scratch.lock"
"""A file within such a folder, which its process has locked. Only folders that have one are ever
deleted: others with such a name are somebody's own."""

_UNLOCKED = 60.0
"""Seconds after which a folder whose file is not locked was left behind."""


@contextmanager
def scratch_folder(parent: Path, prefix: str = ".pyllama-") -> Iterator[Path]:
    """Make a folder for the block. Those that were left by processes that were killed are deleted.

    Raises:
        OSError: it cannot be made.
    """
    import shutil
    import tempfile

    from filelock import FileLock

    with suppress(OSError):  # a folder may be writeable and not readable
        for left in parent.glob(f"{prefix}*"):
            _delete_if_left(left)
    made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        lock = FileLock(made / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError):  # where there are no locks, nobody deletes it
            (made / _LOCK).unlink(missing_ok=True)
        try:
            files = made / "files"
            files.mkdir()
            yield files
        finally:
            lock.release()
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _delete_if_left(folder: Path) -> None:
    import shutil

    from filelock import FileLock

    lock = folder / _LOCK
    with suppress(OSError, NotImplementedError):  # another process has the lock, or there are none
        if folder.is_symlink() or lock.is_symlink():  # whose end may be somebody's own
            return
        if time.time() - lock.stat().st_mtime > _UNLOCKED:
            with FileLock(lock, timeout=0):
                pass
            shutil.rmtree(folder)
