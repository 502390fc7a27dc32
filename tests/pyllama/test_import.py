"""What `import pyllama` brings with it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import pyllama


@pytest.fixture(scope="module")
def imported():
    """Names of the modules that a fresh interpreter has after `import pyllama`."""
    code = "import sys, json, pyllama; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stderr == ""
    return set(json.loads(result.stdout))


def test_neither_dspy_nor_the_adapter(imported):
    roots = {name.partition(".")[0] for name in imported}
    assert "pyllama" in roots
    assert not roots & {"dspy", "adapter", "gguf", "litellm", "pydantic", "typer", "rich"}


def test_nothing_slow_that_few_programs_need(imported):
    assert not imported & {"asyncio", "socket", "subprocess"}


def test_its_own_modules_are_all_loaded(imported):
    names = {name for name in imported if name.startswith("pyllama.") and "._" not in name}
    objects = [
        "batch",
        "chat",
        "context",
        "device",
        "errors",
        "memory",
        "model",
        "rpc",
        "sampler",
        "vocab",
    ]
    assert {f"pyllama.{name}" for name in objects} <= names


def test_no_backend_is_loaded_by_the_import():
    code = "import pyllama; from pyllama import device; print(device._loaded)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "False\n"


def test_every_public_name_is_there():
    assert len(pyllama.__all__) == len(set(pyllama.__all__))
    for name in pyllama.__all__:
        assert hasattr(pyllama, name), name


def test_the_native_layer_is_not_exported():
    assert not hasattr(pyllama, "lib")
    assert not hasattr(pyllama, "ffi")


@pytest.mark.parametrize("folder", ["/", "."])
def test_backends_are_found_from_any_folder(tmp_path, folder):
    code = "import pyllama; print([device.type for device in pyllama.devices()])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=folder if folder == "/" else tmp_path,
    )
    assert "cpu" in result.stdout
    assert result.stderr == ""


def test_the_version_is_that_of_the_package():
    assert pyllama.__version__ == importlib.metadata.version("pyllama-dspy")
