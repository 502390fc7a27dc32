"""Backends in packages of their own, such as pyllama-dspy-cuda13, which pip installs beside this.

Such a package holds one of ggml's backend modules and a file that describes it, ``backend.json``.
It is found by its entry point in the group ``pyllama.backends``. None of its code runs before the
description has been read: a module of another llama.cpp lays out its structures in another way, and
would end the process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import os
import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pyllama._guard import check, to_str
from pyllama._native._binding import lib
from pyllama.distribution import entry_points, extra_command, name_and_version
from pyllama.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

    from pyllama._native._binding import Pointer, ggml_backend_reg

    LoadModule = Callable[[str], Pointer[ggml_backend_reg]]

logger = logging.getLogger("pyllama.backends")

GROUP = "pyllama.backends"

_DESCRIPTION = "backend.json"

# What a build against a llama.cpp of the builder's own has for its commit.
_UNPINNED = "unpinned"

# How the C library of Linux says that a module needs another library.
_LACKING = re.compile(r"(\S+\.so\S*): cannot open shared object file")


@dataclass(frozen=True)
class BackendPackage:
    """A package that holds a backend, and whether that is used."""

    #: The name by which pip knows it, such as ``"pyllama-dspy-cuda13"``.
    name: str
    #: Its version, which is that of the package that it was built for.
    version: str
    #: llama.cpp's option without ``GGML_``, such as ``"CUDA"``; ``""`` if the package does not say.
    backend: str
    #: The commit of llama.cpp that it was built from; ``""`` if the package does not say.
    llama_cpp_commit: str
    #: The file of its module; ``""`` if the package does not say.
    path: str
    #: Where other packages hold libraries that it needs, below a folder of ``sys.path``, such as
    #: ``"nvidia/cu13/lib"``.
    library_folders: tuple[str, ...] = ()
    #: Why it is not used, and what to do about it. None if it is used, or not tried yet.
    problem: str | None = None
    #: Whether the problem is that it was built for another llama.cpp, or is incomplete. Otherwise
    #: this machine lacks something, such as a driver.
    is_unfit: bool = False


def load_packages(own: str, load_module: LoadModule) -> list[BackendPackage]:
    """Find every package and load its module. A fault of one package does not make this fail.

    Args:
        own: the folder of pyllama's own modules; a backend that is there is not loaded twice.
        load_module: loads one, and raises BackendError with what llama.cpp logged.
    """
    found: list[BackendPackage] = []
    for package in find_packages():
        problem = package.problem
        if problem is None:
            used = [each for each in found if each.backend == package.backend and not each.problem]
            if used:
                problem = f"{used[0].name} drives the same devices"
            elif os.path.basename(package.path) in os.listdir(own):
                problem = f"this build has a {package.backend} backend of its own"
            else:
                problem = _load(package, load_module)
        if problem is not None:
            level = logging.WARNING if package.is_unfit else logging.INFO
            logger.log(level, "%s is not used: %s", package.name, problem)
        found.append(replace(package, problem=problem))
    return found


def _load(package: BackendPackage, load_module: LoadModule) -> str | None:
    """Why a package's module could not be loaded; None if it was."""
    brought: set[str] = set()
    while True:
        try:
            reg = load_module(package.path)
            break
        except BackendError as error:
            name = _lacking_library(str(error))
            path = _find_library(package, name) if name is not None else None
            if path is None or path in brought:
                return _reason(str(error))
        # A library that is loaded is found by its name, wherever it came from.
        brought.add(path)
        try:
            ctypes.CDLL(path)
        except OSError as error:
            return _reason(str(error))
    if not lib.ggml_backend_reg_dev_count(reg):
        # So that another package for the same devices, which needs an older driver, has its turn.
        check(lib.guarded_backend_unload(reg), f"unloading {package.path}")
        return "its driver offers no GPU"
    return None


def find_packages() -> list[BackendPackage]:
    """Every installed package that holds a backend, checked but not loaded.

    Of several packages for one backend the later comes first: ``cuda13`` before ``cuda12``.
    """
    entries = {entry.value: entry for entry in reversed(entry_points(GROUP))}  # the first counts
    ordered = sorted(entries.values(), key=lambda entry: entry.name, reverse=True)
    return [_checked(entry) for entry in ordered]


def _checked(entry: EntryPoint) -> BackendPackage:
    name, version = name_and_version(entry)
    name = name or entry.value

    def unfit(problem: str, *facts: str) -> BackendPackage:
        backend, commit, path = facts or ("", "", "")
        package = BackendPackage(name, version, backend, commit, path)
        return replace(package, problem=problem, is_unfit=True)

    again = f"install it again: pip install --force-reinstall --no-deps {name}"
    try:
        folder = _folder_of(entry.value)
        with open(os.path.join(folder, _DESCRIPTION), encoding="utf-8") as file:
            description = json.load(file)
        backend, commit, module = (
            str(description[key]) for key in ("backend", "llama_cpp_commit", "module")
        )
        folders = tuple(map(str, description.get("library_folders", ())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError) as error:
        return unfit(f"it is incomplete ({type(error).__name__}: {error}): {again}")
    path = os.path.join(folder, module)
    ours = to_str(lib.pyllama_upstream_commit())
    if _UNPINNED in (commit, ours):
        whose = "it" if commit == _UNPINNED else "this package"
        return unfit(
            f"{whose} was built from a folder with llama.cpp that has no commit, so nothing tells "
            f"whether they fit. If they do: pyllama.load_backend({path!r})",
            *(backend, commit, path),
        )
    if commit != ours:
        return unfit(
            f"it was built for llama.cpp {commit[:10]}, and this package holds llama.cpp "
            f"{ours[:10]}. Install both in the same version: "
            f"{extra_command(entry.name).replace('install', 'install --upgrade')}",
            *(backend, commit, path),
        )
    if not os.path.isfile(path):
        return unfit(f"there is no {path}: {again}", backend, commit, path)
    return BackendPackage(name, version, backend, commit, path, folders)


def _folder_of(package: str) -> str:
    """The folder of a package's files. It is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"there is no package {package!r}")
    return spec.submodule_search_locations[0]


def _lacking_library(message: str) -> str | None:
    """Which library a module lacked, from what llama.cpp logged; None if it was something else."""
    lacking = _LACKING.search(message)
    return lacking[1] if lacking else None


def _find_library(package: BackendPackage, name: str) -> str | None:
    """The file of a library in the packages that bring it; None if none does.

    The module itself looks beside its own package. It may be installed into another folder of
    ``sys.path`` than they are: a user's, or one that ``pip install --target`` made.
    """
    for place in sys.path:
        for folder in package.library_folders:
            path = os.path.join(place, folder, name)
            if os.path.isfile(path):
                return os.path.abspath(path)
    return None


def _reason(message: str) -> str:
    """Why a module could not be loaded, from what llama.cpp logged about it."""
    lacking = _lacking_library(message)
    if lacking is None:
        return f"it could not be loaded ({message})"
    if lacking.startswith("libcuda.so"):
        return f"NVIDIA's driver, which brings {lacking}, is not installed here"
    return f"{lacking}, which it needs, is not installed here"
