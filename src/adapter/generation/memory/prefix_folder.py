"""Saved beginnings of prompts in a folder, for later processes."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from adapter.generation.failures import note
from adapter.generation.memory.block_index import BlockIndex
from adapter.generation.memory.blocks import BlockHashes
from adapter.generation.memory.prefix_cache import SavedPrefix

logger = logging.getLogger(__name__)

MAGIC = b"pyllama prefix 1\n"
"""The first bytes of a file: its format and the format's version."""

DIGEST, HASH, COUNT = 32, 16, 4
"""Bytes of the checksum, of a block's hash, and of the number of hashes."""

SUFFIX = ".prefix"

_PARTIAL = re.compile(r"[0-9a-f]+-(\d+)\.partial|tmp\w{8}", re.ASCII)
"""Names of files that are being written. They contain the process id, except those of older
versions.
"""

STALE_SECONDS = 3600.0
"""After how many seconds an unfinished file counts as abandoned."""

RESCAN_SECONDS = 10.0
"""How often the folder is scanned for files of other processes, in seconds."""


class PrefixFolder:
    """States of sequences in files. The least recently used are removed for new ones.

    Several processes may use one folder at once. A file that is damaged or has another version is
    not used, and its prompt is computed again. llama.cpp reads the states as they are, so the
    folder must be as trusted as the program. Thread-safe.

    Args:
        folder: made if it is missing; see ``prepare``.
        key: what the bytes of a state depend on: the model and how it is computed. Each key has a
            folder of its own.
        max_bytes: the most that the files of this key may take together.

    Raises:
        OSError: the folder cannot be made, or belongs to another user.
    """

    def __init__(self, folder: Path, key: str, *, max_bytes: int) -> None:
        prepare(folder)
        self._folder = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        self._folder.mkdir(mode=0o700, exist_ok=True)
        _require_own(self._folder, shared=False)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._known: BlockIndex[Path] = BlockIndex()
        self._sizes: dict[Path, int] = {}
        self._unusable: set[Path] = set()
        self._scan_at = 0.0
        self._told = False
        self.look()

    def best(
        self, wanted: BlockHashes, *, more_than: int, exact: bool, most_bytes: int
    ) -> Path | None:
        """The file with most of these blocks, from the first on, if it has more than `n_known`.

        This does not access the disk.

        Args:
            exact: take only states that hold no other blocks.
            most_bytes: take only smaller files.
        """
        with self._lock:
            for count in range(self._known.find(wanted), more_than, -1):
                for path in self._known.owners(wanted[count - 1]):
                    is_exact = self._known.blocks(path)[-1] == wanted[count - 1]
                    if (is_exact or not exact) and self._sizes.get(path, 0) <= most_bytes:
                        return path
                if not exact:
                    return None
        return None

    def read(self, path: Path) -> SavedPrefix | None:
        """Read a file. One that cannot be used is forgotten, and removed if it is damaged."""
        try:
            content = path.read_bytes()
        except (OSError, MemoryError) as error:  # another process may have removed it
            note(logger, logging.DEBUG, "%s was not read: %s", path, error)
            self.forget(path)
            return None
        with suppress(OSError):
            os.utime(path)
        hashes, state = _parts(content)
        if not hashes:
            note(logger, logging.WARNING, "%s is damaged: computed anew", path)
            self.remove(path)
            return None
        return SavedPrefix(hashes, state)

    def add(self, prefix: SavedPrefix) -> None:
        """Write a state, unless it is there already or alone exceeds the budget."""
        path = self.path(prefix.hashes)
        head = len(prefix.hashes).to_bytes(COUNT, "little") + b"".join(prefix.hashes)
        n_bytes = len(MAGIC) + DIGEST + len(head) + len(prefix.state)
        if path in self._unusable or path.exists() or n_bytes > self._max_bytes:
            return
        partial = self._folder / f"{secrets.token_hex(8)}-{os.getpid()}.partial"
        try:
            self._make_room(n_bytes)
            with open(partial, "xb", opener=_private) as file:
                file.write(MAGIC + _digest(head, prefix.state) + head)
                file.write(prefix.state)
            os.replace(partial, path)  # complete or not at all, whoever else writes it
            with self._lock:
                self._sizes[path] = n_bytes
                self._known.put(path, prefix.hashes)
        except (OSError, MemoryError) as error:
            self._tell(error)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def path(self, hashes: BlockHashes) -> Path:
        """The file of a state with these blocks."""
        return self._folder / (hashes[-1].hex() + SUFFIX)

    def forget(self, path: Path) -> None:
        """Stop using a file."""
        with self._lock:
            self._known.put(path, ())
            self._unusable.add(path)

    def remove(self, path: Path) -> None:
        """Remove a useless file."""
        self.forget(path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            note(logger, logging.DEBUG, "%s was not removed: %s", path, error)
        else:
            self._unusable.discard(path)

    @property
    def is_to_be_looked_at(self) -> bool:
        """Whether other processes may have written files since look() was called."""
        return time.monotonic() >= self._scan_at

    def look(self) -> None:
        """Scan the folder for files that came and went."""
        self._scan_at = time.monotonic() + RESCAN_SECONDS
        files = self._files()
        found = {path: status.st_size for path, status in files if path.suffix == SUFFIX}
        with self._lock:
            known = set(self._known)
        new = {path: _hashes(path) for path in found.keys() - known - self._unusable}
        with self._lock:
            self._sizes = found
            for path in known - found.keys():
                self._known.put(path, ())
            for path, hashes in new.items():
                self._known.put(path, hashes)

    def _make_room(self, n_bytes: int) -> None:
        """Remove abandoned files, then the least recently used ones."""
        files = self._files()
        n_bytes += sum(status.st_size for _, status in files)
        stale = [(path, status) for path, status in files if _is_stale(path, status)]
        kept = [(path, status) for path, status in files if path.suffix == SUFFIX]
        kept.sort(key=lambda file: file[1].st_mtime_ns)
        for path, status in [*stale, *kept]:
            if path.suffix == SUFFIX and n_bytes <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            n_bytes -= status.st_size
            with self._lock:
                self._known.put(path, ())

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """The files of this package, finished or not."""
        found = []
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) or _PARTIAL.fullmatch(entry.name):
                    with suppress(OSError):  # another process removed it
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def _tell(self, error: BaseException) -> None:
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        note(
            *(logger, level),
            "beginnings of prompts are not kept in %s: %s. Make room there, or choose another "
            "prefix_folder for the pool; requests are answered all the same",
            *(self._folder, error),
        )


