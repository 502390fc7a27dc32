"""Contexts: a model at work, with its memory and its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from pyllama import _process
from pyllama._arguments import INT32_MAX, MAX_POS, integer
from pyllama._attached_chains import AttachedChains
from pyllama._context_check import require_consistent
from pyllama._context_memory import require_memory
from pyllama._decoding import Decoding
from pyllama._guard import last_errors, raise_caught
from pyllama._half_made import or_half_made
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject, holding_all
from pyllama.batch import Batch
from pyllama.context_params import ContextOptions, ContextParams, with_options
from pyllama.errors import ContextError, NativeError
from pyllama.model import Model
from pyllama.performance import Performance
from pyllama.sampler_chain import SamplerChain
from pyllama.state import State
from pyllama.threadpool import MAX_THREADS, Threadpool

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllama._native._binding import (
        Pointer,
        llama_adapter_lora,
        llama_context,
        llama_context_params,
        pyllama_interrupt,
    )

    _Scales = dict[NativeObject[Pointer[llama_adapter_lora]], float]

A = ParamSpec("A")


class Context(Decoding):
    """The state of a model that is decoding (``llama_init_from_model``).

    One thread uses it at a time: calls from several threads wait for each other. It keeps its
    model alive; closing the model closes it.

    Args:
        model: the model to decode with.
        params: how it is made; None for the defaults.
        options: fields of ``ContextParams``, which replace those in params.
        samplers: chains that run on the device, by sequence id: a token comes back, not a row of
            logits (experimental in llama.cpp). The CPU does what the device cannot, and everything
            if there is no GPU. Read the token with ``SamplerChain.sample``. A decode then gives one
            output for each such sequence. A chain belongs to one context: closing the chain closes
            the context.

    Raises:
        ContextError: llama.cpp could not make it, or the machine lacks the memory; the message says
            why.
        ValueError: an argument out of range, or one that does not fit the model.
    """

    #: Saves and restores what the memory holds.
    state: State

    _breaks_without_memory = True
    _instead_of_copying = (
        "Make another with Context(model, …), and pass what it remembers by Context.state"
    )

    def __init__(
        self,
        model: Model,
        params: ContextParams | None = None,
        *,
        samplers: Mapping[int, SamplerChain] | None = None,
        **options: Unpack[ContextOptions],
    ) -> None:
        super().__init__()
        if not isinstance(model, Model):
            raise TypeError(f"model must be a pyllama.Model, got {model!r}")
        if model.vocab_only:
            raise ContextError("the model was loaded with vocab_only=True and has no weights")
        #: The model that it computes with.
        self.model = model

        struct = with_options("params", params, options)._struct()
        struct.n_ctx = struct.n_ctx or model.n_ctx_train
        require_consistent(model, struct)
        require_memory(model, struct)
        attached = AttachedChains(samplers)
        holding_all(attached.in_order, partial(self._make, struct, attached))
        model._adopt(self)

    def _make(self, struct: llama_context_params, attached: AttachedChains) -> None:
        model = self.model
        attached.check(model, struct)
        self._interrupt = _interrupt()
        handle = model._open()
        with handle as pointer:
            interrupt = self._interrupt.pointer
            with model._making:
                context = lib.guarded_init_from_model(
                    pointer, ffi.addressof(struct), interrupt, model.n_ctx_train
                )
            if context == ffi.NULL:
                _raise_context_error(model)
            needs = (handle, self._interrupt, *attached.handles)
            self._own(context, lib.guarded_context_free, *needs)
            _process.settle_at_exit(self._open())
        self._flash_attn: bool | None = None
        self._describe(context, struct)
        self._encoded = not model.has_encoder
        self._decodes_logits = self._has_memory or model.is_diffusion
        self._threadpools: tuple[Threadpool, ...] = ()
        self._attached: list[Handle[Any]] = []
        self._used: list[Handle[Any]] = []
        # The LoRA adapters in use, kept alive, each with its scale.
        self._adapters: _Scales = {}
        self.state = State(self, struct, has_memory=self._has_memory)
        attached.attach(self)  # last: closing a chain closes its context

    # Computing

    def decode(self, batch: Batch) -> None:
        """Process a batch; its outputs are then in ``logits`` (``llama_decode``).

        Models without memory (BERT) process each batch by itself.

        Raises:
            InvalidBatchError: the batch is empty, larger than n_batch, or holds tokens, embeddings,
                positions or sequence ids that do not fit. Nothing was processed.
            MemoryFullError: no room for the batch. Nothing was processed.
            DecodeCancelled: ``cancel`` was called. What was processed stays in memory.
            OutputsInUseError: arrays of ``logits_view`` are alive.
            DecodeError: llama.cpp failed otherwise.
        """
        self._decode_by(lib.guarded_decode, batch)

    def encode(self, batch: Batch) -> None:
        """Process a batch with the encoder, without memory (``llama_encode``).

        In an encoder-decoder model, ``decode`` attends to the result. Forget what was decoded
        before (``Memory.clear``): llama.cpp wants the positions to follow it.

        Raises:
            ContextError: the model has no encoder.
            InvalidBatchError: as ``decode``; or more than n_ubatch tokens.
        """
        if not self.model.has_encoder:
            raise ContextError(f"this model has no encoder: {self.model.desc}; use decode()")
        with self._lock:
            self._process(lib.guarded_encode, batch, "encode", encoding=True)
            self._encoded = True

    def decode_token(self, token: int, pos: int, seq_id: int = 0) -> None:
        """Process one token of one sequence and compute its logits; see ``decode``.

        This takes less time than a ``Batch`` of one token.
        """
        token = integer("token", token, 0, INT32_MAX)
        pos = integer("pos", pos, 0, MAX_POS)
        seq_id = integer("seq_id", seq_id, 0, INT32_MAX)
        with self._lock:
            pointer = self._open().pointer
            if not self._encoded:
                self._require_encoded()
            if self._n_pos_max is not None:
                self._require_position(pos)
            code = self._compute(lib.guarded_decode_token, pointer, token, pos, seq_id)
            if code:
                batch = Batch.from_tokens([token], pos=pos, seq_id=seq_id)
                self._raise_failure(code, batch, "decode")
            self._n_outputs = 1
            self._has_logits = self._decodes_logits
            self._has_embeddings = self.computes_embeddings

    def warmup(self) -> None:
        """Compute something once, so that the first request does not wait for the weights.

        The memory must be empty, and is empty again afterwards. Outputs and performance counts are
        reset.

        Raises:
            ValueError: the memory holds tokens.
        """
        with self._lock:
            if any(self.memory.seq_pos_max(seq_id) >= 0 for seq_id in range(self.n_seq_max)):
                raise ValueError("warmup() needs an empty memory: clear() it first")
            vocab = self.model.vocab
            tokens = [token for token in (vocab.bos, vocab.eos) if token is not None] or [0]
            tokens = tokens[: min(self.n_batch, self.n_ubatch, self.n_outputs_max)]
            if self.model.has_encoder:
                self.encode(Batch.from_tokens(tokens))
                tokens = tokens[:1]
            if self.model.has_decoder:
                self.decode(Batch.from_tokens(tokens))
            self.memory.clear()
            self.reset_performance()
            self._n_outputs = 0
            self._encoded = not self.model.has_encoder

    def cancel(self) -> None:
        """Stop the decode of another thread, which raises DecodeCancelled.

        llama.cpp checks for it between operations, only on the CPU. Without a decode this does
        nothing. A recurrent or hybrid model forgets the sequences of the batch, whose states were
        being changed.
        """
        lib.pyllama_interrupt_cancel(self._interrupt.pointer)

    def synchronize(self) -> None:
        """Wait until the devices are done (``llama_synchronize``); reading outputs does so too."""
        self._call(lib.guarded_synchronize)

    # Settings

    def set_embeddings(self, embeddings: bool) -> None:
        """Start or stop computing embeddings, from the next call on (``llama_set_embeddings``).

        While they are computed, every entry of a batch gives an output.
        """
        with self._lock:
            self._call(lib.guarded_set_embeddings, bool(embeddings))
            self.computes_embeddings = bool(embeddings)

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Attend only to earlier tokens, or to all of the batch (``llama_set_causal_attn``)."""
        self._call(lib.guarded_set_causal_attn, bool(causal_attn))

    @property
    def flash_attn(self) -> bool:
        """Whether flash attention is used. ``"auto"`` was decided when the context was made."""
        if self._flash_attn is None:
            with self._lock, self._open() as pointer:
                found = self._check(lib.guarded_flash_attn(pointer), "reading the context")
                self._flash_attn = bool(found)
        return self._flash_attn

    @property
    def n_threads(self) -> int:
        """Threads that process one token at a time."""
        with self._open() as pointer:
            return int(lib.llama_n_threads(pointer))

    @property
    def n_threads_batch(self) -> int:
        """Threads that process several tokens at a time."""
        with self._open() as pointer:
            return int(lib.llama_n_threads_batch(pointer))

    def set_n_threads(self, n_threads: int, n_threads_batch: int | None = None) -> None:
        """Change the numbers of threads (``llama_set_n_threads``).

        Args:
            n_threads_batch: None for the same as n_threads.

        Raises:
            ValueError: a threadpool is attached, which has its own number.
        """
        n_threads = integer("n_threads", n_threads, 1, MAX_THREADS)
        batch = n_threads if n_threads_batch is None else n_threads_batch
        batch = integer("n_threads_batch", batch, 1, MAX_THREADS)
        with self._lock:
            if self._threadpools:
                raise ValueError("n_threads is that of the attached threadpool; detach it first")
            self._call(lib.guarded_set_n_threads, n_threads, batch)

    def attach_threadpool(
        self, threadpool: Threadpool, threadpool_batch: Threadpool | None = None
    ) -> None:
        """Compute with the threads of a pool (``llama_attach_threadpool``).

        Sets the numbers of threads to those of the pools.

        Args:
            threadpool: for one token at a time.
            threadpool_batch: for several tokens at a time; None for the same.
        """
        batch = threadpool if threadpool_batch is None else threadpool_batch
        for name, pool in (("threadpool", threadpool), ("threadpool_batch", batch)):
            if not isinstance(pool, Threadpool):
                raise TypeError(f"{name} must be a pyllama.Threadpool, got {pool!r}")
        with self._lock, threadpool._open() as one, batch._open() as several:
            self._call(lib.guarded_attach_threadpool, one, several)
            self._call(lib.guarded_set_n_threads, threadpool.n_threads, batch.n_threads)
            # Locked in one order by all contexts.
            self._threadpools = tuple(sorted({threadpool, batch}, key=id))
            self._attached = [pool._open() for pool in self._threadpools]

    def detach_threadpool(self) -> None:
        """Compute with llama.cpp's own threads again (``llama_detach_threadpool``)."""
        with self._lock:
            self._call(lib.guarded_detach_threadpool)
            self._threadpools, self._attached = (), []

    @property
    def performance(self) -> Performance:
        """Times and counts so far (``llama_perf_context``)."""
        with self._lock:
            self.synchronize()
            data = lib.llama_perf_context(self._open().pointer)
            names = [field.name for field in dataclasses.fields(Performance)]
            return Performance(**{name: getattr(data, name) for name in names})

    def reset_performance(self) -> None:
        """Reset the times and counts (``llama_perf_context_reset``)."""
        with self._lock:
            self.synchronize()
            self._call(lib.guarded_perf_context_reset)

    @or_half_made
    def __repr__(self) -> str:
        state = "closed" if self.closed else f"n_ctx {self.n_ctx}, n_seq_max {self.n_seq_max}"
        return f"<pyllama.Context of {self.model.desc!r}: {state}>"

    # Internal

    def _decode_by(self, call: Callable[..., int], batch: Batch) -> None:
        """Decode a batch by a C function that takes the context and the batch first."""
        with self._lock:
            self._require_encoded()
            self._process(call, batch, "decode", encoding=not self._has_memory)

    def _set_adapters(self, scales: _Scales) -> None:
        """Use exactly these LoRA adapters, which are locked."""
        pointers = [adapter._open().pointer for adapter in scales]
        array = ffi.new("struct llama_adapter_lora *[]", pointers)
        values = ffi.new("float[]", list(scales.values()))
        with self._lock:
            self._change(
                "setting adapters", lib.guarded_set_adapters_lora, array, len(scales), values
            )
            self._adapters = scales

    def _drop_adapter(self, adapter: NativeObject[Pointer[llama_adapter_lora]]) -> None:
        """Stop using a LoRA adapter that is being closed."""
        with self._lock:
            if adapter in self._adapters and self.usable:
                kept = {other: scale for other, scale in self._adapters.items() if other != adapter}
                self._set_adapters(kept)

    def _call(
        self,
        call: Callable[Concatenate[Pointer[llama_context], A], int],
        *arguments: A.args,
        **named: A.kwargs,
    ) -> None:
        self._change("changing the context", call, *arguments, **named)

    def _change(
        self,
        what: str,
        call: Callable[Concatenate[Pointer[llama_context], A], int],
        *arguments: A.args,
        **named: A.kwargs,
    ) -> int:
        with self._lock:
            return self._check(call(self._open().pointer, *arguments, **named), what)

    def _process(
        self, call: Callable[..., int], batch: Batch, what: str, *, encoding: bool
    ) -> None:
        if not isinstance(batch, Batch):
            raise TypeError(f"batch must be a pyllama.Batch, got {batch!r}")
        with self._lock, batch._lock:
            handle = self._open()
            all_outputs = encoding or self.computes_embeddings
            n_outputs = len(batch) if all_outputs else batch._n_outputs
            self._require_fitting(batch, n_outputs, encoding=encoding)
            struct = batch._filled(all_outputs=all_outputs)
            code = self._compute(call, handle.pointer, struct)
            if code:
                self._raise_failure(code, batch, what)
            self._n_outputs = n_outputs
            self._has_logits = not encoding or self.model.is_diffusion
            self._has_embeddings = self.computes_embeddings or what == "encode"

    def _compute(self, call: Callable[..., int], *arguments: Any) -> int:
        """Call a function that overwrites the outputs, and return its code."""
        if self._views is not None:
            self._forget_outputs()
        self._n_outputs = 0
        on_main_thread = get_ident() == main_thread().ident
        lib.pyllama_interrupt_begin(self._interrupt.pointer, on_main_thread)
        if self._used is not self._attached:
            # The backend accesses the pool that it used before once more.
            self._used = [*self._used, *self._attached]
        code: int
        if self._threadpools:
            code = holding_all(self._threadpools, lambda: call(*arguments))
        else:
            code = call(*arguments)
        if code >= 0:
            self.memory._updated()
        if code == 0:
            self._used = self._attached
        if self._lost is not None:
            self._open()
        return code

    def _require_encoded(self) -> None:
        if not self._encoded:
            raise ContextError(f"this model decodes what it encoded: {self.model.desc}; encode()")


def _interrupt() -> Handle[Pointer[pyllama_interrupt]]:
    pointer = lib.pyllama_interrupt_init()
    if pointer == ffi.NULL:
        raise MemoryError
    return Handle(pointer, lib.pyllama_interrupt_free)


def _raise_context_error(model: Model) -> None:
    reasons = last_errors()
    if model.lost:
        model._open()
    try:
        raise_caught(f"making a context for {model.desc}")
    except NativeError as error:
        hint = "" if reasons else ". A smaller n_ctx, n_batch or n_seq_max needs less memory"
        raise ContextError(f"{error}{hint}") from None
