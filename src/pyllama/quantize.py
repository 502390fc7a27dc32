"""Quantization: a model file rewritten with smaller types."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllama import _model_file
from pyllama._arguments import choice, integer
from pyllama._callbacks import Progress
from pyllama._guard import check, raise_caught, take_str
from pyllama._native._binding import ffi, lib
from pyllama.device import load_backends
from pyllama.errors import NativeError, QuantizeCancelled, QuantizeError
from pyllama.file_type import FILE_TYPES, FileType
from pyllama.ggml_type import WRITABLE_TYPES, GgmlType, row_size
from pyllama.imatrix import imatrix_array, read_imatrix
from pyllama.model import Model
from pyllama.model_params import kv_override_array, pattern
from pyllama.scratch_folder import scratch_folder

if TYPE_CHECKING:
    from pyllama._native._binding import (
        Array,
        llama_model_quantize_params,
        llama_model_tensor_override,
    )

_MAX_THREADS = 512

_WRITABLE_FILES = {name: number for name, number in FILE_TYPES.items() if name != "NVFP4"}

# llama.cpp fits these types to a grid. If the squares of the values overflow, it ends the process
# from a thread of its own.
_GRID_TYPES = ("iq1", "iq2", "iq3")
_MAX_MAGNITUDE = 1e6
# The process also ends if these have no imatrix. llama.cpp requires one, but not for these tensors.
_IMATRIX_TYPES = ("iq1_s", "iq2_xxs", "iq2_xs")
_UNASKED_TENSORS = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")

# llama.cpp's report of a tensor: what it is, and then its new type.
_TENSOR = re.compile(r"\[ *\d+/ *\d+\] (.*?) +- \[([ \d,]+)\], type = +(\w+), ")
_NEW_TYPE = re.compile(r"converting to (\w+) \.\.|-> +[\d.]+ MiB \((\w+)\)$")

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Quantization:
    """The result of a quantization, or of a dry run.

    Sizes are those of all tensors, in bytes, without the file's metadata.
    """

    #: The files written; empty after a dry run.
    paths: tuple[str, ...]
    #: Bytes of the tensors before.
    original_size: int
    #: Bytes of the tensors now.
    size: int
    #: The type that each tensor has now, such as ``"q4_K"``.
    tensor_types: Mapping[str, str] = field(repr=False)  # one for each of hundreds of tensors


def quantize(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    ftype: FileType,
    *,
    imatrix: Mapping[str, NDArray[np.float32]] | str | os.PathLike[str] | None = None,
    output_tensor_type: GgmlType | None = None,
    token_embedding_type: GgmlType | None = None,
    tensor_types: Mapping[str, GgmlType] | None = None,
    allow_requantize: bool = False,
    quantize_output_tensor: bool = True,
    only_copy: bool = False,
    pure: bool = False,
    keep_split: bool = False,
    prune_layers: Sequence[int] = (),
    kv_overrides: Mapping[str, bool | int | float | str] | None = None,
    nthread: int | None = None,
    max_buf_size: int = 0,
    dry_run: bool = False,
    progress: Callable[[float], bool | None] | None = None,
) -> Quantization:
    """Write a model with its tensors quantized (``llama_model_quantize``).

    The output appears, or replaces an older one, when it is complete. llama.cpp logs each
    tensor. ``progress`` and Ctrl-C in the main thread stop it between two tensors;
    a large one can take seconds.

    Args:
        src: the model, preferably in F32, F16 or BF16; the first part of a split one.
        dst: the file to write; None with ``dry_run``.
        ftype: the mixture of types, such as ``"Q4_K_M"``.
        imatrix: how much each column of a tensor matters: by tensor names float32 arrays of shape
            (n_columns,), or (n_columns * n_experts,) for experts, with values from 0 to 1e12; or
            the path of a file (see ``load_imatrix``). The smallest types need it.
        output_tensor_type: the type of ``output.weight``.
        token_embedding_type: the type of the token embeddings.
        tensor_types: types for the tensors in whose names a regular expression (C++'s
            ``std::regex``) is found; the first one found counts.
        allow_requantize: also quantize tensors that are quantized already, which costs quality.
        quantize_output_tensor: also quantize ``output.weight``.
        only_copy: copy the tensors as they are, whatever ftype is.
        pure: give all tensors one type, instead of a mixture.
        keep_split: write as many parts as the source has, ``name-00001-of-00003.gguf`` and so on
            for a dst of ``name.gguf``. They appear one after the other.
        prune_layers: layers to leave out; those above move down.
        kv_overrides: metadata to set: bool, int (0 to 2**32 - 1), float, or str (at most 127
            bytes).
        nthread: threads; None for one for each processor.
        max_buf_size: bytes of a tensor to hold in memory at once; 0 for llama.cpp's 8 GiB.
        dry_run: write nothing, and return the sizes and types of the result.
        progress: called with the fraction done before each tensor, 0.0 to 1.0; returning False
            cancels.

    Raises:
        FileNotFoundError: no such source, or no such folder for the output.
        ModelLoadError: the source is not a GGUF file.
        QuantizeError: llama.cpp refused, or the disk failed; the message says why.
        QuantizeCancelled: ``progress`` returned False. Its own exceptions are raised unchanged.
        ValueError: an argument out of range, or a dst that is the source.
    """
    source = _model_file.readable_gguf(src, "src")
    parts = _parts(source)
    target = _target(dst, parts, keep_split=bool(keep_split), dry_run=bool(dry_run))
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got {progress!r}")
    if isinstance(imatrix, (str, os.PathLike)):
        importances: Mapping[str, NDArray[np.float32]] | None = read_imatrix("imatrix", imatrix)
    else:
        importances = imatrix

    params = lib.llama_model_quantize_default_params()
    params.ftype = choice("ftype", ftype, _WRITABLE_FILES)
    if output_tensor_type is not None:
        params.output_tensor_type = choice("output_tensor_type", output_tensor_type, WRITABLE_TYPES)
    if token_embedding_type is not None:
        params.token_embedding_type = choice(
            "token_embedding_type", token_embedding_type, WRITABLE_TYPES
        )
    params.allow_requantize = bool(allow_requantize)
    params.quantize_output_tensor = bool(quantize_output_tensor)
    params.only_copy = bool(only_copy)
    params.pure = bool(pure)
    params.keep_split = bool(keep_split)
    params.nthread = 0 if nthread is None else integer("nthread", nthread, 1, _MAX_THREADS)
    params.max_buf_size = integer("max_buf_size", max_buf_size, 0, 2**62)
    # C reads these until the call returns; the names keep them alive.
    matrix, _matrix_pointees = imatrix_array(importances)
    types, _patterns = _type_array(tensor_types)
    layers = _layer_array(prune_layers, source, keep_split=params.keep_split)
    metadata = kv_override_array(kv_overrides, lowest=0)
    params.imatrix, params.tt_overrides = matrix, types
    params.prune_layers, params.kv_overrides = layers, metadata

    load_backends()
    params.dry_run = True
    plan = _run(source, "", params, Progress(None), quiet=target is not None)
    _check_plan(plan, parts, importances or {})
    if target is None:
        return _summary(plan, ())
    params.dry_run = False
    with scratch_folder(Path(target).parent) as folder:
        report = Progress(progress)
        done = _run(source, os.path.join(folder, os.path.basename(target)), params, report)
        report.report(1.0)
        for name in os.listdir(folder):
            _check(lib.guarded_check_gguf, os.path.join(folder, name))
        return _summary(done, _move(folder, os.path.dirname(target), parts))


@dataclass(frozen=True)
class _Tensor:
    """llama.cpp's report of one tensor."""

    name: str
    shape: tuple[int, ...]
    old_type: str
    new_type: str

    def size(self, kind: str) -> int:
        return row_size(kind, self.shape[0]) * int(np.prod(self.shape[1:]))


