"""Saved beginnings of prompts in a folder, for the processes that come after."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path

from adapter.generation.blocks import BlockHashes
from adapter.generation.prefix_cache import SavedPrefix

logger = logging.getLogger(__name__)

MAGIC = b"pyllama prefix 1\n"
"""What a file begins with: its form, and the number of that form."""

DIGEST, HASH, COUNT = 32, 16, 4
"""Bytes of the checksum, of a block's hash, and of the number of hashes."""

SUFFIX = ".prefix"


class PrefixFolder:
    """States of sequences in files, the least recently used of which make room for new ones.

    Several processes may use one folder at once. A file that is damaged, or of another version, is
    not used: what it held is computed anew. States are llama.cpp's own and are set as they are, so
    the folder must be as trusted as the program.

    :param folder: made if it is missing.
    :param key: what the bytes of a state depend on: the model and how it is computed. States of
        other keys lie in folders of their own.
    :param max_bytes: how much the files of this key may take together.

    :raises OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, key: str, *, max_bytes: int) -> None:
        self._folder = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._known: dict[Path, BlockHashes] = {}

    def find(self, hashes: BlockHashes, *, more_than: int, whole: bool) -> SavedPrefix | None:
        """The state with most of these blocks, from the first on, if it has more than so many.

        :param whole: take states only that hold none but these blocks.
        """
        self._look()
        blocks = {block: count for count, block in enumerate(hashes, 1)}
        found = [
            (max(blocks.get(block, 0) for block in (held[-1:] if whole else held)), path)
            for path, held in self._known.items()
        ]
        for count, path in sorted(found, reverse=True):
            if count <= more_than:
                break
            state = self._read(path)
            if state is not None:
                return SavedPrefix(self._known[path], state)
        return None

    def add(self, prefix: SavedPrefix) -> None:
        """Write a state, unless it is there already or larger than all that may be kept."""
        path = self._folder / (prefix.hashes[-1].hex() + SUFFIX)
        rest = len(prefix.hashes).to_bytes(COUNT, "little") + b"".join(prefix.hashes) + prefix.state
        if path.exists() or len(rest) > self._max_bytes:
            return
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                file.write(MAGIC + _digest(rest) + rest)
            os.replace(file.name, path)  # whole or not at all, whoever else writes it
            self._make_room()
        except OSError as error:
            logger.warning("a beginning of a prompt was not kept: %s", error)

    def _look(self) -> None:
        """Take note of files that came and went."""
        there = set(self._folder.glob("*" + SUFFIX))
        for path in self._known.keys() - there:
            del self._known[path]
        for path in there - self._known.keys():
            hashes = _hashes(path)
            if hashes:
                self._known[path] = hashes

    def _read(self, path: Path) -> bytes | None:
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:  # another process made room
            return None
        digest, rest = content[len(MAGIC) :][:DIGEST], content[len(MAGIC) + DIGEST :]
        if _digest(rest) != digest:
            logger.warning("%s is damaged: computed anew", path)
            path.unlink(missing_ok=True)
            return None
        return rest[COUNT + HASH * len(self._known[path]) :]

    def _make_room(self) -> None:
        files = [(path, path.stat()) for path in self._folder.glob("*" + SUFFIX)]
        files.sort(key=lambda file: file[1].st_mtime_ns)
        n_bytes = sum(stat.st_size for _, stat in files)
        while files and n_bytes > self._max_bytes:
            path, stat = files.pop(0)
            path.unlink(missing_ok=True)
            n_bytes -= stat.st_size


def _hashes(path: Path) -> BlockHashes:
    """The blocks that a file says it holds; none for a file of another form."""
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return ()
            file.seek(DIGEST, os.SEEK_CUR)
            count = int.from_bytes(file.read(COUNT), "little")
            if count * HASH > path.stat().st_size:
                return ()
            hashes = file.read(count * HASH)
    except OSError:
        return ()
    return tuple(hashes[begin : begin + HASH] for begin in range(0, len(hashes), HASH))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()
