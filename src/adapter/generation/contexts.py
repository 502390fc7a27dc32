"""Makes contexts for requests, with llama.cpp's rounding and its warnings in mind."""

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
from adapter.generation.thread_tuner import ThreadTuner

PADDING = 256
"""llama.cpp rounds the memory of a sequence up to a multiple of this many tokens."""

N_DRAFT, MOST_DRAFTED = 8, 256
"""Drafted tokens that a batch has outputs for: of each sequence, and of all. Each takes memory for
the logits of a vocabulary.
"""

_LOG = logging.getLogger("pyllama.llama_cpp")


class _Demotion(logging.Filter):
    """Logs llama.cpp's warnings and errors at INFO, on threads that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if logging.WARNING <= record.levelno <= getattr(self.here, "most", logging.NOTSET):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            return _LOG.isEnabledFor(logging.INFO)
        return True


_demotion = _Demotion()
_LOG.addFilter(_demotion)


@contextmanager
def warnings_as_info(most: int = logging.WARNING) -> Iterator[None]:
    """Log at INFO the warnings of llama.cpp that this thread causes in the block.

    They are about sizes and caches that this package chose, such as a shared memory that is longer
    than the model's training context. So they only help someone who reads a log.

    Args:
        most: the highest level that is logged at INFO.
    """
    before = getattr(_demotion.here, "most", logging.NOTSET)
    _demotion.here.most = max(before, most)
    try:
        yield
    finally:
        _demotion.here.most = before


def with_flash_attention(
    params: pyllama.ContextParams, *, reproducible: bool
) -> pyllama.ContextParams:
    """The params of contexts for requests, with flash attention decided if bytes must stay the
    same.

    Its sums depend on the number and length of the sequences in a batch. So it is off, unless the
    user asks for it or has the values quantized, which only flash attention can read.
    """
    if params.flash_attn != "auto" or not reproducible:
        return params
    return replace(params, flash_attn="enabled" if params.quantizes_values else "disabled")


def padded(n_tokens: int) -> int:
    """How many tokens a sequence gets that was requested with this many."""
    return -(-n_tokens // PADDING) * PADDING


class Contexts:
    """Makes the contexts of a scheduler, and cancels computations in them.

    Args:
        chunk: tokens of a prompt that are computed at once.
        scoring_chunk: the same for scoring.
        mixed: make room in a batch for a token of each answer beside a chunk of a prompt, and let
            all sequences of a context share its memory.
        drafts: make room for the outputs of drafted tokens.
    """

    def __init__(
        self,
        model: pyllama.Model,
        params: pyllama.ContextParams,
        *,
        chunk: int,
        scoring_chunk: int,
        mixed: bool,
        drafts: bool = False,
    ) -> None:
        self._model = model
        self._params = params
        self._chunk = chunk
        self._scoring_chunk = scoring_chunk
        self._mixed = mixed
        self._drafts = drafts
        #: Says how many threads a new context has; None for as many as the params say.
        self.tuner: ThreadTuner | None = None
        self._lock = threading.RLock()  # a signal handler may cancel, too
        self._made: weakref.WeakSet[pyllama.Context] = weakref.WeakSet()

    def make(self, n_cells: int, count: int) -> pyllama.Context:
        """Make a context for a number of tokens and sequences."""
        n_drafted = min(N_DRAFT * count, MOST_DRAFTED) if self._drafts else 0
        with warnings_as_info():
            context = pyllama.Context(
                self._model,
                self._params,
                n_ctx=n_cells,
                n_seq_max=count,
                n_batch=longest_call(self._chunk) + (count if self._mixed else 0),
                n_outputs_max=count + n_drafted,
                kv_unified=self._mixed,
            )
        return self._known(context)

    def make_for_scoring(self, length: int) -> pyllama.Context:
        """Make a context for scoring continuations of a prompt."""
        with warnings_as_info():
            context = scoring_context(self._model, self._params, length, chunk=self._scoring_chunk)
        return self._known(context)

    def cancel(self) -> None:
        """Stop whatever is being computed. Nobody needs it any more."""
        with self._lock:
            contexts = list(self._made)
        for context in contexts:
            context.cancel()

    def _known(self, context: pyllama.Context) -> pyllama.Context:
        with self._lock:
            self._made.add(context)
        if self.tuner is not None:
            context.set_n_threads(self.tuner.n_threads)
        return context
