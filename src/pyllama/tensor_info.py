"""The tensors of a model file, as its header describes them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pyllama import _model_file
from pyllama._gguf_file import DamagedFile, read_header
from pyllama.errors import ModelLoadError


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF file."""

    #: Its name, such as ``"blk.0.attn_q.weight"``.
    name: str
    #: Elements in each dimension; the first is the innermost.
    shape: tuple[int, ...]
    #: By ggml's name, such as ``"q4_K"``; ``"?"`` for one that ggml does not have.
    type: str
    #: Bytes of its data; 0 where the type is not known.
    size: int


def tensor_infos(path: str | os.PathLike[str]) -> tuple[TensorInfo, ...]:
    """The tensors of a GGUF file in their order, read from its header alone.

    Of a split model each part has its own.

    Raises:
        FileNotFoundError: no such file.
        ModelLoadError: it is not a GGUF file, or is damaged.
    """
    text = _model_file.readable_gguf(path)
    try:
        tensors = read_header(text).tensors
    except DamagedFile as error:
        raise ModelLoadError(f"{text} is damaged: {error}") from None
    return tuple(
        TensorInfo(
            tensor.name,
            tensor.shape,
            tensor.type_name,
            tensor.size,
        )
        for tensor in tensors
    )
