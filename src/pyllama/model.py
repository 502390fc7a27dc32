"""Models: a GGUF file loaded by llama.cpp."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pyllama._arguments import INT32_MAX, choice, integer, real
from pyllama._callbacks import Progress
from pyllama._guard import check, last_errors, raise_caught, to_str
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.device import Device, load_backends
from pyllama.errors import ClosedError, ModelLoadCancelled, ModelLoadError, NativeError
from pyllama.vocab import Vocab

SplitMode = Literal["none", "layer", "row", "tensor"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap_mlock", "direct_io"]

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


class Model(NativeObject):
    """A model loaded from a GGUF file (``llama_model_load_from_file``).

    Any number of threads may use one at a time. Its contexts stand on it: :meth:`close` closes
    them first, waiting for a decode that another thread is in.

    :param path: the file; for a split model its first part.
    :param devices: run on these, in this order; None for all GPUs, or the CPU without one; an
        empty sequence for the CPU alone.
    :param n_gpu_layers: layers kept in the devices' memory; negative for all.
    :param split_mode: how layers are spread over several devices.
    :param main_gpu: index into the devices, for ``split_mode="none"``.
    :param tensor_split: share of each device, in any unit; at most ``llama_max_devices()`` values.
    :param load_mode: how the file is read into memory.
    :param vocab_only: load the vocabulary and metadata without weights.
    :param check_tensors: validate every tensor's values while loading.
    :param progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.
    :raises FileNotFoundError: there is no such file.
    :raises ModelLoadError: the file is no model that llama.cpp can load; the message says why.
    :raises ModelLoadCancelled: ``progress`` returned False. What it raises is raised as it is.
    :raises ValueError: an argument out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        devices: Sequence[Device] | None = None,
        n_gpu_layers: int = -1,
        split_mode: SplitMode = "layer",
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        load_mode: LoadMode = "auto",
        vocab_only: bool = False,
        check_tensors: bool = False,
        progress: Callable[[float], bool | None] | None = None,
    ) -> None:
        super().__init__()
        self._contexts: weakref.WeakSet[NativeObject] = weakref.WeakSet()
        self.path = _readable_gguf(path)

        params = lib.llama_model_default_params()
        params.n_gpu_layers = integer("n_gpu_layers", n_gpu_layers, -INT32_MAX, INT32_MAX)
        params.split_mode = choice("split_mode", split_mode, _SPLIT_MODES)
        params.load_mode = choice("load_mode", load_mode, _LOAD_MODES)
        params.main_gpu = integer("main_gpu", main_gpu, 0, lib.llama_max_devices() - 1)
        params.vocab_only = bool(vocab_only)
        params.check_tensors = bool(check_tensors)

        load_backends()
        # C reads these until the call returns; the names keep them alive.
        device_list = _device_array(devices)
        split = _split_array(tensor_split)
        params.devices = device_list
        params.tensor_split = split
        report = Progress(progress) if progress is not None else None
        user_data = ffi.new_handle(report)
        if report is not None:
            params.progress_callback = lib.pyllama_on_progress
            params.progress_callback_user_data = user_data

        what = f"loading {self.path}"
        pointer = lib.guarded_model_load_from_file(os.fsencode(self.path), ffi.addressof(params))
        if pointer == ffi.NULL:
            _raise_load_error(what, report)
        self._own(pointer, lib.guarded_model_free)

        #: Whether only vocabulary and metadata were loaded.
        self.vocab_only: bool = params.vocab_only
        #: The vocabulary; it lives as long as the model.
        self.vocab = Vocab(self, lib.llama_model_get_vocab(pointer))
        #: Context length the model was trained with, in tokens.
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(pointer)
        #: Size of an embedding.
        self.n_embd: int = lib.llama_model_n_embd(pointer)
        self.n_layer: int = lib.llama_model_n_layer(pointer)
        self.n_head = check(lib.guarded_model_n_head(pointer), "the number of heads")
        #: Heads that keys and values have; fewer than n_head with grouped-query attention.
        self.n_head_kv = check(lib.guarded_model_n_head_kv(pointer), "the number of heads")
        #: Width of the sliding attention window in tokens; 0 without one.
        self.n_swa: int = lib.llama_model_n_swa(pointer)
        #: Number of parameters.
        self.n_params: int = lib.llama_model_n_params(pointer)
        #: Size of all tensors in bytes.
        self.size: int = lib.llama_model_size(pointer)
        self.has_encoder: bool = lib.llama_model_has_encoder(pointer)
        self.has_decoder: bool = lib.llama_model_has_decoder(pointer)
        #: Whether the state is recurrent (Mamba, RWKV): it cannot go back to an earlier position.
        self.is_recurrent: bool = lib.llama_model_is_recurrent(pointer)
        #: Whether recurrent and attention layers are mixed (Jamba, Granite).
        self.is_hybrid: bool = lib.llama_model_is_hybrid(pointer)
        self.is_diffusion: bool = lib.llama_model_is_diffusion(pointer)
        #: Type, size and quantization in words, such as ``"llama 135M Q4_1"``.
        self.desc = _string(lib.guarded_model_desc, pointer)
        #: The file's metadata, scalar values as strings; arrays are left out.
        self.metadata: Mapping[str, str] = MappingProxyType(_metadata(pointer))

    def chat_template(self, name: str | None = None) -> str | None:
        """The source of the model's chat template, or None if it has none of that name.

        :param name: a named template such as ``"tool_use"``; None for the default one.
        """
        with self._open() as pointer:
            source = lib.guarded_model_chat_template(
                pointer, ffi.NULL if name is None else name.encode()
            )
            return None if source == ffi.NULL else to_str(source)

    def close(self) -> None:
        """Free the model, after closing its contexts. Closing again does nothing.

        A decode that another thread is in is waited for.
        """
        with self._lock:
            handle, self._handle = self._handle, None
            contexts = list(self._contexts)
        for context in contexts:
            context.close()
        del handle  # frees the model unless another thread is inside a call on it

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.desc
        return f"<pyllama.Model {os.path.basename(self.path)!r}: {state}>"

    def _adopt(self, context: NativeObject) -> None:
        """Remember a context that stands on this model, so that close() closes it first."""
        with self._lock:
            if self._handle is not None:
                self._contexts.add(context)
                return
        context.close()
        raise ClosedError(f"this Model was closed while a context was made from it: {self.path}")


