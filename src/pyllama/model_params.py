"""The parameters of a load: options, checked, and the C struct made of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict

from pyllama._arguments import INT32_MAX, UINT32_MAX, choice, integer, real
from pyllama._callbacks import Progress
from pyllama._guard import last_errors, raise_caught
from pyllama._native._binding import ffi, lib
from pyllama.backend_choice import backend_devices
from pyllama.device import Device, load_backends
from pyllama.device import devices as all_devices
from pyllama.errors import ModelLoadCancelled, ModelLoadError, NativeError

if TYPE_CHECKING:
    from pyllama._native._binding import (
        Array,
        Pointer,
        ggml_backend_buffer_type,
        llama_model_tensor_buft_override,
    )

SplitMode = Literal["none", "layer", "row", "tensor"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap_mlock", "direct_io"]
LazyMode = Literal["off", "auto", "on"]

_SPLIT_MODES: dict[str, int] = {
    "none": lib.LLAMA_SPLIT_MODE_NONE,
    "layer": lib.LLAMA_SPLIT_MODE_LAYER,
    "row": lib.LLAMA_SPLIT_MODE_ROW,
    "tensor": lib.LLAMA_SPLIT_MODE_TENSOR,
}
_LOAD_MODES: dict[str, int] = {
    "auto": lib.LLAMA_LOAD_MODE_AUTO,
    "none": lib.LLAMA_LOAD_MODE_NONE,
    "mmap": lib.LLAMA_LOAD_MODE_MMAP,
    "mlock": lib.LLAMA_LOAD_MODE_MLOCK,
    "mmap_mlock": lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
    "direct_io": lib.LLAMA_LOAD_MODE_DIRECT_IO,
}
_LAZY_MODES: dict[str, int] = {
    "off": lib.LLAMA_LAZY_MODE_OFF,
    "auto": lib.LLAMA_LAZY_MODE_AUTO,
    "on": lib.LLAMA_LAZY_MODE_ON,
}

_MAX_TEXT = 127  # bytes in the fixed arrays of struct llama_model_kv_override
_MAX_PATTERN = 256  # characters: std::regex recurses once for each open parenthesis


class ModelOptions(TypedDict, total=False):
    """The keyword arguments of ``Model`` and of its other constructors."""

    devices: Sequence[Device] | None
    n_gpu_layers: int
    split_mode: SplitMode
    main_gpu: int
    tensor_split: Sequence[float] | None
    tensor_buft_overrides: Mapping[str, Device] | None
    load_mode: LoadMode
    lazy_mode: LazyMode
    kv_overrides: Mapping[str, bool | int | float | str] | None
    vocab_only: bool
    load_mtp: bool
    check_tensors: bool
    use_extra_bufts: bool
    no_host: bool
    progress: Callable[[float], bool | None] | None


class ModelParams:
    """A ``llama_model_params`` made of checked arguments, and the memory that its pointers refer
    to.
    """

    def __init__(
        self,
        *,
        devices: Sequence[Device] | None = None,
        n_gpu_layers: int = -1,
        split_mode: SplitMode = "layer",
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        tensor_buft_overrides: Mapping[str, Device] | None = None,
        load_mode: LoadMode = "auto",
        lazy_mode: LazyMode = "auto",
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        vocab_only: bool = False,
        load_mtp: bool = False,
        check_tensors: bool = False,
        use_extra_bufts: bool = True,
        no_host: bool = False,
        progress: Callable[[float], bool | None] | None = None,
    ) -> None:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = integer("n_gpu_layers", n_gpu_layers, -INT32_MAX, INT32_MAX)
        params.split_mode = choice("split_mode", split_mode, _SPLIT_MODES)
        params.load_mode = choice("load_mode", load_mode, _LOAD_MODES)
        params.lazy_mode = choice("lazy_mode", lazy_mode, _LAZY_MODES)
        params.main_gpu = integer("main_gpu", main_gpu, 0, lib.llama_max_devices() - 1)
        params.vocab_only = bool(vocab_only)
        params.load_mtp = bool(load_mtp)
        params.check_tensors = bool(check_tensors)
        params.use_extra_bufts = bool(use_extra_bufts)
        params.no_host = bool(no_host)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable, got {progress!r}")

        load_backends()
        #: Passes the progress callback through C.
        self.progress = Progress(progress)
        self._pointees = (
            _device_array(devices),
            _split_array(tensor_split),
            _buft_override_array(tensor_buft_overrides, devices),
            kv_override_array(kv_overrides),
            ffi.new_handle(self.progress),
        )
        (
            params.devices,
            params.tensor_split,
            (params.tensor_buft_overrides, _),
            params.kv_overrides,
            params.progress_callback_user_data,
        ) = self._pointees
        params.progress_callback = lib.pyllama_on_progress
        self.struct = params

    def raise_failed(self, what: str) -> NoReturn:
        """Raise for a load that failed."""
        self.progress.raise_if_stopped(
            ModelLoadCancelled(f"{what}: cancelled by the progress callback")
        )
        reasons = last_errors()
        try:
            raise_caught(what)
        except NativeError as error:
            for code in errno.EMFILE, errno.ENFILE:
                if os.strerror(code) in f"{error} {reasons}":  # the file is not at fault
                    raise OSError(code, f"{what}: {os.strerror(code)}") from None
            raise ModelLoadError(
                f"{error}. The file is damaged, incomplete, or of a kind that this llama.cpp "
                "does not know."
                if not reasons
                else f"{what}: {reasons}"
            ) from None


def kv_override_array(
    overrides: Mapping[str, bool | int | float | str] | None, *, lowest: int = -(2**31)
) -> Any:
    """An array of ``llama_model_kv_override``, terminated by an empty key; NULL for None."""
    if overrides is None:
        return ffi.NULL
    if not isinstance(overrides, Mapping):
        raise TypeError(f"kv_overrides must be a mapping, got {overrides!r}")
    array = ffi.new("struct llama_model_kv_override[]", len(overrides) + 1)
    for entry, (key, value) in zip(array, overrides.items(), strict=False):
        entry.key = _short_text("kv_overrides", key)
        if not key:
            raise ValueError("kv_overrides must not have an empty key")
        name = f"kv_overrides[{key!r}]"
        if isinstance(value, bool):
            entry.tag, entry.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, str):
            entry.tag, entry.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, _short_text(name, value)
        elif isinstance(value, float):
            entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT
            entry.val_f64 = real(name, value, -3.4e38, 3.4e38)
        else:
            entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
            entry.val_i64 = integer(name, value, lowest, UINT32_MAX)
    return array


def pattern(name: str, value: str) -> Array[bytes]:
    """A regular expression over tensor names, as a C string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must have strings for keys, got {value!r}")
    if not 0 < len(value) <= _MAX_PATTERN or "\0" in value:
        raise ValueError(
            f"{name} must have regular expressions of 1 to {_MAX_PATTERN} characters for keys, "
            f"got {value!r}"
        )
    return ffi.new("char[]", utf8(name, value))


