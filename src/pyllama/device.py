"""Devices that models run on, and the backends that drive them (ggml-backend.h).

Backends are loaded once, before anything uses them. After that their list never changes, so any
thread may read it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NoReturn

from pyllama import _callbacks, _process  # noqa: F401  (the log handler, before anything logs)
from pyllama._guard import check, last_errors, raise_caught, raise_if_caught, take_str, to_str
from pyllama._native import _binding
from pyllama._native._binding import ffi, lib
from pyllama._rpc_servers import require_answers
from pyllama.backend_packages import BackendPackage, load_packages
from pyllama.errors import BackendError, NativeError

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyllama._native._binding import (
        Pointer,
        ggml_backend_dev_props,
        ggml_backend_device,
        ggml_backend_reg,
    )

logger = logging.getLogger(__name__)

DeviceType = Literal["cpu", "gpu", "igpu", "accel", "meta"]

_TYPES: dict[int, DeviceType] = {
    lib.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    lib.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    lib.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
    lib.GGML_BACKEND_DEVICE_TYPE_ACCEL: "accel",
    lib.GGML_BACKEND_DEVICE_TYPE_META: "meta",
}

# Beside the extension module, which an editable install keeps apart from the Python files.
_LIBRARIES = os.path.join(os.path.dirname(_binding.__file__), "lib")

# A module of the CPU backend: libggml-cpu-haswell.so, libggml-cpu-armv8.2_1.so, ggml-cpu-x64.dll.
_CPU_MODULE = re.compile(r"(?:lib)?ggml-cpu-(.+)\.(?:so|dll)")

_loading = threading.Lock()
_loaded = False
_packages: list[BackendPackage] = []


class _Found:
    """What llama.cpp found: an immutable value that is meaningless in other processes."""

    name: str

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"a {kind} cannot be pickled: it is of this process. Send its name ({self.name!r}) "
            f"and look for that in {kind.lower()}s() of the other process"
        )


@dataclass(frozen=True)
class Backend(_Found):
    """What drives devices of one kind: the CPU, CUDA, Vulkan, RPC."""

    #: Its name, such as ``"CUDA"``.
    name: str
    #: The file that it was loaded from, whose name tells the variant of a CPU backend; None where
    #: the system does not say.
    path: str | None
    _pointer: Pointer[ggml_backend_reg] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Device(_Found):
    """A device as llama.cpp sees it."""

    #: llama.cpp's name for it, such as ``"CUDA0"``.
    name: str
    #: What it is, such as the model of a card.
    description: str
    #: ``"gpu"`` has memory of its own, ``"igpu"`` shares the system's, ``"accel"`` is a helper of
    #: the CPU such as BLAS.
    type: DeviceType
    #: The name of its ``Backend``.
    backend: str
    _pointer: Pointer[ggml_backend_device] = field(repr=False, compare=False)

    @property
    def memory(self) -> tuple[int, int]:
        """Free and total memory now, in bytes (``ggml_backend_dev_memory``).

        Raises:
            ServerLostError: it is an RPC server's, and that does not answer.
        """
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        with require_answers([self]):
            check(lib.guarded_dev_memory(self._pointer, free, total), f"memory of {self.name}")
        return free[0], total[0]

    @property
    def device_id(self) -> str | None:
        """The PCI bus id, such as ``"0000:c1:00.0"``; None if the device does not report one."""
        device_id = self._props().device_id
        return None if device_id == ffi.NULL else to_str(device_id)

    @property
    def caps(self) -> Mapping[str, bool]:
        """What it is capable of (``ggml_backend_dev_caps``).

        ``async`` computing, pinned ``host_buffer`` memory, ``buffer_from_host_ptr``, ``events``,
        and ``mmap_support`` in loading.
        """
        caps = self._props().caps
        return MappingProxyType({name: getattr(caps, name) for name in dir(caps)})

    def _props(self) -> ggml_backend_dev_props:
        props = ffi.new("struct ggml_backend_dev_props *")
        with require_answers([self]):  # llama.cpp asks for its memory, too
            check(lib.guarded_dev_get_props(self._pointer, props), f"properties of {self.name}")
        return props


def load_backends(
    folder: str | os.PathLike[str] | None = None, *, cpu_variant: str | None = None
) -> None:
    """Load llama.cpp's backend modules, once (``ggml_backend_load_all_from_path``).

    They are the package's own, and those of packages such as pyllama-dspy-cuda13 beside it; see
    ``backend_packages``. Loading a model or listing devices does this as well. Call it earlier to
    spend the time at another moment, or to choose. The environment variable ``GGML_BACKEND_PATH``
    can name one more module.

    Args:
        folder: where the modules are; None for the package's own and those of other packages.
        cpu_variant: which of the CPU modules to use, such as ``"haswell"``. None for what the
            environment variable ``PYLLAMA_CPU_VARIANT`` names, or else the best for this processor.
            If that one uses AMX, a child process computes with it first, because some virtual
            machines announce AMX and do not run it; if the child dies the next best is taken.

    Raises:
        BackendError: not even a CPU backend could be loaded, there is no such variant, this
            processor cannot run it, or backends were loaded already and are not those asked for.
        ForkedError: in a child of fork(), if the parent had loaded them.
    """
    global _loaded
    _process.check()
    chosen = None if folder is None else _path("folder", folder)
    if chosen is not None and not os.path.isdir(chosen):
        raise NotADirectoryError(f"folder must be a folder, but {chosen} is a file")
    if cpu_variant is not None and not isinstance(cpu_variant, str):
        raise TypeError(f"cpu_variant must be a str, got {cpu_variant!r}")
    with _loading:
        if _loaded:
            _check_loaded(chosen, cpu_variant)
            return
        source = chosen or _LIBRARIES
        wanted = cpu_variant or os.environ.get("PYLLAMA_CPU_VARIANT")
        if wanted:
            _load_cpu_variant(source, wanted)
        if chosen is None:
            # First, so that a card that Vulkan reaches as well is used through its maker's backend.
            _packages[:] = load_packages(_LIBRARIES, _load_module)
        before = [reg for reg in _registry() if _reg_name(reg) == "CPU"]
        check(lib.guarded_backend_init(os.fsencode(source)), f"loading the backends in {source}")
        for reg in _registry() if before else ():
            if _reg_name(reg) == "CPU" and reg not in before:
                # The best one, loaded beside the one that was chosen. Nothing uses it yet.
                check(lib.guarded_backend_unload(reg), "unloading a CPU backend")
        if not wanted:
            _replace_cpu_variant_that_dies(source)
        if not any(_reg_name(reg) == "CPU" for reg in _registry()):
            raise BackendError(
                f"No CPU backend could be loaded from {source}. "
                + ("It holds none." if chosen else "Install pyllama again: it is incomplete.")
            )
        _process.watch()
        _loaded = True


def load_backend(path: str | os.PathLike[str]) -> Backend:
    """Load one more backend from a module's file (``ggml_backend_load``).

    Call it before backends are used: afterwards other threads may be reading the list. A CPU
    backend replaces the package's own.

    Raises:
        FileNotFoundError: there is no such file.
        BackendError: the file is no backend of this llama.cpp or cannot run here, or
            ``load_backends``, ``devices`` or a model was called before.
    """
    name = _path("path", path)
    with _loading:
        if _loaded:
            raise BackendError(
                f"{name} was not loaded: the backends are in use already. Call load_backend() "
                "before load_backends(), devices() and the first model"
            )
        return _backend(_load_module(name))


def backend_packages() -> list[BackendPackage]:
    """Every package that adds a backend to this one; if one is not used, with the reason.

    Such packages come with an extra, as in ``pip install "pyllama-dspy[cuda13]"``. One that was
    built for another llama.cpp is refused, with a warning in the log.
    """
    load_backends()
    return list(_packages)


def backends() -> list[Backend]:
    """Every backend that is loaded, in llama.cpp's order."""
    load_backends()
    return registered()