def _readable_gguf(path: str | os.PathLike[str]) -> str:
    """The path as str, if it names a file that begins like GGUF."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path must be a str or a path, got {path!r}")
    if "\0" in name:
        raise ValueError(f"path must not contain a null character, got {name!r}")
    if os.path.isdir(name):
        raise IsADirectoryError(f"path must be a GGUF file, but {name} is a folder")
    with open(name, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelLoadError(
            f"{name} is no GGUF file: it begins with {magic!r}, not b'GGUF'. "
            "Give the path of a model in GGUF format."
        )
    return name


def _device_array(devices: Sequence[Device] | None) -> Any:
    if devices is None:
        return ffi.NULL
    if not isinstance(devices, Sequence):
        raise TypeError(f"devices must be a sequence of pyllama.Device objects, got {devices!r}")
    for device in devices:
        if not isinstance(device, Device):
            raise TypeError(f"devices must hold pyllama.Device objects, got {device!r}")
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


def _raise_load_error(what: str, progress: Progress | None) -> None:
    if progress is not None and progress.cancelled:
        if progress.raised is not None:
            raise progress.raised
        raise ModelLoadCancelled(f"{what}: cancelled by the progress callback")
    reasons = last_errors()
    try:
        raise_caught(what)
    except NativeError as error:
        raise ModelLoadError(
            f"{error}. The file is damaged, incomplete, or of a kind that this llama.cpp "
            "does not know."
            if not reasons
            else f"{what}: {reasons}"
        ) from None


def _string(getter: Callable[..., int], *arguments: Any) -> str:
    """What a llama.h function writes into a buffer, whatever its length."""
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        length = check(getter(*arguments, buffer, size), "reading the model's metadata")
        if length < size:
            return to_str(buffer) if length >= 0 else ""
        size = length + 1


def _metadata(pointer: Any) -> dict[str, str]:
    return {
        _string(lib.guarded_model_meta_key, pointer, index): _string(
            lib.guarded_model_meta_val, pointer, index
        )
        for index in range(lib.llama_model_meta_count(pointer))
    }
