"""How contexts for requests are made: what llama.cpp rounds up, and what it warns of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyllama

PADDING = 256
"""llama.cpp gives a sequence with memory of its own a multiple of so many tokens."""

_LOG = logging.getLogger("pyllama.llama_cpp")


class _Demotion(logging.Filter):
    """Makes INFO of what llama.cpp warns of on threads that asked for that."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING and getattr(self.here, "demotes", False):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            return _LOG.isEnabledFor(logging.INFO)
        return True


_demotion = _Demotion()
_LOG.addFilter(_demotion)


@contextmanager
def warnings_as_info() -> Iterator[None]:
    """Log llama.cpp's warnings at INFO that this thread causes in the block.

    They are about sizes and caches that this package chose, and of use to whoever reads a log: a
    memory that sequences share is longer than what the model was trained with, say.
    """
    before = getattr(_demotion.here, "demotes", False)
    _demotion.here.demotes = True
    try:
        yield
    finally:
        _demotion.here.demotes = before


def with_flash_attention(
    params: pyllama.ContextParams, *, reproducible: bool
) -> pyllama.ContextParams:
    """The params of contexts for requests: flash attention is decided, where bytes are kept.

    Its sums depend on how many sequences a batch has, and on their lengths. So there is none then,
    unless the user asks for it, or has values quantized, which nothing else can read.
    """
    if params.flash_attn != "auto" or not reproducible:
        return params
    return replace(params, flash_attn="enabled" if params.quantizes_values else "disabled")


def padded(n_tokens: int) -> int:
    """How many tokens a sequence has that was asked to have so many."""
    return -(-n_tokens // PADDING) * PADDING
