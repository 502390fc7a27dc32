"""Sequences of a context that run by themselves, while others join and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from pyllama._arguments import INT32_MAX, MAX_POS, integer, real, token_array
from pyllama._guard import check, raise_caught, to_str
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.context import Context
from pyllama.errors import (
    DecodeCancelled,
    DecodeError,
    InvalidBatchError,
    LlamaError,
    MemoryFullError,
)
from pyllama.parallel_generation import Drawn, Run, fill_run, require_run
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, pyllama_generation

MAX_DRAFT = 64

# What llama_decode returns.
_NO_ROOM, _ABORTED, _INVALID = 1, 2, -1


@dataclass(frozen=True)
class SequenceProgress:
    """What became of the tokens that joined a ``Generation``.

    Attributes:
        computed: whether they are in memory.
        over: whether the sequence has ended.
        drawn: what was sampled since the last look; its ``n_computed`` is -1 if the last token
            before that is not in memory.
    """

    computed: bool
    over: bool
    drawn: Drawn


class Generation(NativeObject["Pointer[pyllama_generation]"]):
    """Decodes and samples on a thread of its own, batch after batch, as long as a sequence goes on.

    Tokens join with ``add``, and are in the next batch that has room for them. ``wait`` tells what
    became of them. Each sequence goes on until a token that ends generation, a stop text, its
    ``max_tokens`` or an error. Each batch has the next tokens of all that go on.

    It drafts tokens that followed the same four tokens in its answers twice in a row (llama.cpp's
    ``common_ngram_mod``). They are computed in the same batch, and kept as long as the chain
    samples the same ones. So drafts do not change the distribution of what a chain samples, and
    text that answers have in common takes few batches. As in any batch, the other tokens may change
    the last bits of logits, and so the choice between tokens that are nearly equally likely.

    Meanwhile the context belongs to it, and so do the chains of sequences that go on. The thread
    that made it may still use them: ``Memory.seq_rm`` and ``seq_cp`` are done before the next
    batch, and any other call pauses it after the current batch, until the next ``wait``. Closing a
    chain removes its sequence, and closing the context ends it.

    Args:
        context: one without attached threadpools, of a model whose memory can be cut back.
        n_threads: threads that sample; None for as many as the context has for one token.
        n_draft: the most tokens drafted for a sequence in a batch, 0 to 64; 0 drafts nothing. All
            outputs of a batch together are at most ``n_outputs_max`` of the context.

    Raises:
        ValueError: a context that cannot be used here.
    """

    _instead_of_copying = "Make another one for another context"

    def __init__(self, context: Context, *, n_threads: int | None = None, n_draft: int = 8) -> None:
        super().__init__()
        if not isinstance(context, Context):
            raise TypeError(f"context must be a pyllama.Context, got {context!r}")
        model = context.model
        if model.is_recurrent or model.is_hybrid or model.n_swa or model.has_encoder:
            raise ValueError(f"the memory of this model cannot be cut back: {model.desc}")
        threads = context.n_threads if n_threads is None else n_threads
        threads = integer("n_threads", threads, 1, MAX_THREADS)
        n_draft = integer("n_draft", n_draft, 0, MAX_DRAFT)
        self._context = context
        self._thread = get_ident()
        self._woken = ffi.new("bool *")
        self._members: dict[int, _Member] = {}
        #: Why nothing is computed any more, if a batch failed. What it computed is in memory
        #: behind what is known to be: remove it.
        self.error: Exception | None = None
        with context._lock:
            handle = context._open()
            if context._lent or context._threadpools:
                raise ValueError(f"{context!r} has a Generation already, or attached threadpools")
            if context.computes_embeddings or not context._has_memory:
                raise ValueError(f"{context!r} computes embeddings, or has no memory")
            context._forget_outputs()
            lib.pyllama_interrupt_begin(context._interrupt.pointer, False)
            n_outputs = context.n_outputs_max
            pointer = lib.guarded_generation_init(handle.pointer, threads, n_draft, n_outputs)
            if pointer == ffi.NULL:
                raise_caught("starting a generation")
            self._own(pointer, lib.guarded_generation_free, handle, context._interrupt)
            context._lend(self)

    def __len__(self) -> int:
        """How many sequences it has."""
        return len(self._members)

    def add(
        self,
        seq_id: int,
        tokens: ArrayLike,
        pos: int,
        run: Run | None = None,
        *,
        each: bool = False,
    ) -> None:
        """Compute tokens of a sequence, and let the sequence go on after them.

        Args:
            seq_id: a sequence that is not going on.
            tokens: 1 to n_batch of them, of shape (n,).
            pos: the position of the first one.
            run: how the sequence goes on from the position after the last token; None if it does
                not.
            each: whether each sampled token counts as news, or only the first one and the end.

        Raises:
            ValueError: an argument that cannot be used here.
            InvalidBatchError: tokens or positions that the model does not know.
        """
        seq_id = integer("seq_id", seq_id, 0, self._context.n_seq_max - 1)
        chosen: list[int] = token_array(tokens).tolist()
        count = integer("the number of tokens", len(chosen), 1, self._context.n_batch)
        end = integer("pos", pos, 0, MAX_POS - count) + count
        with self._lock:
            pointer = self._pointer
            self._require_own_thread()
            if seq_id in self._members:
                raise ValueError(f"seq_id must be of a sequence that is not going on, got {seq_id}")
            if run is not None:
                require_run(run, self._context.n_ctx)
                if (run.seq_id, run.pos) != (seq_id, end):
                    raise ValueError(f"run must follow sequence {seq_id} at {end}, got {run!r}")
                if run.chain._lent:
                    raise ValueError(f"run must have a chain that is not going on, got {run!r}")
            n_vocab = self._context.model.vocab.n_tokens
            if not 0 <= min(chosen) <= max(chosen) < n_vocab:
                raise InvalidBatchError(f"tokens must be 0 to {n_vocab - 1}", _INVALID)
            member = _Member(self._context, seq_id, chosen, pos, run, each=each)
            self._context._require_position(end + member.n_max - 1)
            check(lib.guarded_generation_add(pointer, member.part), "joining a generation")
            self._members[seq_id] = member
            if run is not None:
                run.chain._lend(self)

    def wait(self, seconds: float = 0.0) -> dict[int, SequenceProgress]:
        """Let it go on, wait for news, and return the news by sequence.

        Args:
            seconds: how long to wait at most.

        Returns:
            the sequences whose first tokens were computed or that go on no more, and those with
            ``each`` that got tokens. After an error, all sequences that had begun.
        """
        limit = real("seconds", seconds, 0.0, 3600.0)
        with self._lock:
            pointer = self._pointer
            self._require_own_thread()
            code = lib.guarded_generation_wait(pointer, self._woken, limit)
            self._woken[0] = False  # before its caller looks for what there is to do
            if code and self.error is None:
                self.error = self._failure(code)
            news = {
                seq_id: member.progress()
                for seq_id, member in self._members.items()
                if member.part.is_news
            }
            for seq_id, progress in news.items():
                if progress.over:
                    self._forget(seq_id)
            if news:
                self._context.memory._updated()
            return news

    def wake(self) -> None:
        """Make the waiting thread return. Any thread may call this, even before one waits."""
        self._woken[0] = True

    def remove(self, seq_id: int) -> None:
        """Stop a sequence. What was sampled for it since the last look is lost."""
        seq_id = integer("seq_id", seq_id, 0, INT32_MAX)
        with self._lock:
            member = self._members.get(seq_id)
            if member is not None:
                pointer = self._pointer
                check(lib.guarded_generation_remove(pointer, member.part), "leaving a generation")
                self._forget(seq_id)

    def close(self) -> None:
        """End it after the current batch. Then the context is free again."""
        super().close()
        self._context._give_back(self)
        for seq_id in list(self._members):
            self._forget(seq_id)

    # For what it uses

    def _pause(self) -> None:
        """Let its own thread use the context and the chains, until the next wait."""
        self._require_own_thread()
        with self._lock:
            check(lib.guarded_generation_pause(self._pointer), "pausing a generation")

    def _let_go(self, used: NativeObject[Any]) -> None:
        """Use something no more that is being closed."""
        if used is self._context:
            self.close()
        for seq_id, member in list(self._members.items()):
            if member.run is not None and member.run.chain is used:
                self.remove(seq_id)

    def _change(self, seq_id: int, copy: int, p0: int, p1: int) -> None:
        """Have a sequence's positions removed, or shared with a copy: before the next batch, or at
        once while it is paused.
        """
        self._require_own_thread()
        with self._lock:
            pointer = self._pointer
            code = lib.guarded_generation_change(pointer, seq_id, copy, p0, p1)
            check(code, "changing the memory")

    @property
    def _pointer(self) -> Pointer[pyllama_generation]:
        return self._open().pointer

    def _require_own_thread(self) -> None:
        if get_ident() != self._thread:
            raise ValueError("this is at work in a Generation, which another thread made")

    def _forget(self, seq_id: int) -> None:
        run = self._members.pop(seq_id).run
        if run is not None:
            run.chain._give_back(self)

    def _failure(self, code: int) -> Exception:
        context = self._context
        reason = to_str(lib.pyllama_generation_message(self._pointer))
        reason = reason or "llama.cpp gave no reason"
        try:
            context._check(code, "decode")
            context._open()  # a server may be lost
        except LlamaError as error:
            return error
        if code == _ABORTED:
            return DecodeCancelled("decode: cancelled", code)
        if code == _NO_ROOM:
            room = f"a memory of {context.n_ctx} ({context.n_ctx_seq} for each sequence)"
            return MemoryFullError(f"decode: no room for more tokens in {room}", code)
        if code == _INVALID:
            return InvalidBatchError(f"decode: {reason}", code)
        return DecodeError(f"decode: llama.cpp returned {code}: {reason}", code)


class _Member:
    """A sequence of a generation, and the memory that C writes what it samples to."""

    def __init__(
        self,
        context: Context,
        seq_id: int,
        tokens: Sequence[int],
        pos: int,
        run: Run | None,
        *,
        each: bool,
    ) -> None:
        self.run = run
        self.part = ffi.new("pyllama_part *")
        self.n_max = 0
        self._n_told = 0
        array = ffi.new("llama_token[]", tokens)
        self._kept: list[object] = [array]  # what the structs point to
        self.part.seq_id, self.part.pos, self.part.each = seq_id, pos, each
        self.part.tokens, self.part.n_tokens = array, len(tokens)
        self._struct = ffi.new("pyllama_run *")
        if run is not None:
            self._kept += fill_run(self._struct, run, context)
            self.n_max = min(self._struct.n_max, context.n_ctx)
            sampled, may_end = ffi.new("llama_token[]", self.n_max), ffi.new("bool[]", self.n_max)
            self._kept += [sampled, may_end]
            self._struct.n_max = self._struct.n_room = self.n_max
            self._struct.tokens, self._struct.may_end = sampled, may_end
            self.part.run = self._struct

    def progress(self) -> SequenceProgress:
        """What there is since the last look."""
        part, struct, told = self.part, self._struct, self._n_told
        drawn = Drawn([], [])
        if self.run is not None:
            self._n_told = n = part.n_sampled
            error, at_stop, bounded = None, False, True
            if part.over:  # nothing else is safe to read while it goes on
                last = self.run.chain._end_draw(struct.draw)
                error = last if isinstance(last, Exception) else None
                at_stop, bounded = bool(struct.at_stop), bool(struct.bounded)
            drawn = Drawn(
                ffi.unpack(struct.tokens + told, n - told) if n > told else [],
                ffi.unpack(struct.may_end + told, n - told) if n > told else [],
                error,
                part.n_in_memory - told,
                at_stop,
                bounded,
            )
        return SequenceProgress(bool(part.computed), bool(part.over), drawn)