def _run(
    source: str,
    target: str,
    params: llama_model_quantize_params,
    progress: Progress,
    *,
    quiet: bool = False,
) -> list[_Tensor]:
    what = f"quantizing {source}"
    user_data = ffi.new_handle(progress)
    log = lib.guarded_model_quantize(
        os.fsencode(source),
        os.fsencode(target),
        ffi.addressof(params),
        quiet,
        lib.pyllama_on_progress,
        user_data,
    )
    if log == ffi.NULL:
        progress.raise_if_stopped(QuantizeCancelled(f"{what}: cancelled by the progress callback"))
        try:
            raise_caught(what)
        except NativeError as error:
            if "iostream" in str(error):
                reason = "the new file cannot be written: is the disk full, or a limit reached?"
                raise QuantizeError(f"{what}: {reason}") from None
            raise QuantizeError(str(error)) from None
    return _tensors(take_str(log, what))


def _tensors(log: str) -> list[_Tensor]:
    found: list[_Tensor] = []
    for line in log.splitlines():
        if tensor := _TENSOR.match(line):
            name, shape, kind = tensor.groups()
            found.append(_Tensor(name, tuple(map(int, shape.split(","))), kind, kind))
        elif found and (change := _NEW_TYPE.search(line)):
            last = found.pop()
            new_type = change[1] or change[2]
            found.append(_Tensor(last.name, last.shape, last.old_type, new_type))
    return found


