"""huggingface_hub's cache on this machine, which other programs share.

It has a folder for each repository: blobs named by their digest, and for each commit a tree of
links to them. HF_HOME and HF_HUB_CACHE say where it is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from adapter.models.hub.choice import TEMPLATE, Candidate, UnclearError, choose, is_safe
from adapter.models.hub.names import is_repo

_REVISION = "main"
_FOLDER = "models--"


def cache_folder() -> Path:
    """The folder with all repositories."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


class CachedRepository:
    """What the cache holds of a repository, if anything."""

    def __init__(self, repo: str) -> None:
        self.repo = repo
        folder = f"{_FOLDER}{repo.replace('/', '--')}"
        self.folder = cache_folder() / folder
        self._locks = cache_folder() / ".locks" / folder

    def blob(self, digest: str) -> Path:
        """The path of the content with this digest, whether it exists or not."""
        return self.folder / "blobs" / digest

    def lock(self, digest: str) -> Path:
        """The file that programs lock while they write a blob."""
        return self._locks / f"{digest}.lock"

    def path(self, commit: str, path: str) -> Path:
        """The path of a file of a commit, whether it exists or not."""
        return self.folder / "snapshots" / commit / path

    def snapshots(self) -> list[Path]:
        """The trees of the cached commits: that of the main branch first, then the newest.

        Raises:
            OSError: they cannot be read.
        """
        try:
            trees = [path for path in (self.folder / "snapshots").iterdir() if path.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        main = ""
        with suppress(OSError, UnicodeDecodeError):
            main = (self.folder / "refs" / _REVISION).read_text(encoding="ascii").strip()
        return sorted(trees, key=lambda path: (path.name != main, -path.stat().st_mtime))

    def find(self, tag: str | None) -> tuple[Path, Candidate] | None:
        """The tree that holds a model, and its files there; None if no tree does.

        Raises:
            UnclearError: the tag fits several models.
        """
        for tree in self.snapshots():
            paths = list(tree_files(tree))
            try:
                return tree, choose(paths, tag)
            except UnclearError as error:
                if len(error.choices) > 1 and (tag is None or "several" in str(error)):
                    raise
        return None

    def link(self, commit: str, path: str, digest: str) -> Path:
        """Put a blob into the tree of a commit, in one step, in place of what was there."""
        target, blob = self.path(commit, path), self.blob(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".linking-") as scratch:
            made = Path(scratch) / "file"
            try:
                # Relative, since the whole cache may be moved. The scratch folder is elsewhere, but
                # a link is only text until it is followed.
                made.symlink_to(os.path.relpath(blob, target.parent))
            except OSError:  # a file system without links, or Windows without the privilege
                try:
                    os.link(blob, made)
                except OSError:
                    shutil.copyfile(blob, made)
            os.replace(made, target)
        return target

    def set_main(self, commit: str) -> None:
        """Record the commit of the main branch."""
        refs = self.folder / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".linking-") as scratch:
            made = Path(scratch) / "ref"
            made.write_text(commit, encoding="ascii")
            os.replace(made, refs / _REVISION)


def template_beside(path: Path) -> Path | None:
    """The chat template of a model in the cache, found by the model's path there."""
    try:
        inside = path.relative_to(cache_folder()).parts
    except ValueError:  # it is not in the cache
        return None
    if len(inside) < 4 or inside[1] != "snapshots":
        return None
    for folder in path.parents[: len(inside) - 3]:
        if (folder / TEMPLATE).is_file():
            return folder / TEMPLATE
    return None


def repositories() -> Iterator[CachedRepository]:
    """Every model repository in the cache."""
    try:
        folders = sorted(cache_folder().iterdir())
    except OSError:
        return
    for folder in folders:
        repo = folder.name.removeprefix(_FOLDER).replace("--", "/", 1)
        if folder.name.startswith(_FOLDER) and is_repo(repo):
            yield CachedRepository(repo)


def tree_files(tree: Path) -> Iterator[str]:
    """The paths, with /, of the files in a tree whose content exists."""
    for folder, _, names in os.walk(tree):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(tree).as_posix()
            if is_safe(relative) and path.is_file():
                yield relative
