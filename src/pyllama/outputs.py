"""The outputs of a context: logits and embeddings of its last encode or decode."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyllama._arguments import INT32_MAX, integer
from pyllama._guard import raise_caught, raise_if_caught
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.context_params import POOLING_NAMES, Pooling
from pyllama.errors import OutputsInUseError
from pyllama.model import Model

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_context

Floats = NDArray[np.float32]

T = TypeVar("T")


class ContextOutputs(NativeObject["Pointer[llama_context]"]):
    """What a ``Context`` computed last.

    There is an output for each entry of the batch that asked for one. With embeddings switched on,
    and after encode(), every entry has one. The next encode or decode replaces them, even if it
    fails.
    """

    model: Model
    #: Size of an embedding that goes in (:meth:`Batch.add_embeddings`).
    n_embd_inp: int
    #: Positions of an embedding that goes in: 4 with M-RoPE, otherwise 1.
    n_pos_per_embd: int
    #: Size of an embedding that comes out.
    n_embd_out: int
    #: Scores of a classifier, for ``pooling_type="rank"``.
    n_cls_out: int
    #: How embeddings are pooled; ``"none"`` leaves one for each token.
    pooling_type: Pooling

    def __init__(self) -> None:
        super().__init__()
        self._n_outputs = 0
        self._has_logits = False
        self._has_embeddings = False
        self._views: weakref.ref[_Views] | None = None

    def _describe_outputs(self, pointer: Pointer[llama_context]) -> None:
        """Read the sizes of a new context's inputs and outputs."""
        shape = ffi.new("pyllama_context_shape *")
        if lib.guarded_context_shape(pointer, shape):
            raise_caught("the sizes of a context")
        self.n_embd_inp = shape.n_embd_inp
        self.n_pos_per_embd = shape.n_pos_per_embd
        self.n_embd_out = shape.n_embd_out
        self.n_cls_out = shape.n_cls_out
        self.pooling_type = POOLING_NAMES[lib.llama_pooling_type(pointer)]

    @property
    def n_outputs(self) -> int:
        """How many outputs the last encode or decode gave."""
        return self._n_outputs

    def logits(self, index: int = -1, *, out: Floats | None = None) -> Floats:
        """The logits of one output, a copy of shape (n_vocab,) (``llama_get_logits_ith``).

        Args:
            index: the entry's index in the batch; negative counts outputs from the last.
            out: a float32 array of that shape to write into and return.

        Raises:
            IndexError: the batch asked for no output there.
        """
        index = integer("index", index, -INT32_MAX, INT32_MAX)
        with self._lock:
            pointer = self._open().pointer
            self._require(self._has_logits, "logits", index)
            row = lib.guarded_get_logits_ith(pointer, index)
            return self._copy(row, (self.model.vocab.n_tokens,), out, index)

    def all_logits(self, *, out: Floats | None = None) -> Floats:
        """The logits of all outputs, a copy of shape (n_outputs, n_vocab) (``llama_get_logits``).

        Args:
            out: a float32 array of that shape to write into and return.

        Raises:
            IndexError: there are no outputs.
        """
        with self._lock:
            shape = (self._n_outputs, self.model.vocab.n_tokens)
            return self._copy(self._all_logits(), shape, out)

    def logits_view(self) -> Floats:
        """The logits of all outputs as they lie in llama.cpp's memory, without a copy.

        While this array or one made from it by slicing is alive, encode() and decode() refuse to
        run, and closing leaves the memory in place. Take what you need and ``del`` it.

        Returns:
            a read-only array of shape (n_outputs, n_vocab).

        Raises:
            IndexError: there are no outputs.
        """
        with self._lock:
            pointer = self._all_logits()
            views = self._views() if self._views else None
            if views is None:
                shape = (self._n_outputs, self.model.vocab.n_tokens)
                address = int(ffi.cast("uintptr_t", pointer))
                views = _Views(self._open(), address, shape)
                self._views = weakref.ref(views)
            array: Floats = np.asarray(views)
            return array

    def embeddings(self, index: int = -1, *, out: Floats | None = None) -> Floats:
        """The embedding of one output, a copy of shape (n_embd_out,).

        ``llama_get_embeddings_ith``; for contexts whose ``pooling_type`` is ``"none"``.

        Args:
            index: as in ``logits``.
            out: a float32 array of that shape to write into and return.

        Raises:
            IndexError: there is none.
            ValueError: this context pools its embeddings.
        """
        index = integer("index", index, -INT32_MAX, INT32_MAX)
        with self._lock:
            pointer = self._open().pointer
            self._require_unpooled()
            self._require(self._has_embeddings, "embedding", index)
            row = lib.guarded_get_embeddings_ith(pointer, index)
            return self._copy(row, (self.n_embd_out,), out, index)

    def all_embeddings(self, *, out: Floats | None = None) -> Floats:
        """The embeddings of all outputs, a copy of shape (n_outputs, n_embd_out).

        ``llama_get_embeddings``; see ``embeddings``.
        """
        with self._lock:
            pointer = self._open().pointer
            self._require_unpooled()
            self._require(self._has_embeddings, "embeddings")
            rows = lib.guarded_get_embeddings(pointer)
            return self._copy(rows, (self._n_outputs, self.n_embd_out), out)

    def embeddings_seq(self, seq_id: int = 0, *, out: Floats | None = None) -> Floats:
        """The pooled embedding of a sequence, a copy (``llama_get_embeddings_seq``).

        Args:
            seq_id: a sequence of the last batch.
            out: a float32 array of that shape to write into and return.

        Returns:
            shape (n_embd_out,); with ``pooling_type="rank"`` the scores of a reranker or
            classifier, shape (n_cls_out,).

        Raises:
            IndexError: the last batch had no such sequence, or embeddings are off.
            ValueError: this context does not pool.
        """
        seq_id = integer("seq_id", seq_id, 0, INT32_MAX)
        with self._lock:
            pointer = self._open().pointer
            if self.pooling_type == "none":
                raise ValueError("pooling_type is 'none': read each token's with embeddings()")
            self._require(self._has_embeddings, "pooled embedding")
            row = lib.guarded_get_embeddings_seq(pointer, seq_id)
            if row == ffi.NULL:
                raise_if_caught("reading embeddings")
                raise IndexError(
                    f"seq_id {seq_id} has no embedding: the last batch did not hold it"
                )
            size = self.n_cls_out if self.pooling_type == "rank" else self.n_embd_out
            return self._copy(row, (size,), out)

    def _reading(self, read: Callable[[Pointer[llama_context]], T]) -> T:
        """Have C read the outputs, which are not replaced meanwhile."""
        with self._lock:
            result = read(self._open().pointer)
            if self._lost is not None:
                self._open()
            return result

    def close(self) -> None:
        """Free it, after waiting for a call of another thread.

        Its memory stays while arrays of ``logits_view`` are alive. Closing again does nothing.
        """
        with self._lock:
            if self._viewed():
                self._handle = None  # the views hold it
            super().close()

    def _forget_outputs(self) -> None:
        """Check before a call that overwrites them.

        Raises:
            OutputsInUseError: views of them are alive.
        """
        if self._viewed():
            raise OutputsInUseError(
                "arrays of logits_view() are alive: del them before the next encode or decode"
            )
        self._n_outputs = 0

    def _viewed(self) -> bool:
        if self._views is None:
            return False
        if self._views() is None:
            self._views = None
            return False
        return True

    def _all_logits(self) -> Pointer[float]:
        pointer = self._open().pointer
        self._require(self._has_logits, "logits")
        rows = lib.guarded_get_logits(pointer)
        if rows == ffi.NULL:
            raise_caught("reading logits")
        return rows

    def _copy(
        self,
        data: Pointer[float],
        shape: tuple[int, ...],
        out: Floats | None,
        index: int | None = None,
    ) -> Floats:
        if self._lost is not None:  # meanwhile
            self._open()
        if data == ffi.NULL:
            raise_if_caught("reading outputs")
            self._raise_no_output(index)
        size = math.prod(shape) * ffi.sizeof("float")
        values: Floats = np.frombuffer(ffi.buffer(data, size), dtype=np.float32)
        if len(shape) > 1:
            values = values.reshape(shape)
        if out is None:
            copied: Floats = values.copy()
            return copied
        if not isinstance(out, np.ndarray) or out.dtype != np.float32 or out.shape != shape:
            found = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else repr(out)
            raise ValueError(f"out must be a float32 array of shape {shape}, got {found}")
        if not out.flags.writeable:
            raise ValueError("out must be writeable")
        np.copyto(out, values)
        return out

    def _require(self, present: bool, what: str, index: int | None = None) -> None:
        if self._n_outputs == 0:
            self._raise_no_output(index, what)
        if not present:
            hint = "; make the context with embeddings=True" if what != "logits" else ""
            raise IndexError(f"the last call computed no {what}{hint}")

    def _require_unpooled(self) -> None:
        if self.pooling_type != "none":
            raise ValueError(
                f"pooling_type is {self.pooling_type!r}: read each sequence's with embeddings_seq()"
            )

    def _raise_no_output(self, index: int | None, what: str = "output") -> NoReturn:
        where = "" if index is None else f" at index {index}"
        raise IndexError(
            f"no {what}{where}: the last call gave no output there. Add the token with "
            "output=True (or outputs='all'), and read outputs before the next decode"
        )


class _Views:
    """The base of the arrays of logits_view(). It keeps their memory alive."""

    __slots__ = ("__array_interface__", "__weakref__", "_handle")

    def __init__(
        self, handle: Handle[Pointer[llama_context]], address: int, shape: tuple[int, int]
    ) -> None:
        self._handle = handle
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": shape,
            "typestr": np.dtype(np.float32).str,
        }