def _check_plan(
    plan: list[_Tensor], parts: list[str], imatrix: Mapping[str, NDArray[np.float32]]
) -> None:
    """Refuse what would end the process in one of llama.cpp's threads."""
    changed = [tensor for tensor in plan if tensor.new_type != tensor.old_type]
    for tensor in changed:
        columns = tensor.shape[0] * tensor.shape[2]
        if (
            tensor.name in _UNASKED_TENSORS
            and tensor.new_type in _IMATRIX_TYPES
            and np.size(imatrix.get(tensor.name, ())) != columns
        ):
            raise QuantizeError(
                f"{tensor.name} as {tensor.new_type} needs {columns} values of an imatrix; "
                "give it another type"
            )
    if any(tensor.new_type.startswith(_GRID_TYPES) for tensor in changed):
        for part in parts:
            _check(lib.guarded_check_magnitude, part, _MAX_MAGNITUDE)


def _check(call: Callable[..., int], path: str, *arguments: Any) -> None:
    what = f"quantizing: {path}"
    try:
        check(call(os.fsencode(path), *arguments), what)
    except NativeError as error:
        raise QuantizeError(str(error)) from None


def _summary(tensors: list[_Tensor], paths: tuple[str, ...]) -> Quantization:
    return Quantization(
        paths=paths,
        original_size=sum(tensor.size(tensor.old_type) for tensor in tensors),
        size=sum(tensor.size(tensor.new_type) for tensor in tensors),
        tensor_types=MappingProxyType({tensor.name: tensor.new_type for tensor in tensors}),
    )


def _parts(source: str) -> list[str]:
    """The files of a model, by the name of its first one, as llama.cpp finds them."""
    match = _PART.fullmatch(source)
    if match is None:
        return [source]
    prefix, count = match[1], int(match[3])
    parts = [f"{prefix}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    return [source, *(_model_file.readable_gguf(part, "src") for part in parts[1:])]


def _target(
    dst: str | os.PathLike[str] | None, parts: list[str], *, keep_split: bool, dry_run: bool
) -> str | None:
    """The path to write; without its ending for a model of several parts."""
    if dry_run:
        return None
    if dst is None:
        raise TypeError("dst must be a path unless dry_run is True, got None")
    target = _model_file.writable_path("dst", dst)
    if os.path.exists(target) and any(os.path.samefile(target, part) for part in parts):
        raise ValueError(f"dst must not be the source, got {target!r}")
    if keep_split:
        for part in parts[1:]:
            # llama.cpp assumes that each part except the first has tensors.
            with open(part, "rb") as file:
                if not struct.unpack_from("<8xQ", file.read(16).ljust(16, b"\0"))[0]:
                    raise QuantizeError(f"{part} holds no tensors: keep_split cannot be used")
        target = target.removesuffix(".gguf")
    return target


def _move(folder: Path, destination: str, parts: list[str]) -> tuple[str, ...]:
    moves = {
        os.path.join(folder, name): os.path.join(destination, name)
        for name in sorted(os.listdir(folder))
    }
    for final in moves.values():
        if os.path.exists(final) and any(os.path.samefile(final, part) for part in parts):
            raise ValueError(f"dst must not be the source, got {final!r}")
    for written, final in moves.items():
        os.replace(written, final)
    return tuple(moves.values())


def _type_array(
    types: Mapping[str, GgmlType] | None,
) -> tuple[Array[llama_model_tensor_override], list[Array[bytes]]]:
    """An array of ``llama_model_tensor_override``, terminated by one without a pattern."""
    if types is None:
        return ffi.NULL, []
    if not isinstance(types, Mapping):
        raise TypeError(f"tensor_types must be a mapping, got {types!r}")
    patterns = [pattern("tensor_types", key) for key in types]
    array = ffi.new("struct llama_model_tensor_override[]", len(types) + 1)
    for entry, text, (key, kind) in zip(array, patterns, types.items(), strict=False):
        entry.pattern = text
        entry.type = choice(f"tensor_types[{key!r}]", kind, WRITABLE_TYPES)
    return array, patterns


def _layer_array(layers: Sequence[int], source: str, *, keep_split: bool) -> Any:
    """An array of layers in order, terminated by -1."""
    if not isinstance(layers, Sequence):
        raise TypeError(f"prune_layers must be a sequence of layers, got {layers!r}")
    if not layers:
        return ffi.NULL
    if keep_split:
        raise ValueError("prune_layers cannot go with keep_split: a part may be left empty")
    with Model(source, vocab_only=True) as model:
        architecture = model.metadata.get("general.architecture")
        n_layer = int(model.metadata.get(f"{architecture}.block_count", 0))
    numbers = {integer("prune_layers", layer, 0, n_layer - 1) for layer in layers}
    if len(numbers) == n_layer:
        raise ValueError(f"prune_layers must leave a layer, got all {n_layer}")
    return ffi.new("int32_t[]", [*sorted(numbers), -1])
