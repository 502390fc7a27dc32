"""Backends in packages of their own, such as pyllama-dspy-cuda13, which pip installs beside this.

Such a package holds one of ggml's backend modules and a file that describes it, ``backend.json``.
It is found by its entry point in the group ``pyllama.backends``. None of its code runs before the
description was read: a module of another llama.cpp lays out its structures in another way, and
would end the process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllama._guard import to_str
from pyllama._native._binding import lib
from pyllama.distribution import entry_points, extra_command

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "pyllama.backends"

_DESCRIPTION = "backend.json"

# How the C library of Linux says that a module needs another library.
_LACKING = re.compile(r"(\S+\.so\S*): cannot open shared object file")


@dataclass(frozen=True)
class BackendPackage:
    """A package that holds a backend, and whether that is used."""

    #: The name by which pip knows it, such as ``"pyllama-dspy-cuda13"``.
    name: str
    version: str
    #: llama.cpp's option without ``GGML_``, such as ``"CUDA"``; ``""`` if the package does not say.
    backend: str
    #: The commit of llama.cpp that it was built from; ``""`` if the package does not say.
    llama_cpp_commit: str
    #: The file of its module; ``""`` if the package does not say.
    path: str
    #: Why it is not used, and what to do about it. None if it is used, or not tried yet.
    problem: str | None = None
    #: Whether the problem is that it was built for another llama.cpp, or is incomplete. Otherwise
    #: this machine lacks something, such as a driver.
    is_unfit: bool = False


def find_packages() -> list[BackendPackage]:
    """Every installed package that holds a backend, checked but not loaded.

    Of several packages for one backend the later comes first: ``cuda13`` before ``cuda12``.
    """
    entries = {entry.value: entry for entry in reversed(entry_points(GROUP))}  # the first counts
    ordered = sorted(entries.values(), key=lambda entry: entry.name, reverse=True)
    return [_checked(entry) for entry in ordered]


def _checked(entry: EntryPoint) -> BackendPackage:
    name, version = entry.value, ""
    if entry.dist is not None and entry.dist.name:
        name, version = entry.dist.name, entry.dist.version

    def unfit(problem: str, backend: str = "", commit: str = "", path: str = "") -> BackendPackage:
        return BackendPackage(name, version, backend, commit, path, problem, is_unfit=True)

    again = f"install it again: pip install --force-reinstall --no-deps {name}"
    try:
        folder = _folder_of(entry.value)
        with open(os.path.join(folder, _DESCRIPTION), encoding="utf-8") as file:
            description = json.load(file)
        backend, commit, module = (
            str(description[key]) for key in ("backend", "llama_cpp_commit", "module")
        )
    except (OSError, ValueError, LookupError, TypeError, ImportError) as error:
        return unfit(f"it is incomplete ({type(error).__name__}: {error}): {again}")
    path = os.path.join(folder, module)
    ours = to_str(lib.pyllama_upstream_commit())
    if commit != ours:
        return unfit(
            f"it was built for llama.cpp {commit[:10]}, and this package holds llama.cpp "
            f"{ours[:10]}. Install both in the same version: "
            f"{extra_command(entry.name).replace('install', 'install --upgrade')}",
            *(backend, commit, path),
        )
    if not os.path.isfile(path):
        return unfit(f"there is no {path}: {again}", backend, commit, path)
    return BackendPackage(name, version, backend, commit, path)


def _folder_of(package: str) -> str:
    """The folder of a package's files. It is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"there is no package {package!r}")
    return spec.submodule_search_locations[0]


def reason_not_loaded(message: str) -> str:
    """Why a module could not be loaded, from what llama.cpp logged about it."""
    lacking = _LACKING.search(message)
    if lacking is None:
        return f"it could not be loaded ({message})"
    if lacking[1].startswith("libcuda.so"):
        return f"NVIDIA's driver, which brings {lacking[1]}, is not installed here"
    return f"{lacking[1]}, which it needs, is not installed here"
