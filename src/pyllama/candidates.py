"""Candidates: tokens with their logits, as samplers see them (llama_token_data_array)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllama._arguments import INT32_MAX, any_array, integer
from pyllama._half_made import or_half_made

# llama_token_data.
_ROW = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """The tokens that may come next. The object is immutable; samplers make new ones from it.

    Args:
        logits: float array of shape (n,), n at least 1; minus infinity excludes a token.
        ids: the tokens they belong to, integers of shape (n,); None for 0 to n - 1, so that
            ``Context.logits`` can be given as it is.

    Raises:
        ValueError: no candidate, a logit that is NaN or plus infinity, or a negative id.
        TypeError: arrays of another shape or type.
    """

    __slots__ = ("_data", "_sorted", "selected")

    #: Index of the candidate that was selected, or None.
    selected: int | None

    def __init__(self, logits: ArrayLike, ids: ArrayLike | None = None) -> None:
        values = _numbers("logits", logits, "fiu")
        tokens = np.arange(len(values)) if ids is None else _numbers("ids", ids, "iu")
        if len(tokens) != len(values):
            raise ValueError(f"ids must hold one for each logit, got {len(tokens)}, {len(values)}")
        if tokens.min() < 0 or tokens.max() > INT32_MAX:
            raise ValueError(f"ids must be 0 or more, got {tokens.min()} to {tokens.max()}")
        data = np.zeros(len(values), dtype=_ROW)
        data["id"] = tokens
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            data["logit"] = values
        self._set(data, None, False)
        self._require_usable()

    @property
    def id(self) -> NDArray[np.int32]:
        """The tokens, int32 of shape (n,), read-only."""
        ids: NDArray[np.int32] = self._data["id"]
        return ids

    @property
    def logit(self) -> NDArray[np.float32]:
        """Their logits, float32 of shape (n,), read-only."""
        logits: NDArray[np.float32] = self._data["logit"]
        return logits

    @property
    def p(self) -> NDArray[np.float32]:
        """Their probabilities, float32 of shape (n,), read-only.

        The last sampler that needed probabilities computed them; before the first they are 0.
        """
        p: NDArray[np.float32] = self._data["p"]
        return p

    @property
    def token(self) -> int | None:
        """The token that was selected, or None."""
        return None if self.selected is None else int(self._data["id"][self.selected])

    def with_logits(self, logits: ArrayLike) -> Candidates:
        """The same tokens with other logits, an array of shape (n,)."""
        values = any_array("logits", logits)
        if values.shape != (len(self),):
            raise ValueError(f"logits must be of shape ({len(self)},), got {values.shape}")
        return Candidates(values, self.id)

    def keep(self, which: ArrayLike) -> Candidates:
        """Some of them.

        Args:
            which: bool array of shape (n,), or their indices.

        Raises:
            ValueError: none would be left.
        """
        chosen = any_array("which", which)
        if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
            raise TypeError(f"which must be bool or integers of shape (k,), got {which!r}")
        data = self._data[chosen]
        if not len(data):
            raise ValueError("which must leave a candidate, got none")
        return self._of(data, None, False)

    def select(self, index: int) -> Candidates:
        """The same, with the candidate at the index selected."""
        return self._of(self._data, integer("index", index, 0, len(self) - 1), self._sorted)

    def __len__(self) -> int:
        return len(self._data)

    @or_half_made
    def __repr__(self) -> str:
        chosen = "" if self.selected is None else f", token {self.token} selected"
        return f"<pyllama.Candidates: {len(self)}{chosen}>"

    @classmethod
    def _of(cls, data: NDArray[Any], selected: int | None, is_sorted: bool) -> Candidates:
        candidates = cls.__new__(cls)
        candidates._set(data, selected, is_sorted)
        return candidates

    def _set(self, data: NDArray[Any], selected: int | None, is_sorted: bool) -> None:
        data.flags.writeable = False
        self._data = data
        self._sorted = is_sorted  # by logit, best first, as llama.cpp left them
        self.selected = selected

    def _require_usable(self) -> None:
        # Also false for NaN.
        if not (self.logit < np.inf).all():
            raise ValueError("logits must be less than infinity, got one that is not, or NaN")


def _numbers(name: str, values: ArrayLike, kinds: str) -> NDArray[Any]:
    array = any_array(name, values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise TypeError(f"{name} must be numbers of shape (n,), got {array.dtype} {array.shape}")
    if not array.size:
        raise ValueError(f"{name} must hold at least one, got none")
    return array
