"""Beginnings of prompts in a folder: found by later processes, and never wrong."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import synthetic
from schedules import CONTEXT_LENGTH, request_of, same, tokens

import pyllama
from adapter import ModelPool
from adapter.generation.memory import prefix_files
from adapter.generation.memory.blocks import BLOCK, LEAST_LEFT, block_hashes
from adapter.generation.memory.prefix_cache import SavedPrefix
from adapter.generation.memory.prefix_folder import MAGIC, PrefixFolder, prepare
from adapter.generation.scheduler import Scheduler


def hashes(*names):
    return tuple(f"{name:<16}".encode() for name in names)


def find(folder, wanted, *, more_than=0, exact=False):
    """What a folder has of these blocks; nothing of what cannot be read."""
    path = folder.best(wanted, more_than=more_than, exact=exact, most_bytes=10**9)
    return None if path is None else folder.read(path)


@pytest.fixture
def folder(tmp_path):
    return PrefixFolder(tmp_path, "a model", max_bytes=10_000)


def test_the_longest_beginning_is_found_by_another_process(folder, tmp_path):
    folder.add(SavedPrefix(hashes("a", "b"), b"short"))
    folder.add(SavedPrefix(hashes("a", "b", "c", "x"), b"long"))
    other = PrefixFolder(tmp_path, "a model", max_bytes=10_000)
    wanted = hashes("a", "b", "c", "d")
    assert find(other, wanted, more_than=0, exact=False).state == b"long"
    assert find(other, wanted, more_than=0, exact=True).state == b"short"
    assert find(other, wanted, more_than=3, exact=False) is None
    assert find(other, hashes("z"), more_than=0, exact=False) is None
    assert find(PrefixFolder(tmp_path, "another", max_bytes=9), wanted) is None


@pytest.mark.parametrize("damage", ["state", "magic", "cut", "count", "empty"])
def test_a_damaged_file_is_not_used(folder, tmp_path, damage):
    folder.add(SavedPrefix(hashes("a"), b"state" * 100))
    (path,) = tmp_path.rglob("*.prefix")
    content = path.read_bytes()
    path.write_bytes(
        {
            "state": content[:-1] + b"!",
            "magic": b"other" + content[5:],
            "cut": content[:-7],
            "count": content[: len(MAGIC) + 32] + b"\xff\xff\xff\x7f" + content[len(MAGIC) + 36 :],
            "empty": b"",
        }[damage]
    )
    other = PrefixFolder(tmp_path, "a model", max_bytes=10_000)
    assert find(other, hashes("a"), more_than=0, exact=False) is None


def test_what_was_used_longest_ago_makes_room(folder):
    for name in "abc":
        folder.add(SavedPrefix(hashes(name), name.encode() * 3000))
    assert find(folder, hashes("a"), more_than=0, exact=False) is not None
    folder.add(SavedPrefix(hashes("d"), b"d" * 3000))
    kept = [name for name in "abcd" if find(folder, hashes(name), more_than=0, exact=False)]
    assert kept == ["a", "c", "d"]
    folder.add(SavedPrefix(hashes("e"), b"e" * 20_000))
    assert find(folder, hashes("e"), more_than=0, exact=False) is None


# When the folder does not do what it should


@contextmanager
def small_files():
    """Files of no more than 5,000 bytes can be written, as on a disk that is full.

    Not beyond the block: what pytest itself writes to may be a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_cannot_be_written_leaves_nothing_and_is_logged_once(folder, tmp_path, caplog):
    with small_files():
        for name in "abc":
            folder.add(SavedPrefix(hashes(name), b"x" * 8000))
    assert files_in(tmp_path) == []
    told = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert str(tmp_path) in told[0].getMessage()
    folder.add(SavedPrefix(hashes("d"), b"x" * 100))
    assert find(folder, hashes("d")).state == b"x" * 100


def test_an_interrupt_while_a_file_is_written_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.add(SavedPrefix(hashes("a"), b"x"))
    assert files_in(tmp_path) == []


