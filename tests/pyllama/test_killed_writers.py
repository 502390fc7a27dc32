"""What a killed process leaves of a file that it wrote."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import pyllama

LOCK = "pyllama-scratch.lock"
WRITES = """
import sys, time
import pyllama
def stop(_done):
    print(flush=True)
    time.sleep(600)
pyllama.quantize(sys.argv[1], sys.argv[2], "Q8_0", progress=stop)
"""


def test_what_a_killed_process_left_is_deleted_by_the_next(tiny_model_path, tmp_path):
    command = [sys.executable, "-c", WRITES, str(tiny_model_path), str(tmp_path / "one.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (left,) = tmp_path.iterdir()
        os.utime(left / LOCK, (1e9, 1e9))
        pyllama.quantize(tiny_model_path, tmp_path / "two.gguf", "Q8_0")
        assert left.exists()  # its process lives
        process.kill()
    os.utime(left / LOCK, (1e9, 1e9))  # looking at it may have touched it
    (tmp_path / ".pyllama-new").mkdir()  # whose process is about to lock it
    pyllama.quantize(tiny_model_path, tmp_path / "three.gguf", "Q8_0")
    assert sorted(os.listdir(tmp_path)) == [".pyllama-new", "three.gguf", "two.gguf"]


def test_folders_of_others_with_such_a_name_stay(tiny_model_path, tmp_path):
    own = tmp_path / ".pyllama-notes"
    own.mkdir()
    (own / "precious.txt").touch()
    os.utime(own, (1e9, 1e9))
    pyllama.quantize(tiny_model_path, tmp_path / "one.gguf", "Q8_0")
    assert sorted(os.listdir(tmp_path)) == [".pyllama-notes", "one.gguf"]
    assert os.listdir(own) == ["precious.txt"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list any folder"
)
def test_a_folder_that_cannot_be_listed_can_be_written_to(tiny_model_path, tmp_path):
    drop = tmp_path / "drop"
    drop.mkdir(mode=0o333)
    pyllama.quantize(tiny_model_path, drop / "one.gguf", "Q8_0")
    assert (drop / "one.gguf").is_file()