def prepare(folder: Path) -> None:
    """Make a folder that only this user can access, or check an existing one.

    On systems with Unix permissions it must belong to this user or to root, and others must not be
    able to replace its files. On Windows it inherits the access rights of its parent folder.

    Raises:
        NotADirectoryError: it is not a folder.
        PermissionError: others can change it.
        OSError: it cannot be made, or is not writable.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"prefix_folder must be a folder, got {folder}") from None
    _require_own(folder, shared=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            error.errno,
            f"nothing can be written into prefix_folder ({error.strerror}): make it writable, or "
            "choose another folder",
            str(folder),
        ) from None


def _require_own(folder: Path, *, shared: bool) -> None:
    """Refuse a folder whose files others can replace.

    Args:
        shared: whether it may be one in which everybody has files of their own, such as /tmp.
    """
    if not hasattr(os, "geteuid"):
        return
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{folder} belongs to the user with the id {status.st_uid}: saved prompts are read as "
            "they are, so choose a prefix_folder of your own"
        )
    if status.st_mode & stat.S_IWOTH and not (shared and status.st_mode & stat.S_ISVTX):
        raise PermissionError(
            f"everybody can write into {folder}: saved prompts are read as they are, so run "
            f"chmod o-w {folder}, or choose another prefix_folder"
        )


def _is_stale(path: Path, status: os.stat_result) -> bool:
    """Whether an unfinished file is abandoned."""
    found = _PARTIAL.fullmatch(path.name)
    if not found:
        return False
    if time.time() - status.st_mtime > STALE_SECONDS:
        return True
    process = found[1]
    if process is None or not hasattr(os, "geteuid"):  # on Windows, asking would end that process
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _hashes(path: Path) -> BlockHashes:
    """The blocks that a file's header lists; none for a file of another format."""
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
    return _split(hashes)


def _parts(content: bytes) -> tuple[BlockHashes, bytes]:
    """The blocks and the state in a file; None if it is damaged."""
    view = memoryview(content)
    begin = len(MAGIC) + DIGEST
    head = begin + COUNT + HASH * int.from_bytes(view[begin : begin + COUNT], "little")
    if not content.startswith(MAGIC) or not begin + COUNT < head < len(content):
        return (), b""
    if view[len(MAGIC) : begin] != _digest(view[begin:head], view[head:]):
        return (), b""
    return _split(content[begin + COUNT : head]), content[head:]


def _split(hashes: bytes) -> BlockHashes:
    return tuple(hashes[begin : begin + HASH] for begin in range(0, len(hashes), HASH))


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(part)
    return digest.digest()
