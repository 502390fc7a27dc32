"""Folders for what is not complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from adapter.models.hub import direct
from adapter.models.scratch_folder import scratch_folder

HOLDS = """
import sys, time
from pathlib import Path
from adapter.models.scratch_folder import scratch_folder
with scratch_folder(Path(sys.argv[1]), ".fetching-") as folder:
    (folder / "half.gguf").write_bytes(b"x" * 1000)
    print(folder, flush=True)
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


def test_what_a_killed_process_left_is_deleted_by_the_next(other, tmp_path, tiny_model_path):
    process, left = other
    direct.copy(tiny_model_path, tmp_path)
    assert os.path.exists(left)  # its process lives
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with scratch_folder(tmp_path, ".converting-"):
        pass  # it is of another kind
    assert os.path.exists(left)
    (tmp_path / tiny_model_path.name).unlink()
    direct.copy(tiny_model_path, tmp_path)
    assert os.listdir(tmp_path) == [tiny_model_path.name]


def test_a_folder_that_was_made_just_now_stays(tmp_path):
    left = tmp_path / ".fetching-new"
    left.mkdir()
    (left / LOCK).touch()
    with scratch_folder(tmp_path, ".fetching-") as made:
        assert made.parent == tmp_path
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
    for folder in (own, elsewhere):
        os.utime(folder, (1e9, 1e9))
    with scratch_folder(tmp_path, ".fetching-"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".fetching-link", ".fetching-list", "elsewhere"]
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
            os.utime(made, (1e9, 1e9))
            patched.undo()
            with scratch_folder(tmp_path, ".fetching-"):
                pass
            assert made.exists()
