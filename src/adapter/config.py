"""The settings of one model: how it answers when a request says nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from adapter.errors import InvalidParameterError

MAX_SEED = 2**32 - 2
"""The largest seed. llama.cpp keeps 2**32 - 1 for "draw one"."""


@dataclass(frozen=True)
class LlamaCppConfig:
    """How a loaded model answers. The sampling defaults are llama.cpp's own.

    model_name      the model's name in its ModelPool
    max_tokens      at least 1; tokens an answer may have
    temperature     0 to 2; 0 takes the likeliest token
    top_p           0 to 1; 1 = off
    top_k           at least 0; 0 = off
    min_p           0 to 1; 0 = off
    repeat_penalty  above 0, at most 2; 1 = off
    context_length  at least 2; tokens a prompt and its answer may have together, None = as many
                    as the model was loaded for
    seed            0 to 2**32 - 2; None draws one for each call. A fixed seed makes the n
                    candidates of a call one and the same, and the rollouts of BestOfN and Refine
    stop            texts that end an answer

    Raises InvalidParameterError for a value outside its range.
    """

    model_name: str
    max_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    context_length: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            fits, allowed = _RANGES[field.name]
            if not fits(value):
                raise InvalidParameterError(field.name, value, allowed)
        object.__setattr__(self, "stop", tuple(self.stop))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_name": (_is_text, "a non-empty string"),
    "max_tokens": (lambda v: _is_integer(v) and v >= 1, "an integer of at least 1"),
    "temperature": (lambda v: _is_number(v) and 0 <= v <= 2, "a number from 0 to 2"),
    "top_p": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "top_k": (lambda v: _is_integer(v) and v >= 0, "an integer of at least 0 (0 = off)"),
    "min_p": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "repeat_penalty": (lambda v: _is_number(v) and 0 < v <= 2, "a number above 0 and up to 2"),
    "context_length": (
        lambda v: v is None or (_is_integer(v) and v >= 2),
        "an integer of at least 2, or None",
    ),
    "seed": (
        lambda v: v is None or (_is_integer(v) and 0 <= v <= MAX_SEED),
        f"an integer from 0 to {MAX_SEED}, or None",
    ),
    "stop": (
        lambda v: isinstance(v, (tuple, list)) and all(map(_is_text, v)),
        "a tuple of non-empty strings",
    ),
}