def registered() -> list[Backend]:
    """The backends that are loaded by now."""
    return [_backend(reg) for reg in _registry()]


def devices() -> list[Device]:
    """Every device that a loaded backend offers, in llama.cpp's order."""
    load_backends()
    return [
        _device(lib.ggml_backend_dev_get(index)) for index in range(lib.ggml_backend_dev_count())
    ]


def devices_of(reg: Pointer[ggml_backend_reg]) -> list[Device]:
    """The devices of one entry of ggml's registry."""
    return [
        _device(lib.ggml_backend_reg_dev_get(reg, index))
        for index in range(lib.ggml_backend_reg_dev_count(reg))
    ]


def backend_features(device: Device | Backend) -> dict[str, str]:
    """What a backend, or a device's, was built with and found, such as ``{"AVX512": "1"}``."""
    if isinstance(device, Device):
        reg = lib.ggml_backend_dev_backend_reg(device._pointer)
    elif isinstance(device, Backend):
        reg = device._pointer
    else:
        raise TypeError(f"device must be a pyllama.Device or Backend, got {device!r}")
    features = lib.guarded_reg_features(reg)
    raise_if_caught("the features of a backend")
    found: dict[str, str] = {}
    if features != ffi.NULL:
        index = 0
        while features[index].name != ffi.NULL:
            found[to_str(features[index].name)] = to_str(features[index].value)
            index += 1
    return found


