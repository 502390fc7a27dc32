"""Batches: the input of one encode or decode call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllama._arguments import INT32_MAX, MAX_POS, any_array, int32_array, integer, token_array
from pyllama._half_made import or_half_made
from pyllama._native._binding import ffi
from pyllama._process import make_lock
from pyllama._uncopyable import Uncopyable

if TYPE_CHECKING:
    from typing import TypeGuard

    from pyllama._native._binding import llama_batch_p

Outputs = Literal["last", "all", "none"]

MAX_CAPACITY = 2**24  # more tokens than any context holds; its arrays take 0.4 GB
MAX_EMBEDDING_VALUES = 2**31  # of all rows together; 8 GB


class Batch(Uncopyable):
    """Tokens to process, each with its position, its sequences, and whether it gives an output.

    The arrays are allocated once, for ``capacity`` tokens; ``clear`` makes room for the next
    call. An entry's index in the batch is what ``Context.logits`` takes.

    A batch with ``n_embd`` holds rows of embeddings instead of tokens, as an encoder of images or
    sound makes them.

    Args:
        capacity: the most tokens it can hold.
        n_seq_max: the most sequences that one token can belong to.
        n_embd: size of an embedding (``Context.n_embd_inp``); 0 for tokens.
        n_pos_per_embd: positions of one embedding (``Context.n_pos_per_embd``): 4 for models
            with M-RoPE, otherwise 1. A token always has one.
    """

    _instead_of_copying = "Make another Batch, from the tokens and positions of this one"

    def __init__(
        self, capacity: int, *, n_seq_max: int = 1, n_embd: int = 0, n_pos_per_embd: int = 1
    ) -> None:
        #: The most entries.
        self.capacity = integer("capacity", capacity, 1, MAX_CAPACITY)
        #: The most sequences of one entry.
        self.n_seq_max = integer("n_seq_max", n_seq_max, 1, 4096)
        #: Size of each embedding; 0 for a batch of tokens.
        self.n_embd = integer("n_embd", n_embd, 0, MAX_EMBEDDING_VALUES // self.capacity)
        #: Positions of each entry: 4 with M-RoPE, otherwise 1.
        self.n_pos_per_embd = integer("n_pos_per_embd", n_pos_per_embd, 1, 4 if self.n_embd else 1)
        self._lock = make_lock(self)

        self._pos = np.zeros((self.n_pos_per_embd, self.capacity), dtype=np.int32)
        self._n_seq_id = np.ones(self.capacity, dtype=np.int32)
        self._seq_id = np.zeros((self.capacity, self.n_seq_max), dtype=np.int32)
        self._logits = np.zeros(self.capacity, dtype=np.int8)
        self._n_outputs = 0
        # C wants an array of pointers, one for each token, into the rows of _seq_id.
        rows = self._seq_id.ctypes.data + np.arange(self.capacity) * self._seq_id.strides[0]
        self._seq_id_rows = rows.astype(np.uintp)

        self._struct = ffi.new("llama_batch *")
        self._struct.pos = ffi.from_buffer("llama_pos[]", self._pos)
        self._struct.n_seq_id = ffi.from_buffer("int32_t[]", self._n_seq_id)
        self._struct.seq_id = ffi.cast("llama_seq_id **", ffi.from_buffer(self._seq_id_rows))
        self._wanted = ffi.from_buffer("int8_t[]", self._logits)
        if self.n_embd:
            self._token = np.empty(0, dtype=np.int32)
            self._embd = np.zeros((self.capacity, self.n_embd), dtype=np.float32)
            self._struct.embd = ffi.from_buffer("float[]", self._embd)
        else:
            self._token = np.zeros(self.capacity, dtype=np.int32)
            self._struct.token = ffi.from_buffer("llama_token[]", self._token)

    @classmethod
    def from_tokens(
        cls,
        tokens: ArrayLike,
        *,
        pos: int | ArrayLike = 0,
        seq_id: int | ArrayLike = 0,
        outputs: Outputs | ArrayLike = "last",
    ) -> Batch:
        """A batch that holds these tokens; see ``add_tokens``."""
        ids = token_array(tokens)
        shape = () if _is_number(seq_id) else int32_array("seq_id", seq_id).shape
        batch = cls(max(len(ids), 1), n_seq_max=max([1, *shape[1:2]]))
        batch.add_tokens(ids, pos=pos, seq_id=seq_id, outputs=outputs)
        return batch

    def add(
        self, token: int, pos: int, seq_ids: Iterable[int] = (0,), *, output: bool = False
    ) -> int:
        """Add one token, and return its index.

        Args:
            pos: its position in its sequences.
            seq_ids: the sequences that it belongs to.
            output: whether the call computes logits (or an embedding) for it.

        Raises:
            ValueError: the batch is full or holds embeddings, or a value is out of range.
        """
        token = integer("token", token, 0, INT32_MAX)
        pos = integer("pos", pos, 0, MAX_POS)
        if not isinstance(seq_ids, Iterable):
            raise TypeError(f"seq_ids must hold sequence ids, got {seq_ids!r}")
        ids = [integer("seq_ids", seq_id, 0, INT32_MAX) for seq_id in seq_ids]
        if not 1 <= len(ids) <= self.n_seq_max:
            raise ValueError(
                f"seq_ids must hold 1 to {self.n_seq_max} sequences (this batch's n_seq_max), "
                f"got {ids}"
            )
        self._require_tokens()
        with self._lock:
            index = self._room_for(1)
            # Through C's pointers: for single values they are faster than numpy.
            struct, output = self._struct, bool(output)
            struct.token[index] = token
            struct.pos[index] = pos
            struct.n_seq_id[index] = len(ids)
            row = struct.seq_id[index]
            for which, seq_id in enumerate(ids):
                row[which] = seq_id
            self._wanted[index] = output
            self._n_outputs += output
            struct.n_tokens = index + 1
            return index

    def add_tokens(
        self,
        tokens: ArrayLike,
        *,
        pos: int | ArrayLike = 0,
        seq_id: int | ArrayLike = 0,
        outputs: Outputs | ArrayLike = "last",
    ) -> slice:
        """Add tokens, and return their indices.

        Args:
            tokens: int32 array or sequence of shape (n,).
            pos: position of the first, which the others follow; or one for each, shape (n,).
            seq_id: their sequence; or one for each token, shape (n,); or several for each, shape
                (n, k), or (1, k) for the same ones.
            outputs: which of them give an output; or bools of shape (n,).

        Raises:
            ValueError: they do not fit, the batch holds embeddings, or a value is out of range.
        """
        ids = token_array(tokens)
        self._require_tokens()
        with self._lock:
            indices = self._add(len(ids), pos, seq_id, outputs)
            self._token[indices] = ids
            return indices

    def add_embeddings(
        self,
        embeddings: ArrayLike,
        *,
        pos: int | ArrayLike = 0,
        seq_id: int | ArrayLike = 0,
        outputs: Outputs | ArrayLike = "last",
    ) -> slice:
        """Add rows of embeddings, and return their indices.

        Args:
            embeddings: float32 array of shape (n, n_embd).
            pos: as in ``add_tokens``; with several positions for each, shape (n_pos_per_embd,
                n). One number gives all positions of a row the same value.
            seq_id: as in ``add_tokens``.
            outputs: as in ``add_tokens``.

        Raises:
            ValueError: they do not fit, the batch holds tokens, or a value is out of range.
        """
        if not self.n_embd:
            raise ValueError(
                "embeddings do not fit into a batch of tokens: make it with "
                "n_embd=Context.n_embd_inp"
            )
        rows = any_array("embeddings", embeddings)
        if rows.ndim != 2 or rows.dtype.kind != "f" or rows.shape[1] != self.n_embd:
            raise TypeError(
                f"embeddings must be floats of shape (n, {self.n_embd}), "
                f"got {rows.dtype} {rows.shape}"
            )
        with self._lock:
            indices = self._add(len(rows), pos, seq_id, outputs)
            self._embd[indices] = rows
            return indices

    def clear(self) -> None:
        """Forget all tokens; the capacity stays."""
        with self._lock:
            self._struct.n_tokens = 0
            self._n_outputs = 0

    def __len__(self) -> int:
        length: int = self._struct.n_tokens
        return length

    @or_half_made
    def __repr__(self) -> str:
        what = "embeddings" if self.n_embd else "tokens"
        return f"<pyllama.Batch: {len(self)} of {self.capacity} {what}>"

    @property
    def tokens(self) -> NDArray[np.int32]:
        """A copy of the token ids, shape (len(self),); none in a batch of embeddings."""
        tokens: NDArray[np.int32] = self._token[: len(self)].copy()
        return tokens

    def _add(
        self,
        count: int,
        pos: int | ArrayLike,
        seq_id: int | ArrayLike,
        outputs: Outputs | ArrayLike,
    ) -> slice:
        """Write all but the tokens themselves, once everything has been checked."""
        positions = self._positions(pos, count)
        sequences = self._sequences(seq_id, count)
        wanted = _outputs(outputs, count)
        begin = self._room_for(count)
        indices = slice(begin, begin + count)
        self._pos[:, indices] = positions
        self._n_seq_id[indices] = sequences.shape[1]
        self._seq_id[indices, : sequences.shape[1]] = sequences
        self._logits[indices] = wanted
        self._n_outputs += int(np.count_nonzero(wanted))
        self._struct.n_tokens = begin + count
        return indices

    def _positions(self, pos: int | ArrayLike, count: int) -> NDArray[np.int32]:
        if _is_number(pos):
            first = integer("pos", pos, 0, INT32_MAX - count)
            return np.arange(first, first + count, dtype=np.int32)
        array = int32_array("pos", pos, MAX_POS)
        shape = (count,) if self.n_pos_per_embd == 1 else (self.n_pos_per_embd, count)
        if array.shape != shape:
            raise ValueError(f"pos must be an integer or of shape {shape}, got {array.shape}")
        return array

    def _sequences(self, seq_id: int | ArrayLike, count: int) -> NDArray[np.int32]:
        """Sequences of each token, shape (count, k) or (1, k)."""
        if _is_number(seq_id):
            one = integer("seq_id", seq_id, 0, INT32_MAX)
            return np.full((1, 1), one, dtype=np.int32)
        array = int32_array("seq_id", seq_id)
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or len(array) not in (1, count) or array.shape[1] == 0:
            raise ValueError(
                f"seq_id must be an integer or of shape ({count},), ({count}, k) or (1, k), "
                f"got {np.shape(seq_id)}"
            )
        if array.shape[1] > self.n_seq_max:
            raise ValueError(
                f"seq_id must give each token 1 to {self.n_seq_max} sequences (this batch's "
                f"n_seq_max), got {array.shape[1]}"
            )
        return array

    def _require_tokens(self) -> None:
        if self.n_embd:
            raise ValueError("tokens do not fit into a batch of embeddings (made with n_embd)")

    def _sequence_ids(self) -> list[int]:
        filled = np.arange(self.n_seq_max) < self._n_seq_id[: len(self), None]
        # np.unique() imports a module on its first call, which fails without memory.
        return sorted(set(self._seq_id[: len(self)][filled].tolist()))

    def _highest_pos(self) -> int:
        return int(self._pos[:, : len(self)].max())

    def _shares_tokens(self) -> bool:
        """Whether a token belongs to several sequences."""
        return bool((self._n_seq_id[: len(self)] > 1).any())

    def _is_even(self) -> bool:
        """Whether its sequences have equally many tokens."""
        counts = np.bincount(self._seq_id[: len(self), 0])
        return bool(np.ptp(counts[counts > 0]) == 0)

    def _gives(self, output: int) -> bool:
        """Whether an entry gives an output."""
        return output < len(self) and bool(self._logits[output])

    def _filled(self, *, all_outputs: bool) -> llama_batch_p:
        """The batch in C's form.

        Args:
            all_outputs: every entry gives an output, whatever was requested.
        """
        if all_outputs and self._n_outputs < len(self):
            self._ones = np.ones(len(self), dtype=np.int8)
            self._struct.logits = ffi.from_buffer("int8_t[]", self._ones)
        else:
            self._struct.logits = self._wanted
        if self.n_pos_per_embd > 1:
            # All first positions, then all second ones: without the gaps of the unused capacity.
            self._dense_pos = np.ascontiguousarray(self._pos[:, : len(self)])
            self._struct.pos = ffi.from_buffer("llama_pos[]", self._dense_pos)
        return self._struct

    def _room_for(self, count: int) -> int:
        """The index of the next token, if count of them still fit."""
        index = len(self)
        if index + count > self.capacity:
            raise ValueError(
                f"the batch holds {index} of {self.capacity} tokens, {count} more do not fit: "
                "decode and clear() it first, or make it larger"
            )
        return index


def _is_number(value: int | ArrayLike) -> TypeGuard[int]:
    return hasattr(value, "__index__") and not isinstance(value, np.ndarray)


def _outputs(outputs: Outputs | ArrayLike, count: int) -> NDArray[np.int8]:
    if isinstance(outputs, str):
        if outputs not in ("last", "all", "none"):
            raise ValueError(f"outputs must be 'last', 'all', 'none' or bools, got {outputs!r}")
        wanted = np.full(count, outputs == "all", dtype=np.int8)
        if outputs == "last":
            wanted[-1:] = 1
        return wanted
    array = any_array("outputs", outputs)
    if array.shape != (count,) or array.dtype.kind != "b":
        raise ValueError(
            f"outputs must be 'last', 'all', 'none' or bools of shape ({count},), got {outputs!r}"
        )
    return array.astype(np.int8)
