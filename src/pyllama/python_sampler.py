"""Samplers written in Python, called from C."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np

from pyllama._native._binding import ffi, lib
from pyllama.candidates import _ROW, Candidates

if TYPE_CHECKING:
    from pyllama._native._binding import llama_token_data_array_p


class PythonSampler:
    """Base of samplers written in Python; ``Sampler.python`` makes a sampler of one.

    An exception in a method ends the call that led to it, such as ``SamplerChain.sample``, which
    raises it unchanged. A method must not use the chain that it is called from.
    """

    #: Shown by :attr:`Sampler.name`.
    name = "python"
    #: Whether :meth:`apply` selects a token.
    selects = False

    def apply(self, candidates: Candidates) -> Candidates:
        """The candidates that are left, with new logits if wanted; see ``Candidates``.

        There may be fewer of them, not more. If the sampler selects, one of them must be selected.
        """
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Note the token that was chosen."""

    def reset(self) -> None:
        """Forget what was accepted."""

    def clone(self) -> PythonSampler:
        """An independent copy, in the same state; a deep copy unless overridden."""
        return copy.deepcopy(self)


class _Function(PythonSampler):
    """A plain function, which has no state."""

    def __init__(self, function: Callable[[Candidates], Candidates]) -> None:
        self._function = function
        self.name = getattr(function, "__name__", "python")

    def apply(self, candidates: Candidates) -> Candidates:
        return self._function(candidates)

    def clone(self) -> PythonSampler:
        return self


# The samplers by the numbers that C knows, until it frees them.
_samplers: dict[int, PythonSampler] = {}
_numbers = itertools.count(1)
_raised = threading.local()


def register(sampler: PythonSampler | Callable[[Candidates], Candidates]) -> int:
    """The number by which C knows the sampler from now on.

    Raises:
        TypeError: it is neither a PythonSampler nor a function.
    """
    if not isinstance(sampler, PythonSampler):
        if not callable(sampler) or isinstance(sampler, type):
            raise TypeError(f"sampler must be a PythonSampler or a function, got {sampler!r}")
        sampler = _Function(sampler)
    number = next(_numbers)
    _samplers[number] = sampler
    return number


def registered(number: int) -> PythonSampler:
    return _samplers[number]


def raise_from_python() -> None:
    """Raise what a method raised during the call into C that just failed, if one did."""
    error = getattr(_raised, "error", None)
    if error is not None:
        del _raised.error
        raise error


def _keep_raised(_type: object, error: BaseException, _traceback: object) -> None:
    _raised.error = error


@ffi.def_extern(error=1, onerror=_keep_raised)
def pyllama_on_sampler_apply(number: int, array: llama_token_data_array_p) -> int:
    sampler = _samplers[number]
    size = array.size * _ROW.itemsize
    data = np.frombuffer(ffi.buffer(array.data, size), dtype=_ROW)
    left = sampler.apply(Candidates._of(data.copy(), None, bool(array.sorted)))
    _require_fitting(sampler, left, len(data))
    data[: len(left)] = left._data
    array.size = len(left)
    array.selected = -1 if left.selected is None else left.selected
    array.sorted = left._sorted
    return 0


@ffi.def_extern(error=1, onerror=_keep_raised)
def pyllama_on_sampler_accept(number: int, token: int) -> int:
    _samplers[number].accept(token)
    return 0


@ffi.def_extern(error=1, onerror=_keep_raised)
def pyllama_on_sampler_reset(number: int) -> int:
    _samplers[number].reset()
    return 0


@ffi.def_extern(error=0, onerror=_keep_raised)
def pyllama_on_sampler_clone(number: int) -> int:
    made = _samplers[number].clone()
    if not isinstance(made, PythonSampler):
        raise TypeError(f"clone() must return a PythonSampler, got {made!r}")
    return register(made)


@ffi.def_extern()
def pyllama_on_sampler_free(number: int) -> None:
    _samplers.pop(number, None)


def _require_fitting(sampler: PythonSampler, left: Candidates, size: int) -> None:
    if not isinstance(left, Candidates):
        raise TypeError(f"{sampler.name}: apply() must return Candidates, got {left!r}")
    if len(left) > size:
        raise ValueError(f"{sampler.name}: apply() made {len(left)} candidates out of {size}")
    if sampler.selects and left.selected is None:
        raise ValueError(f"{sampler.name}: apply() must select a candidate, since selects is True")
    if not sampler.selects and left.selected is not None:
        raise ValueError(f"{sampler.name}: apply() selected a candidate, but selects is False")


_CALLED_BY_C = {
    function.__code__
    for function in (
        pyllama_on_sampler_apply,
        pyllama_on_sampler_accept,
        pyllama_on_sampler_reset,
        pyllama_on_sampler_clone,
    )
}


def is_calling() -> bool:
    """Whether this thread is inside a sampler's method, and holds the locks of its user."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code not in _CALLED_BY_C:
        frame = frame.f_back
    return frame is not None


_handlers = ffi.new(
    "pyllama_sampler_handlers *",
    {
        name: ffi.addressof(lib, f"pyllama_on_sampler_{name}")
        for name in ("apply", "accept", "reset", "clone", "free")
    },
)
lib.pyllama_install_samplers(_handlers)
