"""The backend that models run on by the user's choice, and the backends of this build."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal, cast, get_args

from pyllama._native import _binding
from pyllama.device import Device, backend_packages, backends, devices
from pyllama.distribution import extra_command
from pyllama.errors import BackendError

BackendName = Literal["auto", "cpu", "cuda", "hip", "metal", "opencl", "sycl", "vulkan"]

VARIABLE = "PYLLAMA_BACKEND"
"""The environment variable that applies if there is no argument."""

# ggml's names for them.
_REGISTERED = {
    "cuda": "CUDA",
    "hip": "ROCm",
    "metal": "MTL",
    "opencl": "OpenCL",
    "sycl": "SYCL",
    "vulkan": "Vulkan",
}

# The extra that brings a backend to a build without it.
_EXTRAS = {"cuda": "cuda13"}

# Written by cmake/BuildSummary.cmake, beside the extension module.
_SUMMARY = os.path.join(os.path.dirname(_binding.__file__), "build.json")


@dataclass(frozen=True)
class BackendBuild:
    """Whether this build of pyllama has a backend."""

    #: llama.cpp's option without ``GGML_``, such as ``"VULKAN"``.
    name: str
    #: Whether it was built.
    built: bool
    #: What was built, or why it was not and how to get it.
    note: str


def build_info() -> list[BackendBuild]:
    """Every backend that pyllama can be built with, and whether this build has it."""
    with open(_SUMMARY, encoding="utf-8") as file:
        return [BackendBuild(**entry) for entry in json.load(file)]


def unloaded_backends() -> list[BackendBuild]:
    """The GPU backends of this build that are not loaded, because this machine lacks their loader
    or driver.
    """
    loaded = {backend.name for backend in backends()}
    wanting = {name.upper() for name, registered in _REGISTERED.items() if registered not in loaded}
    return [entry for entry in build_info() if entry.built and entry.name in wanting]


def backend_devices(backend: BackendName | None = None) -> list[Device] | None:
    """The devices to give ``Model(devices=…)`` so that it runs on one backend.

    These are the GPUs of that backend: those with memory of their own, or, if there are none, those
    that share the system's memory. Empty for ``"cpu"``; None for ``"auto"``, which leaves the
    choice to llama.cpp. Loading a model with ``devices=None`` calls this function.

    Args:
        backend: None for what the environment variable ``PYLLAMA_BACKEND`` says, or else
            ``"auto"``.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: it is not loaded, or has no device here. The message lists the devices.
    """
    name = requested_backend(backend)
    if name == "auto":
        return None
    if name == "cpu":
        return []
    found = [device for device in devices() if device.backend == _REGISTERED[name]]
    for kind in ("gpu", "igpu"):
        chosen = [device for device in found if device.type == kind]
        if chosen:
            return chosen
    raise BackendError(_unmet(name))


def requested_backend(backend: BackendName | None = None) -> BackendName:
    """The requested backend: the argument, ``PYLLAMA_BACKEND``, or ``"auto"``.

    Raises:
        ValueError: there is no backend of that name.
    """
    source = VARIABLE if backend is None else "backend"
    name = (os.environ.get(VARIABLE) or "auto").lower() if backend is None else backend
    if not isinstance(name, str):
        raise TypeError(f"backend must be a str, got {name!r}")
    if name not in get_args(BackendName):
        known = ", ".join(get_args(BackendName))
        raise ValueError(f"{source} must be one of {known}; got {name!r}")
    return cast("BackendName", name)


def _unmet(name: str) -> str:
    """Why the requested backend cannot be used, and which devices can."""
    here = ", ".join(f"{device.name} ({device.description})" for device in devices()) or "none"
    option = name.upper()
    build = {entry.name: entry for entry in build_info()}[option]
    loaded = any(backend.name == _REGISTERED[name] for backend in backends())
    packages = [package for package in backend_packages() if package.backend == option]
    if packages and not loaded:
        reason = "; ".join(f"{package.name} is not used: {package.problem}" for package in packages)
    elif loaded:
        reason = "its driver offers no GPU"
        if name == "vulkan":
            reason += (
                " (GGML_VK_VISIBLE_DEVICES=0 in the environment allows one made of software too)"
            )
    elif build.built:
        reason = "its loader or driver is not installed here (this build has the backend)"
    else:
        reason = f"this build does not have it. {build.note}"
        if name in _EXTRAS:
            reason += f" Or install it ready-made: {extra_command(_EXTRAS[name])}"
    return f"backend {name!r} was asked for, but {reason.rstrip('.')}. Devices here: {here}"