def test_what_a_process_left_that_died_is_counted_and_removed(folder, tmp_path):
    folder.add(SavedPrefix(hashes("a"), b"a" * 1000))
    (path,) = files_in(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = [path.with_name(f"00ff-{dead.pid}.partial"), path.with_name("tmpab12cd3_")]
    being_written = path.with_name(f"00ff-{os.getpid()}.partial")
    for other in (*left, being_written):
        other.write_bytes(b"x" * 2000)
    os.utime(left[1], (0, 0))
    folder.add(SavedPrefix(hashes("b"), b"b" * 1000))
    names = {each.name for each in files_in(tmp_path)}
    assert not names & {each.name for each in left}
    assert being_written.name in names
    folder.add(SavedPrefix(hashes("c"), b"c" * 6500))
    assert find(folder, hashes("a")) is None  # the one that is being written takes room


def test_a_damaged_file_that_cannot_be_removed_is_looked_at_once(folder, tmp_path, monkeypatch):
    folder.add(SavedPrefix(hashes("a"), b"state" * 100))
    (path,) = files_in(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    def refused(*_, **__):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(type(path), "unlink", refused)
    monkeypatch.setattr(os, "utime", refused)
    other = PrefixFolder(tmp_path, "a model", max_bytes=10_000)
    assert find(other, hashes("a")) is None
    other.look()
    assert other.best(hashes("a"), more_than=0, exact=False, most_bytes=10**9) is None


def test_a_file_larger_than_what_is_kept_in_memory_is_not_read(folder):
    folder.add(SavedPrefix(hashes("a"), b"x" * 1000))
    assert folder.best(hashes("a"), more_than=0, exact=False, most_bytes=500) is None


def test_a_folder_of_its_own_is_private(tmp_path):
    folder = PrefixFolder(tmp_path / "new" / "folder", "key", max_bytes=1000)
    folder.add(SavedPrefix(hashes("a"), b"a"))
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700
    (path,) = files_in(tmp_path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o077 == 0


def test_a_folder_in_which_everybody_can_write_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod o-w"):
        ModelPool(tmp_path, prefix_folder=tmp_path)
    tmp_path.chmod(0o1777)  # as /tmp: everybody has files of their own there
    PrefixFolder(tmp_path, "key", max_bytes=1000)
    (inner,) = (path for path in tmp_path.iterdir() if path.is_dir())
    inner.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod o-w"):
        PrefixFolder(tmp_path, "key", max_bytes=1000)


def test_another_users_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    if tmp_path.stat().st_uid:
        with pytest.raises(PermissionError, match="belongs to the user"):
            prepare(tmp_path)
    status = os.stat_result((0o40755, 0, 0, 0, 12345, 0, 0, 0, 0, 0))
    monkeypatch.setattr(type(tmp_path), "stat", lambda *_, **__: status)
    with pytest.raises(PermissionError, match="12345"):
        prepare(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_when_the_pool_is_made(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(OSError, match="make it writable, or choose another") as caught:
        ModelPool(tmp_path, prefix_folder=tmp_path / "prefixes")
    assert caught.value.filename == str(tmp_path / "prefixes")


# In a scheduler


def prefix_scheduler(model, folder, **options):
    return Scheduler(
        model, context_length=CONTEXT_LENGTH, n_threads=1, n_cells=4 * CONTEXT_LENGTH,
        max_sequences=4, max_queued=9, cache_bytes=2**26, reproducible=True,
        prefix_folder=PrefixFolder(folder, "tiny", max_bytes=2**26), **options,
    )  # fmt: skip


@pytest.mark.parametrize("harm", ["state", "cut", "refused", "gone", "unreadable", "slow"])
def test_whatever_a_file_is_like_the_request_is_answered(tmp_path, tiny, harm, monkeypatch):
    prompt = tokens(0, 300)
    request = request_of(prompt + tokens(1, 20))
    first = prefix_scheduler(tiny, tmp_path)
    expected = first.generate(request)
    first.close()
    (path,) = tmp_path.rglob("*.prefix")
    later = prefix_scheduler(tiny, tmp_path)  # it has seen the file
    content = path.read_bytes()
    if harm == "state":
        path.write_bytes(content[:-1] + b"!")
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "gone":
        path.unlink()
    elif harm == "refused":  # llama.cpp does not take it, though it is what was written
        saved = find(PrefixFolder(tmp_path, "tiny", max_bytes=2**26), block_hashes(prompt))
        path.unlink()
        PrefixFolder(tmp_path, "tiny", max_bytes=2**26).add(
            SavedPrefix(saved.hashes, saved.state[:-10])
        )
    elif harm == "unreadable":
        read = type(path).read_bytes
        monkeypatch.setattr(
            type(path),
            "read_bytes",
            lambda self: read(self) if self.suffix != ".prefix" else open_nothing(),
        )
    elif harm == "slow":
        read_file = PrefixFolder.read
        monkeypatch.setattr(
            PrefixFolder, "read", lambda self, path: time.sleep(0.3) or read_file(self, path)
        )
    result = later.generate(request)
    assert same(result, expected)
    assert result.cache_read_tokens == (312 if harm == "slow" else 0)
    later.close()


def open_nothing():
    raise OSError(errno.EIO, "Input/output error")


def test_others_go_on_while_a_file_is_read(tmp_path, tiny, monkeypatch):
    prompt = tokens(0, 300)
    first = prefix_scheduler(tiny, tmp_path)
    first.generate(request_of(prompt))
    first.close()
    may_read, is_reading = threading.Event(), threading.Event()
    read = PrefixFolder.read

    def slow(self, path):
        is_reading.set()
        may_read.wait(60)
        return read(self, path)

    monkeypatch.setattr(PrefixFolder, "read", slow)
    later = prefix_scheduler(tiny, tmp_path)
    with ThreadPoolExecutor(2) as threads:
        waits = threads.submit(later.generate, request_of(prompt))
        assert is_reading.wait(60)
        assert later.generate(request_of(tokens(1, 40))).completion_tokens > 0
        assert not waits.done()
        may_read.set()
        assert waits.result().cache_read_tokens > 280
    later.close()


@pytest.fixture
def hang(monkeypatch):
    """Has the disk hang from its call to the end of the test, and be given up at once."""
    hangs, goes_on = threading.Event(), threading.Event()
    read, add = PrefixFolder.read, PrefixFolder.add

    def wait_first(call):
        def called(*args, **kwargs):
            assert not hangs.is_set() or goes_on.wait(60)
            return call(*args, **kwargs)

        return called

    monkeypatch.setattr(PrefixFolder, "read", wait_first(read))
    monkeypatch.setattr(PrefixFolder, "add", wait_first(add))

    def begin():
        monkeypatch.setattr(prefix_files, "READ_SECONDS", 0.05)
        monkeypatch.setattr(prefix_files, "WRITE_SECONDS", 0.05)
        hangs.set()

    yield begin
    goes_on.set()


def test_a_disk_that_hangs_keeps_no_request_and_no_close_waiting(tmp_path, tiny, hang, caplog):
    prompt = tokens(0, 300)
    first = prefix_scheduler(tiny, tmp_path)
    expected = first.generate(request_of(prompt))
    first.close()
    assert len(files_in(tmp_path)) == 1
    hang()
    later = prefix_scheduler(tiny, tmp_path)
    result = later.generate(request_of(prompt))
    assert same(result, expected)
    assert result.cache_read_tokens == 0
    for seed in range(1, 8):  # more than may wait to be written
        later.generate(request_of(tokens(seed, 300)))
    later.close()  # which would save what the slots hold
    assert not later._thread.is_alive()
    assert caplog.text.count("no file of saved prompts was written") == 1


def test_whoever_looks_for_a_file_asks_nothing_of_the_disk(folder, tmp_path, monkeypatch):
    """That is the thread that computes."""
    folder.add(SavedPrefix(hashes("a"), b"state" * 20))
    other = PrefixFolder(tmp_path, "a model", max_bytes=10_000)

    def fail(*_args, **_options):
        raise AssertionError("the disk was asked")

    with monkeypatch.context() as patched:
        for name in ("stat", "scandir", "open"):
            patched.setattr(os, name, fail)
        for known in (folder, other):
            assert known.best(hashes("a"), more_than=0, exact=False, most_bytes=100) is None
            assert known.best(hashes("a"), more_than=0, exact=False, most_bytes=1000) is not None


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_the_next_scheduler_takes_it_up_and_gives_the_same_bytes(tmp_path, architecture):
    path = synthetic.write_model(
        tmp_path / "tiny.gguf", architecture=architecture, n_ctx_train=CONTEXT_LENGTH
    )
    prompt = tokens(0, 300)
    requests = [request_of(prompt + tokens(seed, 20)) for seed in (1, 2)]
    results = []
    for request in requests:
        with pyllama.Model(path) as model:
            scheduler = Scheduler(
                model, context_length=CONTEXT_LENGTH, n_threads=1, n_cells=4 * CONTEXT_LENGTH,
                max_sequences=4, max_queued=9, cache_bytes=2**26, reproducible=True,
                prefix_folder=PrefixFolder(tmp_path, "tiny", max_bytes=2**26),
            )  # fmt: skip
            results.append(scheduler.generate(request))
            scheduler.close()
    assert results[0].cache_read_tokens == 0
    if architecture == "llama":
        assert results[1].cache_read_tokens == 300 // BLOCK * BLOCK
    with pyllama.Model(path) as model:
        cold = Scheduler(
            model, context_length=CONTEXT_LENGTH, n_threads=1, n_cells=4 * CONTEXT_LENGTH,
            max_sequences=4, max_queued=9, cache_bytes=0, reproducible=True,
        )  # fmt: skip
        assert same(cold.generate(requests[1]), results[1])
        cold.close()


def test_what_several_slots_hold_is_written_once_at_the_end(tmp_path, tiny):
    """Each of them need not be written, as the others have it; one must be."""
    made = prefix_scheduler(tiny, tmp_path)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(made.generate, [request_of(tokens(1, 300), max_tokens=30)] * 4))
    made.close()
    assert len([*tmp_path.rglob("*.prefix")]) == 1


def test_a_pool_keeps_prefixes_in_the_given_folder(tmp_path):
    synthetic.write_model(tmp_path / "tiny.gguf", n_ctx_train=CONTEXT_LENGTH)
    found = []
    for seed in (1, 2):
        with ModelPool(tmp_path, prefix_folder=tmp_path / "prefixes") as pool:
            generator = pool.load_model("tiny").generators["batched"]
            prompt = random.Random(0).choices(range(3, 200), k=200)
            found.append(generator.generate(request_of([*prompt, seed, seed])))
    assert found[0].cache_read_tokens == 0
    assert found[1].cache_read_tokens == 202 - LEAST_LEFT - 202 % BLOCK
