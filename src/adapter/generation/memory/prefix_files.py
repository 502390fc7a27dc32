"""Reads and writes saved beginnings of prompts on a thread of its own, so that nobody waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

from adapter.generation.failures import insist, note
from adapter.generation.memory.blocks import BlockHashes
from adapter.generation.memory.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.memory.prefix_folder import PrefixFolder
from adapter.generation.thread_start import start_thread

logger = logging.getLogger(__name__)

MOST_UNWRITTEN = 4
"""States that wait to be written. More are not kept, since each takes memory."""


READ_SECONDS = 10.0
"""How long a prompt waits for its file before it is computed, in seconds. The disk may hang."""

WRITE_SECONDS = 30.0
"""How long closing waits for each file to be written or read, in seconds."""


class Reading:
    """A file that is being read. Requests wait for it as for a prompt that is being computed."""

    def __init__(self) -> None:
        self._until = time.monotonic() + READ_SECONDS
        self._ended = False

    @property
    def state(self) -> Literal["prefilling", "ended"]:
        """Whether to wait for it."""
        return "ended" if self._ended or time.monotonic() > self._until else "prefilling"

    def end(self) -> None:
        """Let nobody wait for it any more."""
        self._ended = True


class _Job(NamedTuple):
    """A task, and what to call when it ends in any way."""

    work: Callable[[], object]
    end: Callable[[], object]


class PrefixFiles:
    """The files of a folder. For the scheduler's thread, which it never blocks.

    Args:
        folder: the files.
        saved: gets the states that were read.
        notify: called on another thread when one is there.
    """

    def __init__(
        self, folder: PrefixFolder, saved: PrefixCache, notify: Callable[[], object]
    ) -> None:
        self._folder = folder
        self._saved = saved
        self._notify = notify
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._job: _Job | None = None
        self._readings: WeakValueDictionary[Path, Reading] = WeakValueDictionary()
        self._unwritten = threading.Semaphore(MOST_UNWRITTEN)
        self._n_done = 0
        self._busy_since: float | None = None
        self._closing = self._given_up = False

    def fetch(self, wanted: BlockHashes, *, more_than: int, exact: bool) -> Reading | None:
        """Start reading the file with most of these blocks, if one has more than `n_known`."""
        if self._hangs:
            return None
        if self._folder.is_to_be_looked_at:
            self._do(_Job(self._folder.look, _nothing))
        path = self._folder.best(
            wanted, more_than=more_than, exact=exact, most_bytes=self._saved.max_bytes
        )
        if path is None:
            return None
        reading = self._readings.get(path)
        if reading is None or reading.state == "ended":
            reading = Reading()
            self._readings[path] = reading
            if not self._do(_Job(partial(self._read, path), partial(self._end, reading))):
                reading.end()
        return reading

    def add(self, prefix: SavedPrefix, *, wait: bool = False) -> None:
        """Write a state, unless too many wait to be written.

        Args:
            wait: wait until only a few are left, or the disk hangs.
        """
        job = _Job(partial(self._folder.add, prefix), self._unwritten.release)
        if not self._unwritten.acquire(blocking=False):
            if not wait or self._given_up:
                return
            if not self._unwritten.acquire(timeout=WRITE_SECONDS):
                self._give_up()
                return
        queued = False
        try:
            queued = self._do(job)
        finally:
            if not queued:
                job.end()

    def refuse(self, prefix: SavedPrefix) -> None:
        """Remove the file of a state that llama.cpp refuses."""
        self._do(_Job(partial(self._remove, prefix), _nothing))

    def close(self) -> None:
        """Write what waits, and end the thread. If the disk hangs, it is left alone."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing = True
        insist(lambda: self._jobs.put(None))
        while thread.is_alive() and not self._given_up:
            n_done = self._n_done
            thread.join(WRITE_SECONDS)
            if thread.is_alive() and self._n_done == n_done:
                self._give_up()

    def _do(self, job: _Job) -> bool:
        """Run a task on the thread. Returns whether there is one."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="prefix-files", daemon=True)
            try:
                start_thread(self._thread)
            except (RuntimeError, MemoryError) as error:
                note(logger, logging.DEBUG, "no thread for files: %s", error)
                return False
        self._jobs.put(job)
        return True

    def _run(self) -> None:
        while self._goes_on():
            pass

    def _goes_on(self) -> bool:
        try:
            return self._do_next()
        except MemoryError:  # a thread that could not start starts once there is memory
            time.sleep(0.01)
            return True

    def _do_next(self) -> bool:
        """Run the next task; False if it is the last."""
        if self._job is None:
            self._job = self._jobs.get()
            if self._job is None:
                return False
        self._busy_since = time.monotonic()
        try:
            self._job.work()
        except Exception as error:
            note(logger, logging.WARNING, "a file of saved prompts failed: %s", error)
        insist(self._job.end)
        self._job = self._busy_since = None
        self._n_done += 1
        return True

    @property
    def _hangs(self) -> bool:
        """Whether the thread has worked on one file for too long."""
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

    def _read(self, path: Path) -> None:
        found = None if self._closing else self._folder.read(path)
        if found is not None:
            self._saved.add(found.hashes, found.state)

    def _remove(self, prefix: SavedPrefix) -> None:
        self._folder.remove(self._folder.path(prefix.hashes))

    def _end(self, reading: Reading) -> None:
        reading.end()
        self._notify()


def _nothing() -> None:
    pass
