"""What a context can hold, what it refuses to decode, and the meaning of llama.cpp's codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from pyllama._callbacks import raise_polled
from pyllama._context_check import reason_not_to_shift
from pyllama._context_memory import fits
from pyllama._guard import CAUGHT, last_errors
from pyllama._native._binding import ffi, lib
from pyllama.batch import Batch
from pyllama.errors import (
    DecodeCancelled,
    DecodeError,
    InvalidBatchError,
    MemoryFullError,
    NativeMemoryError,
)
from pyllama.memory import Memory
from pyllama.model import Model
from pyllama.outputs import ContextOutputs

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_context, llama_context_params

# What llama_decode returns.
_NO_ROOM, _ABORTED, _INVALID = 1, 2, -1

# Architectures that look positions up in a table as long as their training context.
_LEARNED_POSITIONS = ("bert", "gpt2", "starcoder")


def n_pos_max(model: Model) -> int | None:
    """How many positions the model has embeddings of; None if any position is allowed."""
    name = model.metadata.get("general.architecture")
    if name == "mpt" and float(model.metadata.get("mpt.attention.max_alibi_bias", 0)) == 0:
        return model.n_ctx_train
    return model.n_ctx_train if name in _LEARNED_POSITIONS else None


class Decoding(ContextOutputs):
    """The limits of a ``Context``, its checks of batches, and its errors of a failed decode."""

    #: Tokens that all sequences can hold. llama.cpp may round up what was asked for.
    n_ctx: int
    #: Tokens that one sequence can hold.
    n_ctx_seq: int
    #: The most tokens of one decode.
    n_batch: int
    #: The most tokens that are computed at once; a longer batch is cut into several.
    n_ubatch: int
    #: Number of sequences; ids are 0 to n_seq_max - 1.
    n_seq_max: int
    #: Recurrent states that each sequence keeps.
    n_rs_seq: int
    #: The most outputs of one encode or decode.
    n_outputs_max: int
    #: Whether sequences share one memory.
    kv_unified: bool
    #: Whether embeddings are computed; see :meth:`set_embeddings`.
    computes_embeddings: bool
    #: Its memory.
    memory: Memory

    def _describe(self, pointer: Pointer[llama_context], params: llama_context_params) -> None:
        """Read the limits of a new context."""
        model = self.model
        self.n_ctx = lib.llama_n_ctx(pointer)
        self.n_ctx_seq = lib.llama_n_ctx_seq(pointer)
        self.n_batch = lib.llama_n_batch(pointer)
        self.n_ubatch = lib.llama_n_ubatch(pointer)
        self.n_seq_max = lib.llama_n_seq_max(pointer)
        self.n_rs_seq = lib.llama_n_rs_seq(pointer)
        self.n_outputs_max = self.n_batch
        if params.n_outputs_max and not model.has_encoder:
            self.n_outputs_max = params.n_outputs_max
        self.kv_unified = params.kv_unified
        self._describe_outputs(pointer)
        self.computes_embeddings = params.embeddings
        memory = lib.llama_get_memory(pointer)
        self._has_memory = memory != ffi.NULL
        recurrent = model.is_recurrent or model.is_hybrid
        # Whether sequences of one batch are computed in steps of equal length.
        self._splits_sequences = (
            self._has_memory and self.n_seq_max > 1 and not self.kv_unified and not recurrent
        )
        self._n_pos_max = n_pos_max(model)
        self._n_outputs_made = self.n_seq_max
        self.memory = Memory(
            self,
            memory,
            n_seq_max=self.n_seq_max,
            kv_unified=self.kv_unified,
            recurrent=recurrent,
            cannot_shift=reason_not_to_shift(model, params),
        )

    @property
    def causal_attn(self) -> bool:
        """Whether tokens attend only to earlier ones; see ``set_causal_attn``."""
        with self._open() as pointer:
            return bool(lib.llama_get_causal_attn(pointer))

    def _require_fitting(self, batch: Batch, n_outputs: int, *, encoding: bool) -> None:
        """Refuse a batch that would cause an assertion, a crash or a wrong result in llama.cpp."""
        count = len(batch)
        if not 0 < count <= self.n_batch:
            _refuse(f"batch holds {count} tokens; this context takes 1 to {self.n_batch} (n_batch)")
        if n_outputs > self.n_outputs_max:
            _refuse(
                f"batch asks for {n_outputs} outputs; this context gives at most "
                f"{self.n_outputs_max} (n_outputs_max)"
            )
        if batch.n_embd:
            self._require_embeddings(batch)
        if count > self.n_ubatch and (encoding or not self.causal_attn):
            _refuse(
                f"batch holds {count} tokens; without causal attention it must be computed at "
                f"once, and n_ubatch is {self.n_ubatch}"
            )
        if self.computes_embeddings and self.pooling_type in ("mean", "cls", "rank"):
            self._require_poolable(batch)
        if self._n_pos_max is not None:
            self._require_position(batch._highest_pos())
        if n_outputs > self._n_outputs_made:
            size = n_outputs * (self.model.vocab.n_tokens + self.n_embd_out) * 4
            if not fits(size):
                raise NativeMemoryError(f"{n_outputs} outputs need {size / 1e9:.1f} GB of memory")
            self._n_outputs_made = n_outputs

    def _require_position(self, pos: int) -> None:
        """Refuse a position that the model has no embedding of."""
        if self._n_pos_max is not None and pos >= self._n_pos_max:
            _refuse(
                f"position {pos} is outside this model, which has embeddings of positions 0 to "
                f"{self._n_pos_max - 1}"
            )

    def _require_embeddings(self, batch: Batch) -> None:
        if batch.n_embd != self.n_embd_inp:
            _refuse(
                f"batch holds embeddings of size {batch.n_embd}; this model takes "
                f"{self.n_embd_inp} (n_embd_inp)"
            )
        if batch.n_pos_per_embd != self.n_pos_per_embd:
            _refuse(
                f"batch holds {batch.n_pos_per_embd} positions for each embedding; this model "
                f"takes {self.n_pos_per_embd} (n_pos_per_embd)"
            )

    def _require_poolable(self, batch: Batch) -> None:
        """A sequence is pooled over what is computed at once, so that must be all of it."""
        if len(batch) > self.n_ubatch:
            _refuse(
                f"batch holds {len(batch)} tokens; to pool as {self.pooling_type!r} it must be "
                f"computed at once, and n_ubatch is {self.n_ubatch}"
            )
        if self._splits_sequences and not batch._is_even():
            _refuse(
                f"batch holds sequences of different lengths; to pool as {self.pooling_type!r} "
                "make the context with kv_unified=True, or decode each by itself"
            )

    def _raise_failure(self, code: int, batch: Batch, what: str) -> NoReturn:
        """Raise for a call that did not return 0."""
        if code == CAUGHT:
            self._check(code, what)
        if code == _ABORTED or code < _INVALID:
            self._forget_halves(batch)
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

    def _forget_halves(self, batch: Batch) -> None:
        """Drop sequences whose recurrent state was being changed. llama.cpp cannot undo that."""
        if self.model.is_recurrent or self.model.is_hybrid:
            for seq_id in batch._sequence_ids():
                self.memory.seq_rm(seq_id)

    def _misfit(self, batch: Batch) -> str | None:
        """The value of a refused batch that is out of range, if there is one."""
        tokens, n_vocab = batch.tokens, self.model.vocab.n_tokens
        if tokens.size and tokens.max() >= n_vocab:
            return f"token {tokens.max()} is outside the vocabulary (0 to {n_vocab - 1})"
        highest = batch._sequence_ids()[-1]
        if highest >= self.n_seq_max:
            return f"sequence {highest} is outside this context (0 to {self.n_seq_max - 1})"
        return None


def _refuse(reason: str) -> NoReturn:
    raise InvalidBatchError(reason, _INVALID)
