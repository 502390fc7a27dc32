"""The common base of samplers and chains: one call at a time, and the errors of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from pyllama import _process
from pyllama._arguments import INT32_MAX, integer
from pyllama._guard import CAUGHT
from pyllama._handle import P
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.candidates import Candidates
from pyllama.errors import GrammarError, LlamaError, SamplingError
from pyllama.python_sampler import raise_from_python
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, llama_token_data_array

A = ParamSpec("A")
Q = TypeVar("Q")

_REFUSALS: dict[int, tuple[type[LlamaError], str]] = {
    lib.PYLLAMA_NO_CANDIDATE: (SamplingError, "the samplers left no candidate to choose"),
    lib.PYLLAMA_BAD_LOGITS: (SamplingError, "the logits are NaN or infinite"),
    lib.PYLLAMA_TOKEN_REFUSED: (GrammarError, "the grammar does not let this token follow"),
    lib.PYLLAMA_GRAMMAR_STUCK: (SamplingError, "no token of the vocabulary follows the grammar"),
}


def refusal(code: int, what: str) -> LlamaError:
    """Why a chain gave no token, by its pyllama_refusal."""
    kind, reason = _REFUSALS[code]
    return kind(f"{what}: {reason}")


class SamplerObject(NativeObject[P]):
    """A C object that may call back into Python while it works."""

    _running = False
    #: The model's that it is for; None if any will do.
    _vocab: Vocab | None = None
    _instead_of_copying = "clone() gives one of your own in the same state"

    def _run(self, what: str, call: Callable[A, int], *arguments: A.args, **named: A.kwargs) -> int:
        """Call C, and return its code or raise what was raised in it. The lock is held."""
        self._require_idle()
        self._running = True
        try:
            code = call(*arguments, **named)
        finally:
            self._running = False
        if code == CAUGHT:
            raise_from_python()
        elif code in _REFUSALS:
            raise refusal(code, what)
        return self._check(code, what)

    def _run_apply(
        self,
        call: Callable[[Q, Pointer[llama_token_data_array]], int],
        pointer: Q,
        candidates: Candidates,
    ) -> Candidates:
        if not isinstance(candidates, Candidates):
            raise TypeError(f"candidates must be pyllama.Candidates, got {candidates!r}")
        data = candidates._data.copy()
        array = ffi.new("llama_token_data_array *")
        array.data = ffi.cast("llama_token_data *", ffi.from_buffer(data))
        array.size, array.selected, array.sorted = len(data), -1, candidates._sorted
        self._run("applying a sampler", call, pointer, array)
        selected = None if array.selected < 0 else int(array.selected)
        return Candidates._of(np.array(data[: array.size]), selected, bool(array.sorted))

    def _known_token(self, token: int) -> int:
        """A token that can be accepted."""
        return integer("token", token, 0, self._vocab.n_tokens - 1 if self._vocab else INT32_MAX)

    def _require_known(self, candidates: Candidates) -> None:
        if self._vocab is not None and isinstance(candidates, Candidates):
            highest = int(candidates.id.max())
            if highest >= self._vocab.n_tokens:
                raise ValueError(f"candidates must be tokens of {self._vocab!r}, got {highest}")

    def _require_idle(self) -> None:
        if self._running:
            raise RuntimeError(
                f"this {type(self).__name__} is at work: a sampler written in Python must neither "
                "use nor close the chain that it is in"
            )

    def close(self) -> None:
        if _process.ended:
            return
        with self._lock:
            self._require_idle()
            super().close()
