"""What is known of a model from the headers of its files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyllama

# Leaves out the tokenizer, whose lists are the bulk of a header: a third of the time remains.
_NO_TOKENIZER: Mapping[str, str] = {"tokenizer.ggml.model": "no_vocab"}


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading it.

    name            what load_model() takes
    paths           its file, or its parts in their order
    size            bytes of its files together; 0 where one of them cannot be read
    architecture    such as "llama"
    quantization    by llama.cpp's names, such as "Q4_K_M"; None where the file does not say
    n_params        how many parameters it has
    context_length  tokens of context it was trained with
    problem         why it cannot be loaded; None where nothing is wrong. The four above are None
                    then
    aliases         other names that load it
    loaded          whether it is in memory
    pinned          whether it is kept there
    """

    name: str
    paths: tuple[Path, ...]
    size: int
    architecture: str | None = None
    quantization: str | None = None
    n_params: int | None = None
    context_length: int | None = None
    problem: str | None = None
    aliases: tuple[str, ...] = ()
    loaded: bool = False
    pinned: bool = False


def read_info(name: str, paths: tuple[Path, ...], size: int, aliases: tuple[str, ...]) -> ModelInfo:
    """What the header of a model's files says. A file that is no model is told by its problem."""
    try:
        with (
            unlogged(),
            pyllama.Model(paths[0], vocab_only=True, kv_overrides=_NO_TOKENIZER) as model,
        ):
            metadata, n_params, ftype = model.metadata, model.n_params, model.ftype
    except (pyllama.LlamaError, OSError) as error:
        return ModelInfo(name, paths, size, problem=str(error), aliases=aliases)
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
