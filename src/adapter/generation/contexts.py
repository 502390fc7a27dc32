"""How contexts for requests are made: what llama.cpp rounds up, and what it warns of."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyllama
from adapter.generation.memory.blocks import longest_call
from adapter.generation.scoring import scoring_context

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


class Contexts:
    """Makes the contexts of a scheduler, and cancels what is computed in them.

    Args:
        chunk: tokens of a prompt that are computed at once.
        scoring_chunk: the same where continuations are scored.
        mixed: make room in a batch for a token of each answer beside a call of a prompt, and have
            all sequences of a context share its memory.
    """

    def __init__(
        self,
        model: pyllama.Model,
        params: pyllama.ContextParams,
        *,
        chunk: int,
        scoring_chunk: int,
        mixed: bool,
    ) -> None:
        self._model = model
        self._params = params
        self._chunk = chunk
        self._scoring_chunk = scoring_chunk
        self._mixed = mixed
        self._lock = threading.RLock()  # a signal handler may cancel, too
        self._made: weakref.WeakSet[pyllama.Context] = weakref.WeakSet()

    def make(self, n_cells: int, count: int) -> pyllama.Context:
        """Make a context for so many tokens and sequences."""
        with warnings_as_info():
            context = pyllama.Context(
                self._model,
                self._params,
                n_ctx=n_cells,
                n_seq_max=count,
                n_batch=longest_call(self._chunk) + (count if self._mixed else 0),
                n_outputs_max=count,
                kv_unified=self._mixed,
            )
        return self._known(context)

    def make_for_scoring(self, length: int) -> pyllama.Context:
        """Make a context in which continuations of a prompt are scored."""
        with warnings_as_info():
            context = scoring_context(self._model, self._params, length, chunk=self._scoring_chunk)
        return self._known(context)

    def cancel(self) -> None:
        """Have whatever is being computed end soon: it is of use to nobody."""
        with self._lock:
            contexts = list(self._made)
        for context in contexts:
            context.cancel()

    def _known(self, context: pyllama.Context) -> pyllama.Context:
        with self._lock:
            self._made.add(context)
        return context
