"""Reads and writes saved beginnings of prompts on a thread of its own, so that nobody waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from adapter.generation.blocks import BlockHashes
from adapter.generation.failures import note
from adapter.generation.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.prefix_folder import PrefixFolder

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 4
"""States that wait to be written. More are not kept: each takes memory."""


class Reading:
    """A file that is being read; what waits for it, waits as for a prompt that is computed."""

    def __init__(self) -> None:
        self.state: Literal["prefilling", "ended"] = "prefilling"


class PrefixFiles:
    """The files of a folder. For the scheduler's thread, which it never keeps waiting.

    :param folder: the files.
    :param saved: where states go that were read.
    :param tell: called, on another thread, when one is there.
    """

    def __init__(
        self, folder: PrefixFolder, saved: PrefixCache, tell: Callable[[], object]
    ) -> None:
        self._folder = folder
        self._saved = saved
        self._tell = tell
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._readings: dict[Path, Reading] = {}
        self._unwritten = threading.Semaphore(MOST_UNWRITTEN)

    def fetch(self, wanted: BlockHashes, *, more_than: int, whole: bool) -> Reading | None:
        """Begin to read the file with most of these blocks, if one has more than so many."""
        if self._folder.is_to_be_looked_at:
            self._do(self._folder.look)
        path = self._folder.best(
            wanted, more_than=more_than, whole=whole, most_bytes=self._saved.max_bytes
        )
        if path is None:
            return None
        reading = self._readings.get(path)
        if reading is None:
            reading = self._readings[path] = Reading()
            if not self._do(lambda: self._read(path, reading)):
                self._end(path, reading)
        return reading

    def add(self, prefix: SavedPrefix, *, wait: bool = False) -> None:
        """Have a state written, unless too many wait for that.

        :param wait: wait until no more than a few do.
        """
        if self._unwritten.acquire(blocking=wait) and not self._do(lambda: self._write(prefix)):
            self._unwritten.release()

    def refuse(self, prefix: SavedPrefix) -> None:
        """Remove the file of a state that llama.cpp does not take."""
        self._do(lambda: self._folder.remove(self._folder.path(prefix.hashes)))

    def close(self) -> None:
        """Write what waits for that, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()

    def _do(self, job: Callable[[], object]) -> bool:
        """Have something done on the thread, and say whether there is one."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="prefix-files", daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                note(logger, logging.DEBUG, "no thread for files: %s", error)
                return False
            self._thread = thread
        self._jobs.put(job)
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            _do_safely(job)

    def _read(self, path: Path, reading: Reading) -> None:
        try:
            found = self._folder.read(path)
            if found is not None:
                self._saved.add(found.hashes, found.state)
        finally:
            self._end(path, reading)
            self._tell()

    def _write(self, prefix: SavedPrefix) -> None:
        try:
            self._folder.add(prefix)
        finally:
            self._unwritten.release()

    def _end(self, path: Path, reading: Reading) -> None:
        reading.state = "ended"
        self._readings.pop(path, None)


def _do_safely(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception as error:
        note(logger, logging.WARNING, "a file of saved prompts failed: %s", error)
