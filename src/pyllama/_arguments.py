"""Checks arguments before llama.cpp sees them. Each error names the argument and its value."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
#: llama.cpp computes the position after it, and its distance from an empty cell's, which is -1.
MAX_POS = INT32_MAX - 1


def integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """The value as an int between low and high, both inclusive."""
    if type(value) is int and low <= value <= high:  # first: this runs for every token
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {number}")
    return number


def real(name: str, value: float, low: float, high: float) -> float:
    """The value as a finite float between low and high, both inclusive."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except TypeError:  # an array of several
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{name} must be a number between {low} and {high}, got {value!r}")
    return number


def choice(name: str, value: str, choices: Mapping[str, Any]) -> Any:
    """Return the entry of `choices` for the value."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        allowed = ", ".join(repr(key) for key in choices)
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}") from None


def any_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """The values as an array of any type."""
    try:
        return np.asarray(values)
    except ValueError:  # lists of different lengths
        raise TypeError(f"{name} must be an array, got {values!r}") from None


def int32_array(name: str, values: ArrayLike, most: int = INT32_MAX) -> NDArray[np.int32]:
    """The values as an int32 array of any shape, if they are integers from 0 to ``most``."""
    array = any_array(name, values)
    if not array.size:
        return array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {array.dtype} {array.shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > most:
        raise ValueError(f"{name} must be from 0 to {most}, got {low if low < 0 else high}")
    return array.astype(np.int32, copy=False)


def token_array(tokens: ArrayLike) -> NDArray[np.int32]:
    """The token ids as an int32 array of shape (n,)."""
    array = int32_array("tokens", tokens)
    if array.ndim != 1:
        raise TypeError(f"tokens must be integers of shape (n,), got {array.dtype} {array.shape}")
    return array
