"""Batches: the input of one encode or decode call."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllama._arguments import INT32_MAX, integer
from pyllama._native._binding import ffi

Outputs = Literal["last", "all", "none"]

MAX_CAPACITY = 2**24  # more tokens than any context holds; its arrays take 0.4 GB


class Batch:
    """Tokens to process, each with its position, its sequences, and whether it gives an output.

    The arrays are allocated once, for ``capacity`` tokens; :meth:`clear` makes room for the next
    call. An entry's index in the batch is what :meth:`Context.logits` takes.

    :param capacity: the most tokens it can hold.
    :param n_seq_max: the most sequences that one token can belong to.
    """

    def __init__(self, capacity: int, *, n_seq_max: int = 1) -> None:
        self.capacity = integer("capacity", capacity, 1, MAX_CAPACITY)
        self.n_seq_max = integer("n_seq_max", n_seq_max, 1, 4096)
        self._lock = threading.RLock()

        self._token = np.zeros(self.capacity, dtype=np.int32)
        self._pos = np.zeros(self.capacity, dtype=np.int32)
        self._n_seq_id = np.ones(self.capacity, dtype=np.int32)
        self._seq_id = np.zeros((self.capacity, self.n_seq_max), dtype=np.int32)
        self._logits = np.zeros(self.capacity, dtype=np.int8)
        # C wants an array of pointers, one for each token, into the rows of _seq_id.
        rows = self._seq_id.ctypes.data + np.arange(self.capacity) * self._seq_id.strides[0]
        self._seq_id_rows = rows.astype(np.uintp)

        self._struct = ffi.new("llama_batch *")
        self._struct.token = _pointer("llama_token *", self._token)
        self._struct.pos = _pointer("llama_pos *", self._pos)
        self._struct.n_seq_id = _pointer("int32_t *", self._n_seq_id)
        self._struct.seq_id = _pointer("llama_seq_id **", self._seq_id_rows)
        self._struct.logits = _pointer("int8_t *", self._logits)

    @classmethod
    def from_tokens(
        cls, tokens: ArrayLike, *, pos: int = 0, seq_id: int = 0, outputs: Outputs = "last"
    ) -> Batch:
        """A batch that holds one run of tokens of one sequence; see :meth:`add_tokens`."""
        ids = _token_array(tokens)
        batch = cls(max(len(ids), 1))
        batch.add_tokens(ids, pos=pos, seq_id=seq_id, outputs=outputs)
        return batch

    def add(
        self, token: int, pos: int, seq_ids: Iterable[int] = (0,), *, output: bool = False
    ) -> int:
        """Add one token, and return its index.

        :param pos: its position in its sequences.
        :param seq_ids: the sequences that it belongs to.
        :param output: whether the call computes logits (or an embedding) for it.
        :raises ValueError: the batch is full, or a value is out of range.
        """
        token = integer("token", token, 0, INT32_MAX)
        pos = integer("pos", pos, 0, INT32_MAX)
        if not isinstance(seq_ids, Iterable):
            raise TypeError(f"seq_ids must hold sequence ids, got {seq_ids!r}")
        ids = [integer("seq_ids", seq_id, 0, INT32_MAX) for seq_id in seq_ids]
        if not 1 <= len(ids) <= self.n_seq_max:
            raise ValueError(
                f"seq_ids must hold 1 to {self.n_seq_max} sequences (this batch's n_seq_max), "
                f"got {ids}"
            )
        with self._lock:
            index = self._room_for(1)
            self._token[index] = token
            self._pos[index] = pos
            self._n_seq_id[index] = len(ids)
            self._seq_id[index, : len(ids)] = ids
            self._logits[index] = bool(output)
            self._struct.n_tokens = index + 1
            return index

    def add_tokens(
        self, tokens: ArrayLike, *, pos: int = 0, seq_id: int = 0, outputs: Outputs = "last"
    ) -> slice:
        """Add a run of tokens of one sequence, and return their indices.

        :param tokens: int32 array or sequence of shape (n,).
        :param pos: position of the first; the others follow it.
        :param outputs: which of them give an output.
        :raises ValueError: they do not fit, or a value is out of range.
        """
        ids = _token_array(tokens)
        pos = integer("pos", pos, 0, INT32_MAX - len(ids))
        seq_id = integer("seq_id", seq_id, 0, INT32_MAX)
        if outputs not in ("last", "all", "none"):
            raise ValueError(f"outputs must be 'last', 'all' or 'none', got {outputs!r}")
        with self._lock:
            begin = self._room_for(len(ids))
            end = begin + len(ids)
            self._token[begin:end] = ids
            self._pos[begin:end] = np.arange(pos, pos + len(ids), dtype=np.int32)
            self._n_seq_id[begin:end] = 1
            self._seq_id[begin:end, 0] = seq_id
            self._logits[begin:end] = outputs == "all"
            if outputs == "last" and end > begin:
                self._logits[end - 1] = True
            self._struct.n_tokens = end
            return slice(begin, end)

    def clear(self) -> None:
        """Forget all tokens; the capacity stays."""
        with self._lock:
            self._struct.n_tokens = 0

    def __len__(self) -> int:
        length: int = self._struct.n_tokens
        return length

    def __repr__(self) -> str:
        return f"<pyllama.Batch: {len(self)} of {self.capacity} tokens>"

    @property
    def tokens(self) -> NDArray[np.int32]:
        """A copy of the token ids, shape (len(self),)."""
        tokens: NDArray[np.int32] = self._token[: len(self)].copy()
        return tokens

    def _highest_seq_id(self) -> int:
        filled = np.arange(self.n_seq_max) < self._n_seq_id[: len(self), None]
        return int(self._seq_id[: len(self)][filled].max())

    def _shares_tokens(self) -> bool:
        """Whether a token belongs to several sequences."""
        return bool((self._n_seq_id[: len(self)] > 1).any())

    def _room_for(self, count: int) -> int:
        """The index of the next token, if count of them still fit."""
        index = len(self)
        if index + count > self.capacity:
            raise ValueError(
                f"the batch holds {index} of {self.capacity} tokens, {count} more do not fit: "
                "decode and clear() it first, or make it larger"
            )
        return index


def _pointer(kind: str, array: NDArray[Any]) -> Any:
    return ffi.cast(kind, ffi.from_buffer(array))


def _token_array(tokens: ArrayLike | Sequence[int]) -> NDArray[np.int32]:
    try:
        array = np.asarray(tokens)
    except ValueError:
        raise TypeError(f"tokens must be integers of shape (n,), got {tokens!r}") from None
    if array.size == 0:
        return np.empty(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers of shape (n,), got {array.dtype} {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > INT32_MAX:
        raise ValueError(f"tokens must be ids of 0 or more, got {low if low < 0 else high}")
    return array.astype(np.int32, copy=False)
