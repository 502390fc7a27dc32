"""What a context refuses to decode, and what the codes mean that llama.cpp returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from pyllama._callbacks import raise_polled
from pyllama._context_memory import fits
from pyllama._guard import CAUGHT, last_errors
from pyllama.batch import Batch
from pyllama.errors import (
    DecodeCancelled,
    DecodeError,
    InvalidBatchError,
    MemoryFullError,
    NativeMemoryError,
)
from pyllama.model import Model

if TYPE_CHECKING:
    from pyllama.context import Context

# What llama_decode returns.
_NO_ROOM, _ABORTED, _INVALID = 1, 2, -1

# Architectures that look positions up in a table as long as the context they were trained with.
_LEARNED_POSITIONS = ("bert", "gpt2", "starcoder")


def n_pos_max(model: Model) -> int | None:
    """How many positions the model has embeddings of, None if any position will do."""
    name = model.metadata.get("general.architecture")
    if name == "mpt" and float(model.metadata.get("mpt.attention.max_alibi_bias", 0)) == 0:
        return model.n_ctx_train
    return model.n_ctx_train if name in _LEARNED_POSITIONS else None


def require_fitting(context: Context, batch: Batch, n_outputs: int, *, encoding: bool) -> None:
    """Refuse what llama.cpp would answer with an assertion, a crash or a wrong result."""
    count = len(batch)
    if not 0 < count <= context.n_batch:
        _refuse(f"batch holds {count} tokens; this context takes 1 to {context.n_batch} (n_batch)")
    if n_outputs > context.n_outputs_max:
        _refuse(
            f"batch asks for {n_outputs} outputs; this context gives at most "
            f"{context.n_outputs_max} (n_outputs_max)"
        )
    if batch.n_embd:
        _require_embeddings(context, batch)
    if count > context.n_ubatch and (encoding or not context.causal_attn):
        _refuse(
            f"batch holds {count} tokens; without causal attention it must be computed at once, "
            f"and n_ubatch is {context.n_ubatch}"
        )
    if context.computes_embeddings and context.pooling_type in ("mean", "cls", "rank"):
        _require_poolable(context, batch)
    if context._n_pos_max is not None:
        require_position(context, batch._highest_pos())
    if n_outputs > context._n_outputs_made:
        size = n_outputs * (context.model.vocab.n_tokens + context.n_embd_out) * 4
        if not fits(size):
            raise NativeMemoryError(f"{n_outputs} outputs need {size / 1e9:.1f} GB of memory")
        context._n_outputs_made = n_outputs


def require_position(context: Context, pos: int) -> None:
    """Refuse a position that the model has no embedding of."""
    if context._n_pos_max is not None and pos >= context._n_pos_max:
        _refuse(
            f"position {pos} is outside this model, which has embeddings of positions 0 to "
            f"{context._n_pos_max - 1}"
        )


def _require_embeddings(context: Context, batch: Batch) -> None:
    if batch.n_embd != context.n_embd_inp:
        _refuse(
            f"batch holds embeddings of size {batch.n_embd}; this model takes "
            f"{context.n_embd_inp} (n_embd_inp)"
        )
    if batch.n_pos_per_embd != context.n_pos_per_embd:
        _refuse(
            f"batch holds {batch.n_pos_per_embd} positions for each embedding; this model takes "
            f"{context.n_pos_per_embd} (n_pos_per_embd)"
        )


def _require_poolable(context: Context, batch: Batch) -> None:
    """A sequence is pooled over what is computed at once: that must be all of it."""
    if len(batch) > context.n_ubatch:
        _refuse(
            f"batch holds {len(batch)} tokens; to pool as {context.pooling_type!r} it must be "
            f"computed at once, and n_ubatch is {context.n_ubatch}"
        )
    if context._splits_sequences and not batch._is_even():
        _refuse(
            f"batch holds sequences of different lengths; to pool as {context.pooling_type!r} "
            "make the context with kv_unified=True, or decode each by itself"
        )


def _refuse(reason: str) -> NoReturn:
    raise InvalidBatchError(reason, _INVALID)


def raise_failure(context: Context, code: int, batch: Batch, what: str) -> NoReturn:
    """Raise for a call that did not return 0."""
    if code == CAUGHT:
        context._check(code, what)
    if code == _ABORTED or code < _INVALID:
        _forget_halves(context, batch)
    if code == _ABORTED:
        raise_polled()
        raise DecodeCancelled(f"{what}: cancelled", code)
    if code == _NO_ROOM and batch._shares_tokens() and not context.kv_unified:
        raise InvalidBatchError(
            f"{what}: a token of several sequences needs a context with kv_unified=True; here "
            "each sequence has memory of its own. Use Memory.seq_cp() instead",
            code,
        )
    if code == _NO_ROOM:
        raise MemoryFullError(
            f"{what}: no room for {len(batch)} more tokens in a memory of {context.n_ctx} "
            f"({context.n_ctx_seq} for each sequence): remove sequences, or make a context with "
            "a larger n_ctx",
            code,
        )
    reason = last_errors() or "llama.cpp gave no reason"
    if code == _INVALID:
        raise InvalidBatchError(f"{what}: {_misfit(context, batch) or reason}", code)
    raise DecodeError(f"{what}: llama.cpp returned {code}: {reason}", code)


def _forget_halves(context: Context, batch: Batch) -> None:
    """Drop sequences whose recurrent state was being changed; llama.cpp cannot undo that."""
    if context.model.is_recurrent or context.model.is_hybrid:
        for seq_id in batch._sequence_ids():
            context.memory.seq_rm(seq_id)


def _misfit(context: Context, batch: Batch) -> str | None:
    """Which value of a refused batch is out of range, if one is."""
    tokens, n_vocab = batch.tokens, context.model.vocab.n_tokens
    if tokens.size and tokens.max() >= n_vocab:
        return f"token {tokens.max()} is outside the vocabulary (0 to {n_vocab - 1})"
    highest = batch._sequence_ids()[-1]
    if highest >= context.n_seq_max:
        return f"sequence {highest} is outside this context (0 to {context.n_seq_max - 1})"
    return None
