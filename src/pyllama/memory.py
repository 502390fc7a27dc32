"""The memory of a context: which tokens of which sequences it holds (llama_memory_*)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from pyllama._arguments import INT32_MAX, integer
from pyllama._native._binding import lib
from pyllama._object import NativeObject
from pyllama._uncopyable import Uncopyable

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_memory_i

A = ParamSpec("A")


class Memory(Uncopyable):
    """The KV cache of a context, or the state of a recurrent model.

    Ranges of positions are half open, [p0, p1); a negative p0 means from the beginning, a
    negative p1 to the end.
    """

    _instead_of_copying = "Context.state takes and sets what a memory holds, as bytes or in a file"

    def __init__(
        self,
        context: NativeObject[Any],
        pointer: Pointer[llama_memory_i],
        *,
        n_seq_max: int,
        kv_unified: bool,
        recurrent: bool,
        cannot_shift: str | None = None,
    ) -> None:
        self._context = context
        self._pointer = pointer
        self._n_seq_max = n_seq_max
        self._kv_unified = kv_unified
        self._recurrent = recurrent
        self._cannot_shift = cannot_shift
        # Whether the next decode still has to move what was shifted or copied.
        self._pending = False

    @property
    def settled(self) -> bool:
        """Whether states can be read: no shift or copy is pending."""
        return not self._pending

    def clear(self, *, data: bool = True) -> None:
        """Forget everything.

        Args:
            data: also zero the buffers.
        """
        self._call(lib.guarded_memory_clear, bool(data))

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Forget positions of a sequence; ``seq_id=-1`` means every sequence.

        Returns:
            False if a part of a sequence cannot be removed, as in a recurrent model. Then nothing
            is removed. A complete sequence can always be removed.
        """
        seq_id, p0, p1 = self._seq("seq_id", seq_id, low=-1), _pos("p0", p0), _pos("p1", p1)
        if seq_id < 0 and p0 <= 0 and p1 < 0:
            # A recurrent memory refuses this call, though it can forget everything.
            self.clear(data=False)
            return True
        with self._context._lock:
            if seq_id >= 0 and self._context._change_lent(seq_id, -1, p0, p1):
                return True
            if self._recurrent and self._splits_state(seq_id, p0, p1):
                return False
            return bool(self._call(lib.guarded_memory_seq_rm, seq_id, p0, p1))

    def seq_cp(self, source: int, destination: int, p0: int = -1, p1: int = -1) -> None:
        """Let another sequence share the tokens of this one.

        Raises:
            ValueError: part of a sequence, in a context whose sequences have memory of their own
                (``kv_unified=False``), or of a recurrent model: there only complete sequences can
                be copied.
        """
        p0, p1 = _pos("p0", p0), _pos("p1", p1)
        separate = self._n_seq_max > 1 and not self._kv_unified
        if (separate or self._recurrent) and (p0 > 0 or p1 >= 0):
            raise ValueError(
                f"p0={p0}, p1={p1}: with kv_unified=False, or a recurrent model, only "
                "complete sequences can be copied; leave both out"
            )
        source, destination = self._seq("source", source), self._seq("destination", destination)
        with self._context._lock:
            if not self._context._change_lent(source, destination, p0, p1):
                self._call(lib.guarded_memory_seq_cp, source, destination, p0, p1)
            self._pending = self._pending or (separate and source != destination)

    def seq_keep(self, seq_id: int) -> None:
        """Forget every sequence but this one."""
        kept = self._seq("seq_id", seq_id)
        with self._context._lock:
            self._call(lib.guarded_memory_seq_keep, kept)
            if not self._kv_unified:
                # llama.cpp only checked the memory that this sequence has for itself.
                for other in range(self._n_seq_max):
                    if other != kept:
                        self.seq_rm(other)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift positions of a sequence by delta; tokens that would fall below 0 are forgotten.

        Raises:
            ValueError: this memory cannot shift (see ``can_shift``), or positions would grow
                beyond what an int32 holds, or a recurrent model's fall below 0.
        """
        self._require_shift()
        delta = integer("delta", delta, -INT32_MAX, INT32_MAX)
        seq_id, p0, p1 = self._seq("seq_id", seq_id), _pos("p0", p0), _pos("p1", p1)
        with self._context._lock:
            last = self.seq_pos_max(seq_id)
            highest = last if p1 < 0 else min(last, p1 - 1)
            if highest + delta >= INT32_MAX:
                raise ValueError(f"delta={delta} moves position {highest} beyond {INT32_MAX - 1}")
            if self._recurrent and p0 <= last == highest and last + delta < 0:
                raise ValueError(f"delta={delta} moves position {last} of the state below 0")
            self._call(lib.guarded_memory_seq_add, seq_id, p0, p1, delta)
            self._pending = True

    def seq_div(self, seq_id: int, p0: int, p1: int, divisor: int) -> None:
        """Divide positions of a sequence by a whole number greater than one.

        Raises:
            ValueError: this memory cannot shift; see ``can_shift``.
        """
        self._require_shift()
        divisor = integer("divisor", divisor, 2, INT32_MAX)
        seq_id, p0, p1 = self._seq("seq_id", seq_id), _pos("p0", p0), _pos("p1", p1)
        with self._context._lock:
            self._call(lib.guarded_memory_seq_div, seq_id, p0, p1, divisor)
            self._pending = True

    def seq_pos_min(self, seq_id: int) -> int:
        """The lowest position of a sequence that is in memory, -1 when it is empty.

        More than zero after a sliding window has moved on.
        """
        return self._call(lib.guarded_memory_seq_pos_min, self._seq("seq_id", seq_id))

    def seq_pos_max(self, seq_id: int) -> int:
        """The highest position of a sequence that is in memory, -1 when it is empty."""
        return self._call(lib.guarded_memory_seq_pos_max, self._seq("seq_id", seq_id))

    @property
    def can_shift(self) -> bool:
        """Whether ``seq_add`` and ``seq_div`` work in this memory."""
        return bool(self._call(lib.guarded_memory_can_shift)) and self._cannot_shift is None

    def _splits_state(self, seq_id: int, p0: int, p1: int) -> bool:
        """Whether this would remove earlier positions from a recurrent state and keep later ones.

        llama.cpp would report success, and remove them from the attention layers only.
        """
        sequences = range(self._n_seq_max) if seq_id < 0 else [seq_id]
        return any(0 <= p1 <= last and p0 < p1 for last in map(self.seq_pos_max, sequences))

    def _updated(self) -> None:
        """Note that a decode has moved everything that was pending."""
        self._pending = False

    def _call(
        self,
        call: Callable[Concatenate[Pointer[llama_memory_i], A], int],
        *arguments: A.args,
        **named: A.kwargs,
    ) -> int:
        context = self._context
        with context._lock:
            context._open()
            return context._check(call(self._pointer, *arguments, **named), "changing the memory")

    def _seq(self, name: str, seq_id: int, *, low: int = 0) -> int:
        return integer(name, seq_id, low, self._n_seq_max - 1)

    def _require_shift(self) -> None:
        if not self.can_shift:
            reason = self._cannot_shift or "the memory of this model has no way to do so"
            raise ValueError(f"positions cannot be shifted here (see can_shift): {reason}")


def _pos(name: str, position: int) -> int:
    return integer(name, position, -INT32_MAX, INT32_MAX)
