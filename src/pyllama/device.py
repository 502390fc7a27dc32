"""Devices that models run on, and the backends that drive them (ggml-backend.h)."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyllama import _callbacks  # noqa: F401  (installs the log handler before anything logs)
from pyllama._guard import check, to_str
from pyllama._native import _binding
from pyllama._native._binding import ffi, lib
from pyllama.errors import BackendError

DeviceType = Literal["cpu", "gpu", "igpu", "accel", "meta"]

_TYPES: dict[int, DeviceType] = {
    lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    lib.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    lib.GGML_BACKEND_DEVICE_TYPE_META: "meta",
}

# Beside the extension module, which an editable install keeps apart from the Python files.
_LIBRARIES = Path(_binding.__file__).parent / "lib"

_loading = threading.Lock()
_loaded = False


@dataclass(frozen=True)
class Device:
    """A device as llama.cpp sees it.

    ``type`` is ``"gpu"`` for one with memory of its own, ``"igpu"`` for one that shares the
    system's, ``"accel"`` for a helper of the CPU such as BLAS.
    """

    name: str
    description: str
    type: DeviceType
    backend: str
    _pointer: Any = field(repr=False, compare=False)

    @property
    def memory(self) -> tuple[int, int]:
        """Free and total memory now, in bytes (``ggml_backend_dev_memory``)."""
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        check(lib.guarded_dev_memory(self._pointer, free, total), f"memory of {self.name}")
        return free[0], total[0]


def load_backends() -> None:
    """Load llama.cpp's backend modules from the package, once.

    ``ggml_backend_load_all_from_path``. Loading a model or listing devices does it; call it to
    have the time that it takes elsewhere.

    :raises BackendError: not even a CPU backend could be loaded.
    """
    global _loaded
    with _loading:
        if _loaded:
            return
        folder = os.fsencode(_LIBRARIES)
        check(lib.guarded_backend_init(folder), f"loading the backends in {_LIBRARIES}")
        if not lib.ggml_backend_dev_count():
            raise BackendError(
                f"No backend could be loaded from {_LIBRARIES}. The package is incomplete: "
                "install pyllama again."
            )
        _loaded = True


def devices() -> list[Device]:
    """Every device that a loaded backend offers, in llama.cpp's order."""
    load_backends()
    found = []
    for index in range(lib.ggml_backend_dev_count()):
        pointer = lib.ggml_backend_dev_get(index)
        found.append(
            Device(
                name=to_str(lib.ggml_backend_dev_name(pointer)),
                description=to_str(lib.ggml_backend_dev_description(pointer)).strip(),
                type=_TYPES[lib.ggml_backend_dev_type(pointer)],
                backend=to_str(
                    lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(pointer))
                ),
                _pointer=pointer,
            )
        )
    return found


def backend_features(device: Device) -> dict[str, str]:
    """What the device's backend was built with and found, such as ``{"AVX512": "1"}``."""
    if not isinstance(device, Device):
        raise TypeError(f"device must be a pyllama.Device, got {device!r}")
    features = lib.guarded_reg_features(lib.ggml_backend_dev_backend_reg(device._pointer))
    found: dict[str, str] = {}
    if features != ffi.NULL:
        index = 0
        while features[index].name != ffi.NULL:
            found[to_str(features[index].name)] = to_str(features[index].value)
            index += 1
    return found


@functools.cache
def cpu_math_cores() -> int:
    """Cores worth computing on: physical ones, of hybrid processors the fast ones.

    ``common_cpu_get_num_math``, which llama.cpp's own programs take for their threads; at most
    the CPUs that this process may run on.
    """
    cores = max(1, check(lib.guarded_cpu_math_cores(), "counting the cores"))
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = min(cores, len(os.sched_getaffinity(0)))
    return cores


def llama_cpp_version() -> str:
    """llama.cpp's version and commit, such as ``"0.5.0 (0c1e57098b)"``."""
    return f"{to_str(lib.llama_version())} ({to_str(lib.pyllama_upstream_commit())[:10]})"
