"""Contexts: a model at work, with its memory and its outputs."""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyllama._arguments import INT32_MAX, UINT32_MAX, choice, integer
from pyllama._callbacks import raise_polled
from pyllama._context_memory import require_memory
from pyllama._guard import CAUGHT, last_errors, raise_caught
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.batch import Batch
from pyllama.device import cpu_math_cores
from pyllama.errors import (
    ContextError,
    DecodeCancelled,
    DecodeError,
    InvalidBatchError,
    MemoryFullError,
    NativeError,
)
from pyllama.memory import Memory
from pyllama.model import Model

FlashAttention = Literal["auto", "disabled", "enabled"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]

_FLASH_ATTENTION: dict[str, int] = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "disabled": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "enabled": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}
_CACHE_TYPES: dict[str, int] = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": lib.GGML_TYPE_BF16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
}

MAX_THREADS = 512  # GGML_MAX_N_THREADS

# What llama_decode returns.
_NO_ROOM, _ABORTED, _INVALID = 1, 2, -1


class Context(NativeObject):
    """The state of a model that is decoding (``llama_init_from_model``).

    One thread uses it at a time: calls from several threads wait for each other. It keeps its
    model alive; closing the model closes it.

    :param n_ctx: tokens that its memory holds, over all sequences; 0 for what the model was
        trained with.
    :param n_batch: the most tokens in one :meth:`decode`.
    :param n_ubatch: the most tokens computed at once.
    :param n_seq_max: sequences it can hold; ids are 0 to n_seq_max - 1.
    :param n_threads: threads for one token at a time; None for :func:`cpu_math_cores`.
    :param n_threads_batch: threads for several tokens at a time; None for the same as n_threads.
    :param flash_attn: whether to use flash attention.
    :param type_k: how keys are stored; quantized types save memory and cost precision.
    :param type_v: how values are stored; quantized types need flash attention.
    :param offload_kqv: keep keys and values in the device's memory.
    :param kv_unified: one memory for all sequences, instead of an equal part for each. Without
        it a sequence has n_ctx / n_seq_max tokens, and what is computed for one does not depend
        on the others.
    :param embeddings: compute embeddings beside logits.
    :param no_perf: do not measure timings.
    :raises ContextError: it needs more memory than there is, or llama.cpp could not make it; the
        message says why.
    :raises ValueError: an argument out of range.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        flash_attn: FlashAttention = "auto",
        type_k: CacheType = "f16",
        type_v: CacheType = "f16",
        offload_kqv: bool = True,
        kv_unified: bool = False,
        embeddings: bool = False,
        no_perf: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(model, Model):
            raise TypeError(f"model must be a pyllama.Model, got {model!r}")
        if model.vocab_only:
            raise ContextError("the model was loaded with vocab_only=True and has no weights")
        self.model = model

        params = lib.llama_context_default_params()
        params.n_ctx = integer("n_ctx", n_ctx, 0, UINT32_MAX)
        params.n_batch = integer("n_batch", n_batch, 1, INT32_MAX)
        params.n_ubatch = integer("n_ubatch", n_ubatch, 1, INT32_MAX)
        params.n_seq_max = integer("n_seq_max", n_seq_max, 1, lib.llama_max_parallel_sequences())
        threads = cpu_math_cores() if n_threads is None else n_threads
        params.n_threads = integer("n_threads", threads, 1, MAX_THREADS)
        threads_batch = threads if n_threads_batch is None else n_threads_batch
        params.n_threads_batch = integer("n_threads_batch", threads_batch, 1, MAX_THREADS)
        params.flash_attn_type = choice("flash_attn", flash_attn, _FLASH_ATTENTION)
        params.type_k = choice("type_k", type_k, _CACHE_TYPES)
        params.type_v = choice("type_v", type_v, _CACHE_TYPES)
        params.offload_kqv = bool(offload_kqv)
        params.kv_unified = bool(kv_unified)
        params.embeddings = bool(embeddings)
        params.no_perf = bool(no_perf)

        require_memory(model, params.n_ctx or model.n_ctx_train, type_k, type_v)
        self._interrupt = ffi.new("pyllama_interrupt *")
        with model._open() as pointer:
            context = lib.guarded_init_from_model(pointer, ffi.addressof(params), self._interrupt)
            if context == ffi.NULL:
                _raise_context_error(model)
            free = _Stop(self._lock, self._interrupt)
            self._own(context, free, model._open(), at_exit=True)
        #: Sizes as llama.cpp made them, which can differ from those asked for.
        self.n_ctx: int = lib.llama_n_ctx(context)
        #: Tokens that one sequence can hold.
        self.n_ctx_seq: int = lib.llama_n_ctx_seq(context)
        self.n_batch: int = lib.llama_n_batch(context)
        self.n_ubatch: int = lib.llama_n_ubatch(context)
        self.n_seq_max: int = lib.llama_n_seq_max(context)
        #: Whether sequences share one memory.
        self.kv_unified: bool = params.kv_unified
        #: The tokens it remembers.
        self.memory = Memory(
            self,
            lib.llama_get_memory(context),
            n_seq_max=self.n_seq_max,
            kv_unified=self.kv_unified,
        )
        model._adopt(self)

    def decode(self, batch: Batch) -> None:
        """Process a batch; its outputs then stand in :meth:`logits` (``llama_decode``).

        :raises InvalidBatchError: the batch is empty, larger than n_batch, or holds tokens,
            positions or sequence ids that do not fit. Nothing was processed.
        :raises MemoryFullError: no room for the batch. Nothing was processed.
        :raises DecodeCancelled: :meth:`cancel` was called. What was processed stays in memory.
        :raises DecodeError: llama.cpp failed otherwise.
        """
        self._process(lib.guarded_decode, batch, "decode")

    def encode(self, batch: Batch) -> None:
        """Process a batch with the encoder, without memory (``llama_encode``).

        :raises InvalidBatchError: as :meth:`decode`.
        """
        if not self.model.has_encoder:
            raise ContextError(f"this model has no encoder: {self.model.desc}; use decode()")
        self._process(lib.guarded_encode, batch, "encode")

    def decode_token(self, token: int, pos: int, seq_id: int = 0) -> None:
        """Process one token of one sequence and compute its logits; see :meth:`decode`.

        Generating so costs less time than with a :class:`Batch` of one.
        """
        token = integer("token", token, 0, INT32_MAX)
        pos = integer("pos", pos, 0, INT32_MAX)
        seq_id = integer("seq_id", seq_id, 0, INT32_MAX)
        with self._lock:
            pointer = self._open().pointer
            self._watch_for_interrupts()
            code = lib.guarded_decode_token(pointer, token, pos, seq_id)
            if code:
                batch = Batch.from_tokens([token], pos=pos, seq_id=seq_id)
                self._raise_failure(code, batch, "decode")

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """The logits of one output of the last decode, a copy of shape (n_vocab,).

        :param index: the token's index in the batch; negative counts outputs from the last.
        :raises IndexError: the batch asked for no output there (``llama_get_logits_ith``).
        """
        index = integer("index", index, -INT32_MAX, INT32_MAX)
        with self._lock:
            row = lib.guarded_get_logits_ith(self._open().pointer, index)
            if row == ffi.NULL:
                self._raise_no_output(index)
            size = self.model.vocab.n_tokens * ffi.sizeof("float")
            return np.array(np.frombuffer(ffi.buffer(row, size), dtype=np.float32))

    def cancel(self) -> None:
        """Stop the decode that another thread is in; it raises DecodeCancelled.

        llama.cpp asks between operations, on the CPU alone. Without a decode this does nothing.
        """
        self._interrupt.cancelled = 1

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"n_ctx {self.n_ctx}, n_seq_max {self.n_seq_max}"
        return f"<pyllama.Context of {self.model.desc!r}: {state}>"

    def _process(self, call: Any, batch: Batch, what: str) -> None:
        if not isinstance(batch, Batch):
            raise TypeError(f"batch must be a pyllama.Batch, got {batch!r}")
        with self._lock, batch._lock:
            handle = self._open()
            count = len(batch)
            if not 0 < count <= self.n_batch:
                raise InvalidBatchError(
                    f"batch holds {count} tokens; this context takes 1 to {self.n_batch} (n_batch)",
                    _INVALID,
                )
            self._watch_for_interrupts()
            code = call(handle.pointer, batch._struct)
            if code:
                self._raise_failure(code, batch, what)

    def _watch_for_interrupts(self) -> None:
        interrupt = self._interrupt
        interrupt.cancelled = 0
        interrupt.poll_signals = threading.get_ident() == threading.main_thread().ident

    def _raise_failure(self, code: int, batch: Batch, what: str) -> None:
        if code == CAUGHT:
            self._check(code, what)
        if code == _ABORTED:
            raise_polled()
            raise DecodeCancelled(f"{what}: cancelled", code)
        if code == _NO_ROOM and batch._shares_tokens() and not self.kv_unified:
            raise InvalidBatchError(
                f"{what}: a token of several sequences needs a context with kv_unified=True; here "
                "each sequence has memory of its own. Use Memory.seq_cp() instead",
                code,
            )
        if code == _NO_ROOM:
            raise MemoryFullError(
                f"{what}: no room for {len(batch)} more tokens in a memory of {self.n_ctx} "
                f"({self.n_ctx_seq} for each sequence): remove sequences, or make a context with "
                "a larger n_ctx",
                code,
            )
        reason = last_errors() or "llama.cpp gave no reason"
        if code == _INVALID:
            raise InvalidBatchError(f"{what}: {self._misfit(batch) or reason}", code)
        raise DecodeError(f"{what}: llama.cpp returned {code}: {reason}", code)

    def _misfit(self, batch: Batch) -> str | None:
        """Which value of a refused batch is out of range, if one is."""
        tokens, n_vocab = batch.tokens, self.model.vocab.n_tokens
        if tokens.max() >= n_vocab:
            return f"token {tokens.max()} is outside the vocabulary (0 to {n_vocab - 1})"
        highest = batch._highest_seq_id()
        if highest >= self.n_seq_max:
            return f"sequence {highest} is outside this context (0 to {self.n_seq_max - 1})"
        return None

    def _raise_no_output(self, index: int) -> None:
        raise IndexError(
            f"no output at index {index}: the last decode gave none there. Add the token with "
            "output=True (or outputs='all'), and read outputs before the next decode"
        )


class _Stop:
    """Frees a context once nothing computes in it, stopping what does."""

    def __init__(self, lock: threading.RLock, interrupt: Any) -> None:
        self._lock = lock
        self._interrupt = interrupt

    def __call__(self, pointer: Any) -> None:
        self._interrupt.cancelled = 1
        with self._lock:
            lib.guarded_context_free(pointer)


def _raise_context_error(model: Model) -> None:
    reasons = last_errors()
    try:
        raise_caught(f"making a context for {model.desc}")
    except NativeError as error:
        hint = "" if reasons else ". A smaller n_ctx, n_batch or n_seq_max needs less memory"
        raise ContextError(f"{error}{hint}") from None
