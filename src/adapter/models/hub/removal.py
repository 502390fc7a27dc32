"""Removes models from the cache."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from adapter.models.hub.cache import CachedRepository, tree_files
from adapter.models.hub.choice import candidates


def removable(cached: CachedRepository, tag: str | None) -> list[Path]:
    """The files that belong only to this model, in every tree that has it. The first part comes
    first.

    Raises:
        UnclearError: several models fit the name.
        OSError: the cache cannot be read.
    """
    found = cached.find(tag)
    if found is None:
        return []
    stem, files = found[1].stem, []
    for tree in cached.snapshots():
        models = candidates(tree_files(tree))
        for model in models:
            if model.stem != stem:
                continue
            files += [tree / path for path in model.files]
            shared = {path for one in models if one.stem != stem for path in one.extras}
            files += [tree / path for path in model.extras if path not in shared]
    return files


def remove(cached: CachedRepository, files: list[Path]) -> None:
    """Remove files from the trees, and from the disk what no tree refers to any more.

    Raises:
        OSError: a file cannot be removed. Another call continues.
    """
    blobs = {path.resolve() for path in files if path.is_symlink()}
    for path in files:
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder in (cached.folder / "snapshots", cached.folder):
                break
            with suppress(OSError):  # there is more in it
                folder.rmdir()
    kept = set()
    for tree in cached.snapshots():
        kept |= {Path(os.path.realpath(tree / path)) for path in tree_files(tree)}
    for blob in blobs - kept:
        if blob.parent == cached.folder.resolve() / "blobs":
            blob.unlink(missing_ok=True)
    if not cached.snapshots():
        shutil.rmtree(cached.folder)
