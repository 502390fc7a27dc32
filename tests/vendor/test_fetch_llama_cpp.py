"""The script that brings llama.cpp: verified, whole, and idempotent. Never the network."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

VENDOR = Path(__file__).parents[2] / "vendor"

FILES = {
    "CMakeLists.txt": b"project(llama)\n",
    "LICENSE": b"MIT\n",
    "include/llama.h": b"#pragma once\n",
    "src/llama.cpp": b"int llama;\n",
    "src/deep/er/file.cpp": b"",
    "gguf-py/gguf/__init__.py": b"",
    "convert_hf_to_gguf.py": b"#!/usr/bin/env python\n",
    "models/ggml-vocab-tiny.gguf": b"GGUF",
    "models/ggml-vocab-tiny.gguf.inp": b"hello",
    "models/templates/chat.jinja": b"{{ messages }}",
    # Not wanted:
    "README.md": b"# llama.cpp\n",
    "tests/test.cpp": b"int main() {}\n",
    "tools/convert_other.py": b"",
    "examples/main.cpp": b"",
}
SOURCES = {name for name in FILES if name.split("/")[0] in {"include", "src", "gguf-py"}} | {
    "CMakeLists.txt",
    "LICENSE",
    "convert_hf_to_gguf.py",
}
TEST_DATA = {name for name in FILES if name.startswith("models/")}


def make_archive(path: Path, files: dict[str, bytes], folder: str = "pkg-1.0/vendor/llama.cpp"):
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "pkg-1.0/setup.py", b"raise SystemExit('never run')\n")
        for name, content in files.items():
            add(tar, f"{folder}/{name}", content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class Vendor:
    """A copy of the script in a folder of its own, with a pin of the test's archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copy(VENDOR / "fetch_llama_cpp.py", folder)
        self.script = folder / "fetch_llama_cpp.py"
        self.archive = make_archive(folder.parent / "pkg-1.0.tar.gz", FILES)
        self.pin()

    def pin(self, **changes: str) -> None:
        pin = {
            "commit": "0123456789abcdef",
            "package": "pkg",
            "version": "1.0",
            "sha256": hashlib.sha256(self.archive.read_bytes()).hexdigest(),
            "folder": "vendor/llama.cpp",
        }
        text = json.dumps(pin | changes)
        (self.folder / "llama_cpp_pin.json").write_text(text, encoding="utf-8")

    def repack(self, files: dict[str, bytes], **options: str) -> None:
        make_archive(self.archive, files, **options)
        self.pin()

    def run(self, *arguments: str, archive: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.script), *arguments]
        if archive:
            command += ["--archive", str(self.archive)]
        # No index to reach: a run that should not download fails where it would.
        environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "", "PIP_FIND_LINKS": ""}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env=environment
        )

    def holds(self, name: str) -> set[str]:
        root = self.folder / name
        return {
            str(PurePosixPath(path.relative_to(root)))
            for path in root.rglob("*")
            if path.is_file() and path.name != ".stamp"
        }

    def left_over(self) -> set[str]:
        known = {"fetch_llama_cpp.py", "llama_cpp_pin.json"}
        return {path.name for path in self.folder.iterdir()} - known


@pytest.fixture
def vendor(tmp_path):
    return Vendor(tmp_path / "vendor")


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_it_unpacks_what_is_wanted(vendor):
    result = vendor.run()
    assert result.returncode == 0, result.stderr
    assert vendor.holds("llama.cpp") == SOURCES
    assert vendor.holds("test-data") == TEST_DATA
    for name in SOURCES:
        assert (vendor.folder / "llama.cpp" / name).read_bytes() == FILES[name]
    assert vendor.left_over() == {"llama.cpp", "test-data"}


@pytest.mark.parametrize("arguments", [[], ["--test-data"]])
def test_a_second_run_changes_nothing_and_needs_no_archive(vendor, arguments):
    vendor.run()
    name = "test-data" if arguments else "llama.cpp"
    before = {path: path.stat().st_mtime_ns for path in (vendor.folder / name).rglob("*")}
    result = vendor.run(*arguments, archive=False)
    assert result.returncode == 0, result.stderr
    assert "already" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (vendor.folder / name).rglob("*")} == before


def test_a_wrong_hash_unpacks_nothing(vendor):
    vendor.pin(sha256="0" * 64)
    result = vendor.run()
    assert_refused(result, "SHA-256", "0" * 64, "Nothing was unpacked", "What to do")
    assert vendor.left_over() == set()


def test_a_wrong_hash_leaves_what_was_there(vendor):
    vendor.run()
    vendor.archive.write_bytes(vendor.archive.read_bytes() + b"more")
    (vendor.folder / "llama.cpp" / "LICENSE").unlink()
    assert_refused(vendor.run(), "SHA-256")
    assert vendor.holds("llama.cpp") == SOURCES - {"LICENSE"}


def damage_nothing_but_stamp(folder: Path) -> None:
    (folder / ".stamp").unlink()


def damage_missing_file(folder: Path) -> None:
    (folder / "src" / "llama.cpp").unlink()


def damage_short_file(folder: Path) -> None:
    (folder / "src" / "llama.cpp").write_bytes(b"int")


def damage_broken_stamp(folder: Path) -> None:
    (folder / ".stamp").write_bytes(b"{half a st")


def damage_strange_stamp(folder: Path) -> None:
    (folder / ".stamp").write_text("[1, 2]", encoding="utf-8")