def utf8(name: str, text: str) -> bytes:
    """The text as UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds a lone surrogate: {text!r}") from None


def _short_text(name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be text, got {text!r}")
    data = utf8(name, text)
    if len(data) > _MAX_TEXT or b"\0" in data:
        raise ValueError(
            f"{name} must be text of at most {_MAX_TEXT} bytes without null characters, "
            f"got {text!r}"
        )
    return data


def _device_array(devices: Sequence[Device] | None) -> Any:
    if devices is None:
        devices = backend_devices()
    if devices is None:
        return ffi.NULL
    if not isinstance(devices, Sequence):
        raise TypeError(f"devices must be a sequence of pyllama.Device objects, got {devices!r}")
    for device in devices:
        _require_device("devices", device)
    return ffi.new("ggml_backend_dev_t[]", [*(device._pointer for device in devices), ffi.NULL])


def _split_array(shares: Sequence[float] | None) -> Any:
    if shares is None:
        return ffi.NULL
    if not isinstance(shares, Sequence):
        raise TypeError(f"tensor_split must be a sequence of numbers, got {shares!r}")
    room = lib.llama_max_devices()
    if not 0 < len(shares) <= room:
        raise ValueError(f"tensor_split must hold 1 to {room} values, got {len(shares)}")
    values = [real(f"tensor_split[{i}]", share, 0.0, 1e9) for i, share in enumerate(shares)]
    if not any(values):
        raise ValueError(f"tensor_split must give some device a share, got {list(shares)!r}")
    return ffi.new("float[]", values + [0.0] * (room - len(values)))


def _buft_override_array(
    overrides: Mapping[str, Device] | None, devices: Sequence[Device] | None
) -> tuple[Array[llama_model_tensor_buft_override], list[Array[bytes]]]:
    """The array, terminated by an entry without a pattern, and its strings."""
    if overrides is None:
        return ffi.NULL, []
    if not isinstance(overrides, Mapping):
        raise TypeError(f"tensor_buft_overrides must be a mapping, got {overrides!r}")
    room = lib.llama_max_tensor_buft_overrides() - 1
    if len(overrides) > room:
        raise ValueError(
            f"tensor_buft_overrides must hold at most {room} entries, got {len(overrides)}"
        )
    patterns = [pattern("tensor_buft_overrides", key) for key in overrides]
    array = ffi.new("struct llama_model_tensor_buft_override[]", len(overrides) + 1)
    taken = all_devices() if devices is None else devices
    for entry, text, device in zip(array, patterns, overrides.values(), strict=False):
        _require_device("tensor_buft_overrides", device)
        if device.type != "cpu" and device not in taken:
            raise ValueError(f"tensor_buft_overrides names a device outside devices: {device!r}")
        entry.pattern = text
        entry.buft = buffer_type(device)
    return array, patterns


def buffer_type(device: Device) -> Pointer[ggml_backend_buffer_type]:
    """The buffer type in which a device's tensors are kept (``ggml_backend_dev_buffer_type``)."""
    found = lib.guarded_dev_buffer_type(device._pointer)
    if found == ffi.NULL:
        raise_caught(f"asking for the buffers of {device.name}")
    return found


def _require_device(name: str, device: Device) -> None:
    if not isinstance(device, Device):
        raise TypeError(f"{name} must hold pyllama.Device objects, got {device!r}")
