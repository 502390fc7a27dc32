"""Reads and writes saved beginnings of prompts on a thread of its own, so that nobody waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from adapter.generation.failures import note
from adapter.generation.memory.blocks import BlockHashes
from adapter.generation.memory.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.memory.prefix_folder import PrefixFolder
from adapter.generation.thread_start import start_thread

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 4
"""States that wait to be written. More are not kept: each takes memory."""


READ_SECONDS = 10.0
"""How long a prompt waits for its file, before it is computed: the disk may hang."""

WRITE_SECONDS = 30.0
"""How long closing waits for a file to be written, or read; each has as long."""


class Reading:
    """A file that is being read; what waits for it, waits as for a prompt that is computed."""

    def __init__(self) -> None:
        self._until = time.monotonic() + READ_SECONDS
        self._ended = False

    @property
    def state(self) -> Literal["prefilling", "ended"]:
        """Whether to wait for it."""
        return "ended" if self._ended or time.monotonic() > self._until else "prefilling"

    def end(self) -> None:
        """Have nobody wait for it any more."""
        self._ended = True


class PrefixFiles:
    """The files of a folder. For the scheduler's thread, which it never keeps waiting.

    Args:
        folder: the files.
        saved: where states go that were read.
        tell: called, on another thread, when one is there.
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
        self._n_done = 0
        self._busy_since: float | None = None
        self._closing = self._given_up = False

    def fetch(self, wanted: BlockHashes, *, more_than: int, whole: bool) -> Reading | None:
        """Begin to read the file with most of these blocks, if one has more than so many."""
        if self._hangs:
            return None
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

        Args:
            wait: wait until no more than a few do, or the disk hangs.
        """
        if not self._unwritten.acquire(blocking=False):
            if not wait or self._given_up:
                return
            if not self._unwritten.acquire(timeout=WRITE_SECONDS):
                self._give_up()
                return
        if not self._do(lambda: self._write(prefix)):
            self._unwritten.release()

    def refuse(self, prefix: SavedPrefix) -> None:
        """Remove the file of a state that llama.cpp does not take."""
        self._do(lambda: self._folder.remove(self._folder.path(prefix.hashes)))

    def close(self) -> None:
        """Write what waits for that, and end the thread. One whose disk hangs is left behind."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing = True
        self._jobs.put(None)
        while thread.is_alive() and not self._given_up:
            n_done = self._n_done
            thread.join(WRITE_SECONDS)
            if thread.is_alive() and self._n_done == n_done:
                self._give_up()

    def _do(self, job: Callable[[], object]) -> bool:
        """Have something done on the thread, and say whether there is one."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="prefix-files", daemon=True)
            try:
                start_thread(thread)
            except (RuntimeError, MemoryError) as error:
                note(logger, logging.DEBUG, "no thread for files: %s", error)
                return False
            self._thread = thread
        self._jobs.put(job)
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._busy_since = time.monotonic()
            _do_safely(job)
            self._n_done += 1
            self._busy_since = None

    @property
    def _hangs(self) -> bool:
        """Whether the thread has been at one file for too long."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > READ_SECONDS

    def _give_up(self) -> None:
        self._given_up = True
        note(
            *(logger, logging.WARNING),
            "no file of saved prompts was written in %s seconds: prompts that wait for that are "
            "not kept. Is the disk of prefix_folder too slow, or its server gone?",
            WRITE_SECONDS,
        )

    def _read(self, path: Path, reading: Reading) -> None:
        try:
            found = None if self._closing else self._folder.read(path)
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
        reading.end()
        self._readings.pop(path, None)


def _do_safely(job: Callable[[], object]) -> None:
    try:
        job()
    except Exception as error:
        note(logger, logging.WARNING, "a file of saved prompts failed: %s", error)