def damage_empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [
    damage_nothing_but_stamp,
    damage_missing_file,
    damage_short_file,
    damage_broken_stamp,
    damage_strange_stamp,
    damage_empty_folder,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__[7:])
def test_a_half_unpacked_folder_is_repaired(vendor, damage):
    vendor.run()
    damage(vendor.folder / "llama.cpp")
    result = vendor.run()
    assert result.returncode == 0, result.stderr
    assert "Unpacked" in result.stdout
    assert vendor.holds("llama.cpp") == SOURCES
    for name in SOURCES:
        assert (vendor.folder / "llama.cpp" / name).read_bytes() == FILES[name]
    assert "already" in vendor.run(archive=False).stdout


def test_a_file_of_an_older_pin_goes_away(vendor):
    vendor.run()
    (vendor.folder / "llama.cpp" / "src" / "old.cpp").write_bytes(b"")
    (vendor.folder / "llama.cpp" / ".stamp").unlink()
    vendor.run()
    assert vendor.holds("llama.cpp") == SOURCES


def test_another_pin_makes_the_folder_stale(vendor):
    vendor.run()
    vendor.repack(FILES | {"src/llama.cpp": b"int LLAMA;\n"})
    result = vendor.run()
    assert result.returncode == 0, result.stderr
    assert (vendor.folder / "llama.cpp" / "src" / "llama.cpp").read_bytes() == b"int LLAMA;\n"


@pytest.mark.parametrize("name", ["src/../../../escaped.txt", "../src/../../escaped.txt", "src/.."])
def test_a_path_that_leaves_its_folder_is_never_written(vendor, name):
    vendor.repack(FILES | {name: b"gotcha"})
    result = vendor.run()
    outside = list(vendor.folder.parent.rglob("escaped.txt"))
    assert outside == []
    if result.returncode:
        assert_refused(result, "leaves its folder")
        assert vendor.left_over() == set()
    else:
        assert vendor.holds("llama.cpp") == SOURCES


def test_a_path_that_leaves_its_folder_unpacks_nothing(vendor):
    vendor.repack(FILES | {"src/../../../escaped.txt": b"gotcha"})
    assert_refused(vendor.run(), "leaves its folder", "escaped.txt")
    assert vendor.left_over() == set()


def test_links_are_not_followed(vendor):
    with tarfile.open(vendor.archive, "w:gz") as tar:
        for name, content in FILES.items():
            add(tar, f"pkg-1.0/vendor/llama.cpp/{name}", content)
        for kind, name in [(tarfile.SYMTYPE, "src/link.cpp"), (tarfile.LNKTYPE, "src/hard.cpp")]:
            link = tarfile.TarInfo(f"pkg-1.0/vendor/llama.cpp/{name}")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    vendor.pin()
    result = vendor.run()
    assert result.returncode == 0, result.stderr
    assert vendor.holds("llama.cpp") == SOURCES


def test_an_archive_without_llama_cpp(vendor):
    vendor.repack(FILES, folder="pkg-1.0/elsewhere")
    assert_refused(vendor.run(), "holds nothing", "vendor/llama.cpp")
    assert vendor.left_over() == set()


def test_an_archive_that_ends_early(vendor):
    content = vendor.archive.read_bytes()
    vendor.archive.write_bytes(content[: len(content) // 2])
    vendor.pin()
    assert_refused(vendor.run(), "Cannot unpack")
    assert vendor.left_over() == set()


def test_an_archive_that_is_none(vendor):
    vendor.archive.write_bytes(b"no archive at all")
    vendor.pin()
    assert_refused(vendor.run(), "Cannot unpack")
    assert vendor.left_over() == set()


def test_an_archive_that_is_missing(vendor):
    vendor.archive.unlink()
    assert_refused(vendor.run(), "Cannot read", "pkg-1.0.tar.gz")


def test_without_an_index_it_says_what_to_do(vendor):
    result = vendor.run(archive=False)
    assert result.returncode == 1
    for word in ("pkg==1.0", "What to do", "--archive", "PYLLAMA_LLAMA_CPP_DIR"):
        assert word in result.stderr
    assert "Traceback" not in result.stderr
    assert vendor.left_over() == set()


def test_the_pin_of_this_repository_is_complete():
    pin = json.loads((VENDOR / "llama_cpp_pin.json").read_text(encoding="utf-8"))
    assert set(pin) == {"commit", "package", "version", "sha256", "folder"}
    assert len(pin["commit"]) == 40
    assert len(pin["sha256"]) == 64


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("CMakeLists.txt", "llama.cpp"),
        ("src/CMakeLists.txt", "llama.cpp"),
        ("licenses/LICENSE-x", "llama.cpp"),
        ("convert_hf_to_gguf.py", "llama.cpp"),
        ("sub/convert_hf_to_gguf.py", None),
        ("tests/CMakeLists.txt", None),
        ("sub/LICENSE", None),
        ("srcs/file.cpp", None),
        ("models/ggml-vocab-x.gguf", "test-data"),
        ("models/sub/ggml-vocab-x.gguf", None),
        ("models/templates/a.jinja", "test-data"),
        ("models/other.gguf", None),
    ],
)
def test_which_files_are_wanted(path, folder):
    spec = importlib.util.spec_from_file_location("fetch", VENDOR / "fetch_llama_cpp.py")
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    assert fetch.wanted(PurePosixPath(path)) == folder
