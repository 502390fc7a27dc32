"""The settings of one model: how it answers when a request says nothing else."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from adapter.errors import ConfigurationError, InvalidParameterError
from adapter.generation.request import Execution
from adapter.models.template_variables import ALLOWED, SETTING, are_template_variables, copied

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SEED = 2**32 - 2
"""The largest seed. llama.cpp keeps 2**32 - 1 for "draw one"."""


@dataclass(frozen=True)
class LlamaCppConfig:
    """How a loaded model answers. The sampling defaults are llama.cpp's own.

    model_name          the model's name in its ModelPool
    max_tokens          at least 1; tokens an answer may have, None or -1 = as many as the context
                        has room for
    temperature         0 to 2; 0 takes the likeliest token
    top_p               0 to 1; 1 = off
    top_k               0 to 2**31 - 1; 0 or -1 = off
    min_p               0 to 1; 0 = off
    repeat_penalty      above 0, at most 2; 1 = off
    context_length      at least 2; tokens a prompt and its answer may have together, None = as
                        many as the model was loaded for
    seed                0 to 2**32 - 2; None or -1 draws one for each call. The n candidates of a
                        call, and the rollouts of BestOfN and Refine, each have one that follows
                        from it
    stop                texts that end an answer
    complete_answers    complete an answer that has a form within max_tokens, by ending its texts
                        and lists in time, and refuse max_tokens that hold no answer; False lets
                        max_tokens cut it off
    chat_template_kwargs  variables for the model's chat template, such as {"enable_thinking":
                        False} or {"reasoning_effort": "low"}; those of a request come before them
    token_budget_limit  at least 1; tokens that all requests together may take, prompts and
                        answers, None = any number. A request that fails, or is given up, is
                        charged for what was computed of it
    requests_per_minute at least 1; more raise an error that DSPy waits and retries after, None =
                        any number. A request that is refused before any work does not count
    timeout_secs        above 0; how long a request may take, its wait for others included, None =
                        any time. DSPy tries again after the error
    max_retries         at least 0; how often DSPy tries again after an error that may pass
    initial_backoff_ms  at least 0; the least that it waits before
    max_backoff_ms      at least initial_backoff_ms; the most that it waits
    enable_cache        let DSPy answer a repeated call from its cache
    cache_ttl_secs      above 0; how old such an answer may be, None = any age
    enable_streaming    let DSPy stream answers
    execution           "batched" computes requests together and shares what their prompts have in
                        common, "isolated" computes one at a time, in a context of its own

    Raises InvalidParameterError for a value outside its range.
    """

    model_name: str
    max_tokens: int | None = 512
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    context_length: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    complete_answers: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    token_budget_limit: int | None = None
    requests_per_minute: int | None = None
    timeout_secs: float | None = None
    max_retries: int = 3
    initial_backoff_ms: int = 100
    max_backoff_ms: int = 60_000
    enable_cache: bool = True
    cache_ttl_secs: float | None = None
    enable_streaming: bool = True
    execution: Execution = "batched"

    def __post_init__(self) -> None:
        for name, meant in _MINUS_ONE.items():
            if is_integer(getattr(self, name)) and getattr(self, name) == -1:
                object.__setattr__(self, name, meant)
        for each in fields(self):
            value = getattr(self, each.name)
            fits, allowed = _RANGES[each.name]
            if not fits(value):
                raise InvalidParameterError(each.name, value, allowed)
        if self.max_backoff_ms < self.initial_backoff_ms:
            raise InvalidParameterError(
                "max_backoff_ms",
                self.max_backoff_ms,
                f"at least initial_backoff_ms, {self.initial_backoff_ms}",
            )
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, SETTING, copied(self.chat_template_kwargs))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> LlamaCppConfig:
        """A config of the fields in a mapping.

        Raises InvalidParameterError for a key that is no field or a value outside its range, and
        ConfigurationError when there is no model_name.
        """
        names = [each.name for each in fields(cls)]
        for name, value in settings.items():
            if name not in names:
                near = get_close_matches(str(name), names, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise InvalidParameterError(str(name), value, f"one of {', '.join(names)}{hint}")
        if "model_name" not in settings:
            raise ConfigurationError("a config needs model_name, the model's name in its pool")
        return cls(**settings)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], table: str = "") -> LlamaCppConfig:
        """A config of the keys in a TOML file, or of one table in it, such as ``"models.small"``.

        Raises ConfigurationError for a file that is no TOML or has no such table, and what
        ``from_dict`` raises; OSError for a file that cannot be read.
        """
        try:
            found: Any = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is no TOML file: {error}") from error
        for key in filter(None, table.split(".")):
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise ConfigurationError(f"{path} has no table {table!r}")
        return cls.from_dict(found)


def is_integer(value: Any) -> bool:
    """Whether a value is an int, which True and False are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is an int or float that a float can hold, and not infinite."""
    try:
        return (is_integer(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_MINUS_ONE: dict[str, int | None] = {"seed": None, "max_tokens": None, "top_k": 0}
"""What -1 means in llama.cpp's own settings."""

MAX_TOP_K = 2**31 - 1

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_name": (_is_text, "a non-empty string"),
    "max_tokens": (
        lambda v: v is None or (is_integer(v) and v >= 1),
        "an integer of at least 1, or None",
    ),
    "temperature": (lambda v: is_number(v) and 0 <= v <= 2, "a number from 0 to 2"),
    "top_p": (lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "top_k": (
        lambda v: is_integer(v) and 0 <= v <= MAX_TOP_K,
        f"an integer from 0 to {MAX_TOP_K} (0 = off)",
    ),
    "min_p": (lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "repeat_penalty": (lambda v: is_number(v) and 0 < v <= 2, "a number above 0 and up to 2"),
    "context_length": (
        lambda v: v is None or (is_integer(v) and v >= 2),
        "an integer of at least 2, or None",
    ),
    "seed": (
        lambda v: v is None or (is_integer(v) and 0 <= v <= MAX_SEED),
        f"an integer from 0 to {MAX_SEED}, or None",
    ),
    "stop": (
        lambda v: isinstance(v, (tuple, list)) and all(map(_is_text, v)),
        "a tuple of non-empty strings",
    ),
    SETTING: (are_template_variables, ALLOWED),
    "token_budget_limit": (
        lambda v: v is None or (is_integer(v) and v >= 1),
        "an integer of at least 1, or None",
    ),
    "requests_per_minute": (
        lambda v: v is None or (is_integer(v) and v >= 1),
        "an integer of at least 1, or None",
    ),
    "timeout_secs": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number above 0, or None",
    ),
    "max_retries": (lambda v: is_integer(v) and v >= 0, "an integer of at least 0"),
    "initial_backoff_ms": (lambda v: is_integer(v) and v >= 0, "an integer of at least 0"),
    "max_backoff_ms": (lambda v: is_integer(v) and v >= 0, "an integer of at least 0"),
    "complete_answers": (lambda v: isinstance(v, bool), "True or False"),
    "enable_cache": (lambda v: isinstance(v, bool), "True or False"),
    "cache_ttl_secs": (
        lambda v: v is None or (is_number(v) and v > 0),
        "a number above 0, or None",
    ),
    "enable_streaming": (lambda v: isinstance(v, bool), "True or False"),
    "execution": (lambda v: v in get_args(Execution), "'batched' or 'isolated'"),
}
