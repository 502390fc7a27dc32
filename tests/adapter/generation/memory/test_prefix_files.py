"""The thread that reads and writes saved prompts, when memory ends at any of its lines."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, suppress
from linecache import getline

from adapter.generation.memory import prefix_files
from adapter.generation.memory.prefix_cache import PrefixCache, SavedPrefix
from adapter.generation.memory.prefix_files import MOST_UNWRITTEN, PrefixFiles
from adapter.generation.memory.prefix_folder import PrefixFolder

NET = {"_run", "_goes_on"}
"""Functions that are the net itself."""

NO_MEMORY = {"finally:", "queued = False", "if not queued:", "try:", "return True", "return False"}
NO_MEMORY |= {"if self._job is None:", "self._job = self._busy_since = None"}
"""Lines that take none."""


def saved(name):
    return SavedPrefix((f"{name:<16}".encode(),), b"state of " + name.encode())


class Files:
    """A folder with its thread, and what was told."""

    def __init__(self, path):
        self.folder = PrefixFolder(path, "a model", max_bytes=10_000)
        self.folder.add(saved("old"))
        self.cache = PrefixCache(10_000, rolls_back=True)
        self.told = threading.Semaphore(0)
        self.files = PrefixFiles(self.folder, self.cache, self.told.release)

    def use(self):
        """Read one file, write another and remove a third; whatever is raised ends that alone."""
        with suppress(MemoryError):
            self.files.fetch(saved("old").hashes, more_than=0, exact=False)
        with suppress(MemoryError):
            self.files.add(saved("new"))
        with suppress(MemoryError):
            self.files.refuse(saved("gone"))

    def settle(self):
        """Wait until all has been done; return whether it was."""
        done = threading.Event()
        self.files._do(prefix_files._Job(done.set, lambda: None))
        return done.wait(60)

    def check(self):
        """All works again, and nothing of what failed is left."""
        assert self.settle()
        assert self.files._unwritten._value == MOST_UNWRITTEN
        self.files.add(saved("next"))
        reading = self.files.fetch(saved("old").hashes, more_than=0, exact=False)
        assert self.settle()
        assert reading is None or reading.state == "ended"
        path = self.folder.path(saved("next").hashes)
        assert path.exists()
        thread = self.files._thread
        self.files.close()
        assert not thread.is_alive()


@contextmanager
def raising_at(line, seen):
    """Have MemoryError raised at a line of the module, once, on whichever thread comes there."""
    raised = []

    def enter(frame, _event, _argument):
        code = frame.f_code
        inside = code.co_filename == prefix_files.__file__ and code.co_name not in NET
        return step if inside else None

    def step(frame, event, _argument):
        number = frame.f_lineno
        if event == "line" and getline(prefix_files.__file__, number).strip() not in NO_MEMORY:
            seen.setdefault(number)
            if number == line and not raised:
                raised.append(number)
                raise MemoryError(f"at {number}")
        return step

    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)


def test_no_memory_at_any_line_leaves_files_that_are_read_and_written(tmp_path):
    seen = {}
    with raising_at(None, seen):
        fresh = Files(tmp_path / "fresh")
        fresh.use()
        fresh.check()
    assert len(seen) > 50
    for line in list(seen):
        files = Files(tmp_path / str(line))
        with raising_at(line, {}):
            files.use()
            files.settle()
        files.check()


def test_a_thread_that_ended_is_replaced(tmp_path, monkeypatch):
    """One that finds no memory to begin with ends before it comes to any line of these."""
    files = Files(tmp_path / "files")
    monkeypatch.setattr(threading.Thread, "run", lambda _: None)
    files.use()
    files.files._thread.join(60)
    monkeypatch.undo()
    files.files.add(saved("new"))
    assert files.settle()
    assert files.folder.path(saved("new").hashes).exists()
    files.files.close()
