"""Facts about a model, from the headers of its files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyllama
from adapter.wording import reason_of

# Leaves out the tokenizer, whose lists are most of a header. Reading takes a third of the time
# then.
_NO_TOKENIZER: Mapping[str, str] = {"tokenizer.ggml.model": "no_vocab"}


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model that is not loaded."""

    #: The name that ``load_model`` takes.
    name: str
    #: Its file, or its parts in their order.
    paths: tuple[Path, ...]
    #: Bytes of its files together; 0 if one of them cannot be read.
    size: int
    #: The architecture, such as ``"llama"``.
    architecture: str | None = None
    #: The quantization by llama.cpp's name, such as ``"Q4_K_M"``; None if the file does not say.
    quantization: str | None = None
    #: Number of parameters.
    n_params: int | None = None
    #: Tokens of context that it was trained with.
    context_length: int | None = None
    #: Why it cannot be loaded, or None. With a problem the four facts above are None.
    problem: str | None = None
    #: Other names that load it.
    aliases: tuple[str, ...] = ()
    #: Whether it is in memory.
    loaded: bool = False
    #: Whether the pool keeps it there.
    pinned: bool = False


def read_info(name: str, paths: tuple[Path, ...], size: int, aliases: tuple[str, ...]) -> ModelInfo:
    """Read the header of a model's files. If they are not a model, the result has a problem."""
    try:
        with (
            unlogged(),
            pyllama.Model(paths[0], vocab_only=True, kv_overrides=_NO_TOKENIZER) as model,
        ):
            metadata, n_params, ftype = model.metadata, model.n_params, model.ftype
    except (pyllama.LlamaError, OSError) as error:
        problem = reason_of(error) if isinstance(error, OSError) else str(error)
        return ModelInfo(name, paths, size, problem=problem, aliases=aliases)
    kind = metadata.get("general.type", "model")
    if kind != "model":  # a LoRA adapter, a projector, an importance matrix
        problem = f"it is no model, but of the kind {kind!r}"
        return ModelInfo(name, paths, size, problem=problem, aliases=aliases)
    architecture = metadata.get("general.architecture")
    length = metadata.get(f"{architecture}.context_length")
    return ModelInfo(
        name,
        paths,
        size,
        architecture=architecture,
        quantization=ftype,
        n_params=n_params,
        context_length=int(length) if length else None,
        aliases=aliases,
    )


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep what llama.cpp says in this thread out of the log: a listing reports it itself."""
    _log.is_off = True
    try:
        yield
    finally:
        _log.is_off = False


class _Log(threading.local):
    is_off = False


_log = _Log()
logging.getLogger("pyllama.llama_cpp").addFilter(lambda _: not _log.is_off)