def cpu_variant() -> str | None:
    """Which variant of the CPU backend is loaded, such as ``"haswell"``.

    None in a build that has one CPU backend only (``GGML_CPU_ALL_VARIANTS=OFF``).
    """
    paths = [backend.path for backend in backends() if backend.name == "CPU"]
    match = _CPU_MODULE.fullmatch(os.path.basename(paths[0] or "")) if paths else None
    return match[1] if match else None


@functools.cache
def cpu_math_cores() -> int:
    """Cores worth computing on: physical ones, and on hybrid processors only the fast ones.

    ``common_cpu_get_num_math``, as llama.cpp's own programs use it, but at most the CPUs that this
    process may run on.
    """
    cores = max(1, check(lib.guarded_cpu_math_cores(), "counting the cores"))
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        cores = min(cores, len(os.sched_getaffinity(0)))
    return cores


def system_info() -> str:
    """The features of all backends in one line (``llama_print_system_info``)."""
    load_backends()
    return take_str(lib.guarded_system_info(), "describing the system").strip(" |")


def llama_cpp_version() -> str:
    """llama.cpp's version and commit, such as ``"0.5.0 (0c1e57098b)"``."""
    return f"{to_str(lib.llama_version())} ({to_str(lib.pyllama_upstream_commit())[:10]})"


def max_devices() -> int:
    """The most devices that one model can be spread over (``llama_max_devices``)."""
    count: int = lib.llama_max_devices()
    return count


def max_parallel_sequences() -> int:
    """The most sequences that one context can hold (``llama_max_parallel_sequences``)."""
    count: int = lib.llama_max_parallel_sequences()
    return count


def supports_mmap() -> bool:
    """Whether models can be mapped into memory on this system (``llama_supports_mmap``)."""
    return bool(lib.llama_supports_mmap())


def supports_mlock() -> bool:
    """Whether models can be locked in memory on this system (``llama_supports_mlock``)."""
    return bool(lib.llama_supports_mlock())


def supports_gpu_offload() -> bool:
    """Whether a GPU, or a backend that reaches one, is there (``llama_supports_gpu_offload``)."""
    load_backends()
    return bool(lib.llama_supports_gpu_offload())


def supports_rpc() -> bool:
    """Whether the RPC backend is loaded (``llama_supports_rpc``)."""
    load_backends()
    return bool(lib.llama_supports_rpc())


def _device(pointer: Pointer[ggml_backend_device]) -> Device:
    return Device(
        name=to_str(lib.ggml_backend_dev_name(pointer)),
        description=to_str(lib.ggml_backend_dev_description(pointer)).strip(),
        type=_TYPES[lib.ggml_backend_dev_type(pointer)],
        backend=_reg_name(lib.ggml_backend_dev_backend_reg(pointer)),
        _pointer=pointer,
    )


