"""Adapters, which change what a context computes: LoRA, and control vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllama import _model_file, _process, python_sampler
from pyllama._arguments import integer, real
from pyllama._guard import last_errors, raise_caught
from pyllama._half_made import or_half_made
from pyllama._model_metadata import read_string
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject, holding_all
from pyllama.context import Context
from pyllama.errors import AdapterError, NativeError
from pyllama.model import Model

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_adapter_lora


class LoraAdapter(NativeObject["Pointer[llama_adapter_lora]"]):
    """A LoRA adapter for one model (``llama_adapter_lora_init``).

    ``set_adapters_lora`` puts it to use. It keeps its model alive; closing the model closes
    it, and closing it takes it out of the contexts that use it. Loading and closing wait for
    decodes of the model's contexts, so that a method of a sampler in Python cannot load one.

    Args:
        path: a GGUF file, as llama.cpp's ``convert_lora_to_gguf.py`` writes it.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterError: the file is not an adapter, or not one for this model; the message says why.
    """

    _instead_of_copying = "Load its file again: LoraAdapter(model, path)"

    def __init__(self, model: Model, path: str | os.PathLike[str]) -> None:
        super().__init__()
        if not isinstance(model, Model):
            raise TypeError(f"model must be a pyllama.Model, got {model!r}")
        if python_sampler.is_calling():
            raise AdapterError(
                f"the adapter {os.fspath(path)!r} cannot be loaded by a sampler's method: loading "
                "waits for the contexts of the model, and this one's is in use. Load it before"
            )
        #: The file it was loaded from.
        self.path = _model_file.readable_gguf(path)
        #: The model it changes.
        self.model = model
        n_expert = model._in_use.number("expert_count", 0)
        handle = model._open()

        def load() -> None:
            with handle as model_pointer:
                pointer = lib.guarded_adapter_lora_init(
                    model_pointer, os.fsencode(self.path), n_expert
                )
                if pointer == ffi.NULL:
                    _raise_adapter_error(f"loading the adapter {self.path}")
                # Contexts walk through the model's adapters while they decode: the garbage
                # collector must not free one in between.
                self._own(pointer, model._adapter_keeper(), handle)

        model._at_rest(Context, load)
        pointer = self._open().pointer
        #: The file's metadata, scalar values as strings; arrays are left out.
        self.metadata: Mapping[str, str] = MappingProxyType(_metadata(pointer))
        n_tokens = lib.llama_adapter_get_alora_n_invocation_tokens(pointer)
        #: Tokens after which an activated LoRA (aLoRA) is meant to be put to use; often empty.
        self.alora_invocation_tokens: tuple[int, ...] = tuple(
            ffi.unpack(lib.llama_adapter_get_alora_invocation_tokens(pointer), n_tokens)
            if n_tokens
            else ()
        )
        model._adopt(self)

    def close(self) -> None:
        """Take it out of the contexts that use it, and free it. Closing again does nothing."""
        if _process.unusable:  # in a child of fork() the contexts are the parent's
            super().close()
            return
        with self._lock:
            for context in self.model._dependents_of(Context):
                context._drop_adapter(self)
            super().close()
        if not python_sampler.is_calling():  # which would wait for itself; the model frees it later
            self.model._at_rest(Context, self.model._free_retired_adapters)

    @or_half_made
    def __repr__(self) -> str:
        state = "closed" if self.closed else f"for {self.model.desc!r}"
        return f"<pyllama.LoraAdapter {os.path.basename(self.path)!r}: {state}>"


def set_adapters_lora(context: Context, adapters: Mapping[LoraAdapter, float]) -> None:
    """Let a context use these LoRA adapters, and no others (``llama_set_adapters_lora``).

    What the context's memory already holds was computed without them, and stays as it is.

    Args:
        adapters: each with the scale of what it adds, where 1.0 is as trained; empty for none.

    Raises:
        ValueError: an adapter of another model, or a scale that is not finite.
        ClosedError: the context or an adapter is closed.
    """
    if not isinstance(context, Context):
        raise TypeError(f"context must be a pyllama.Context, got {context!r}")
    if not isinstance(adapters, Mapping):
        raise TypeError(f"adapters must map pyllama.LoraAdapter to its scale, got {adapters!r}")
    scales: dict[NativeObject[Pointer[llama_adapter_lora]], float] = {}
    for adapter, scale in adapters.items():
        if not isinstance(adapter, LoraAdapter):
            raise TypeError(f"adapters must hold pyllama.LoraAdapter objects, got {adapter!r}")
        if adapter.model is not context.model:
            raise ValueError(f"adapters must be of the context's model, got {adapter!r}")
        scales[adapter] = real(f"adapters[{adapter!r}]", scale, -1e6, 1e6)
    # Always in one order, so that two calls cannot deadlock.
    holding_all(sorted(scales, key=id), lambda: context._set_adapters(scales))


def set_control_vector(
    context: Context,
    directions: ArrayLike | None,
    *,
    layer_start: int = 1,
    layer_end: int | None = None,
) -> None:
    """Add a direction to what some layers of a context compute (``llama_set_adapter_cvec``).

    Args:
        directions: float32 array of shape (n_layers, n_embd), the first row for layer 1: layer 0
            has none. Rows of layers that it does not reach are zero. None for no control vector.
        layer_start: the first layer that is changed.
        layer_end: the last layer that is changed; None for the model's last.

    Raises:
        ValueError: another shape, values that are not finite, or layers that do not exist.
    """
    if not isinstance(context, Context):
        raise TypeError(f"context must be a pyllama.Context, got {context!r}")
    model = context.model
    last = model.n_layer - 1
    start = integer("layer_start", layer_start, 1, max(last, 1))
    end = integer("layer_end", last if layer_end is None else layer_end, min(start, last), last)
    data, size = ffi.NULL, 0
    if directions is not None:
        # llama.cpp leaves the rows of layers beyond the data as an earlier vector set them.
        rows = np.zeros((last, model.n_embd), dtype=np.float32)
        given = _directions(directions, model)
        rows[: len(given)] = given
        data, size = ffi.from_buffer("float[]", rows), rows.size
    call = lib.guarded_set_adapter_cvec
    if context._change("setting a control vector", call, data, size, model.n_embd, start, end):
        raise AdapterError(f"setting a control vector: {last_errors()}")


def load_control_vector(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The directions of a control vector's file, for ``set_control_vector``.

    ``common_control_vector_load``.

    Args:
        path: a GGUF file with a tensor ``direction.1``, ``direction.2``, … for each layer.

    Returns:
        float32 array of shape (n_layers, n_embd), the first row for layer 1; rows without a tensor
        are zero.

    Raises:
        AdapterError: the file is no control vector.
    """
    name = _model_file.readable_gguf(path)
    n_layers, n_embd = ffi.new("int32_t *"), ffi.new("int32_t *")
    rows = lib.guarded_control_vector_load(os.fsencode(name), n_layers, n_embd)
    if rows == ffi.NULL:
        _raise_adapter_error(f"loading the control vector {name}")
    try:
        size = n_layers[0] * n_embd[0] * ffi.sizeof("float")
        values = np.array(np.frombuffer(ffi.buffer(rows, size), dtype=np.float32))
    finally:
        lib.pyllama_free(rows)
    return values.reshape(n_layers[0], n_embd[0])


def _directions(directions: ArrayLike, model: Model) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # infinite, which is refused below
            rows = np.asarray(directions, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"directions must be numbers, got {directions!r}") from None
    if rows.ndim != 2 or rows.shape[1] != model.n_embd or not 1 <= len(rows) < model.n_layer:
        raise ValueError(
            f"directions must have the shape (1 to {model.n_layer - 1}, {model.n_embd}) for this "
            f"model, got {rows.shape}"
        )
    if not np.isfinite(rows).all():
        raise ValueError("directions must be finite")
    return rows


def _metadata(pointer: Pointer[llama_adapter_lora]) -> dict[str, str]:
    return {
        read_string(lib.guarded_adapter_meta_key, pointer, index): read_string(
            lib.guarded_adapter_meta_val, pointer, index
        )
        for index in range(lib.llama_adapter_meta_count(pointer))
    }


def _raise_adapter_error(what: str) -> None:
    try:
        raise_caught(what)
    except NativeError as error:
        raise AdapterError(str(error)) from None
