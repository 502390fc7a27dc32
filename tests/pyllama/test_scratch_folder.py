"""Folders for what is not complete."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyllama.scratch_folder import scratch_folder

HOLDS = """
import sys, time
from pathlib import Path
from pyllama.scratch_folder import scratch_folder
with scratch_folder(Path(sys.argv[1]), ".fetching-") as folder:
    (folder / "half.gguf").write_bytes(b"x" * 1000)
    print(folder.parent, flush=True)
    time.sleep(600)
"""

LOCK = "pyllama-scratch.lock"


def locked_long_ago(folder):
    os.utime(os.path.join(folder, LOCK), (1e9, 1e9))


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder, and that folder."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        folder = process.stdout.readline().strip()
        locked_long_ago(folder)
        yield process, folder
        process.kill()


def test_the_next_process_deletes_what_a_killed_one_left(other, tmp_path):
    process, left = other
    with scratch_folder(tmp_path, ".fetching-"):
        pass
    assert os.path.exists(left)  # its process lives
    process.kill()
    process.wait(60)
    locked_long_ago(left)  # looking at it may have touched it
    with scratch_folder(tmp_path, ".converting-"):
        pass  # it is of another kind
    assert os.path.exists(left)
    with scratch_folder(tmp_path, ".fetching-"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_made_just_now_stays(tmp_path):
    left = tmp_path / ".fetching-new"
    left.mkdir()
    (left / LOCK).touch()
    with scratch_folder(tmp_path, ".fetching-") as made:
        assert made.parent.parent == tmp_path
    assert os.listdir(tmp_path) == [".fetching-new"]
    locked_long_ago(left)
    with scratch_folder(tmp_path, ".fetching-"):
        pass
    assert os.listdir(tmp_path) == []


def test_folders_of_others_with_such_a_name_stay(tmp_path):
    own = tmp_path / ".fetching-list"
    own.mkdir()
    (own / "precious.txt").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    locked_long_ago(elsewhere)
    (tmp_path / ".fetching-link").symlink_to(elsewhere)
    linked = tmp_path / ".fetching-locked"
    linked.mkdir()
    (linked / LOCK).symlink_to(elsewhere / LOCK)
    for folder in (own, elsewhere, linked):
        os.utime(folder, (1e9, 1e9))
    folders = sorted(os.listdir(tmp_path))
    with scratch_folder(tmp_path, ".fetching-"):
        pass
    assert sorted(os.listdir(tmp_path)) == folders
    assert os.listdir(own) == ["precious.txt"]
    assert os.listdir(elsewhere) == [LOCK]


def test_without_a_lock_nobody_deletes_a_folder(tmp_path, monkeypatch):
    from filelock import FileLock

    def acquire(self, timeout):
        raise NotImplementedError

    with monkeypatch.context() as patched:
        patched.setattr(FileLock, "acquire", acquire)
        with scratch_folder(tmp_path, ".fetching-") as made:
            assert os.listdir(made) == []
            assert os.listdir(made.parent) == [made.name]
            os.utime(made.parent, (1e9, 1e9))
            patched.undo()
            with scratch_folder(tmp_path, ".fetching-"):
                pass
            assert made.exists()