def _backend(reg: Pointer[ggml_backend_reg]) -> Backend:
    path = take_str(lib.guarded_reg_path(reg), "the file of a backend")
    return Backend(_reg_name(reg), path or None, reg)


def _registry() -> list[Pointer[ggml_backend_reg]]:
    return [lib.ggml_backend_reg_get(index) for index in range(lib.ggml_backend_reg_count())]


def _reg_name(reg: Pointer[ggml_backend_reg]) -> str:
    return to_str(lib.ggml_backend_reg_name(reg))


def _path(name: str, value: str | os.PathLike[str]) -> str:
    """An absolute path to something that is there."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a str or a path, got {value!r}")
    if "\0" in path:
        raise ValueError(f"{name} must not contain a null character, got {path!r}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name}: there is no {path}")
    return os.path.abspath(path)


def _load_module(path: str) -> Pointer[ggml_backend_reg]:
    reg = lib.guarded_backend_load(os.fsencode(path))
    if reg == ffi.NULL:
        if not lib.pyllama_caught() and not last_errors():
            raise BackendError(f"loading {path}: this system cannot run it")
        try:
            raise_caught(f"loading {path}")
        except NativeError as error:
            raise BackendError(str(error)) from None
    return reg


def _load_cpu_variant(folder: str, variant: str) -> None:
    modules = _cpu_modules(folder)
    if variant not in modules:
        raise BackendError(
            f"there is no CPU variant {variant!r} in {folder}: "
            + (f"it holds {', '.join(sorted(modules))}" if modules else "this build has one only")
        )
    _load_module(modules[variant])


def _cpu_modules(folder: str) -> dict[str, str]:
    """The paths of the modules of the CPU backend, by their variants."""
    return {
        match[1]: os.path.join(folder, entry)
        for entry in os.listdir(folder)
        if (match := _CPU_MODULE.fullmatch(entry))
    }


def _replace_cpu_variant_that_dies(folder: str) -> None:
    """Take the next best CPU module if the best one ends the process when it computes.

    ggml chooses by what CPUID announces. Some virtual machines announce AMX and do not run it.
    """
    reg = next((reg for reg in _registry() if _reg_name(reg) == "CPU"), None)
    if reg is None or _computes(reg):
        return
    best, *others = sorted(_cpu_modules(folder).values(), key=_score, reverse=True)
    for path in others:
        if not _score(path):
            return
        check(lib.guarded_backend_unload(reg), "unloading a CPU backend")
        reg = _load_module(path)
        if _computes(reg):
            logger.info("%s dies when it computes on this machine: %s is used", best, path)
            return


def _computes(reg: Pointer[ggml_backend_reg]) -> bool:
    """Whether a CPU backend computes here; it is tried in a child process if it uses AMX."""
    if backend_features(_backend(reg)).get("AMX_INT8", "0") == "0":
        return True
    return bool(lib.pyllama_survives(ffi.addressof(lib, "pyllama_multiply_on"), reg))


@functools.cache
def _score(path: str) -> int:
    """How well a module suits this processor; 0 if it does not run."""
    return check(lib.guarded_backend_score(os.fsencode(path)), f"looking at {path}")


def _check_loaded(folder: str | None, variant: str | None) -> None:
    """Refuse a choice of modules that differs from what was loaded."""
    paths = [_backend(reg).path or "" for reg in _registry()]
    if folder is not None and not any(path.startswith(folder + os.sep) for path in paths):
        raise BackendError(f"backends were loaded from elsewhere than {folder} already: {paths}")
    names = {os.path.basename(path) for path in paths}
    loaded = {match[1] for name in names if (match := _CPU_MODULE.fullmatch(name))}
    if variant is not None and variant not in loaded:
        raise BackendError(
            f"cpu_variant={variant!r} comes too late: backends were loaded already, "
            f"with {', '.join(loaded) or 'the only CPU backend'}. Call load_backends() first"
        )
