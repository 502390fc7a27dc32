"""The settings of one model: what applies if a request sets nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from adapter.errors import ConfigurationError, InvalidParameterError
from adapter.generation.request import Execution
from adapter.generation.sampling import Count, Sampling
from adapter.generation.settings import (
    Setting,
    Text,
    Words,
    check_all,
    documented,
    is_text,
    only_if,
    setting,
    settings_of,
)
from adapter.models.template_variables import ALLOWED, SETTING, are_template_variables, copied

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SEED = 2**32 - 2
"""The largest seed. llama.cpp reserves 2**32 - 1 for "draw one"."""

Seed = Annotated[int, Ge(0), Le(MAX_SEED)]
Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Seconds = Annotated[float, Gt(0)]
Texts = Annotated[
    tuple[str, ...],
    only_if(lambda value: isinstance(value, (tuple, list)) and all(map(is_text, value))),
    Words("a tuple of non-empty strings"),
]
Variables = Annotated[Mapping[str, Any], only_if(are_template_variables), Words(ALLOWED)]

_openai, _llamacpp = partial(setting, call="openai"), partial(setting, call="llamacpp")
_indifferent = partial(setting, in_name="never")


@documented
@dataclass(frozen=True, kw_only=True)
class LlamaCppConfig(Sampling):
    """The settings of a model, for requests that set nothing else.

    All settings except the model's name are keyword arguments. ``docs/reference/settings.md`` lists
    them. The defaults of the samplers are llama.cpp's own.

    Raises:
        InvalidParameterError: a value outside its range.
    """

    model_name: Text = field(
        kw_only=False, metadata=_indifferent(None, "the model's name in its ModelPool").metadata
    )
    max_tokens: Positive | None = _openai(
        512,
        "tokens that an answer may have, None or -1 = as many as fit the context",
        in_name="always",
        minus_one=None,
    )
    context_length: Annotated[int, Ge(2)] | None = setting(
        None,
        "tokens that a prompt and its answer may have together, None = as many as the model was "
        "loaded for",
        in_name="always",
    )
    seed: Seed | None = _openai(
        None,
        "None or -1 draws one for each call. The n candidates of a call, and the rollouts of "
        "BestOfN and Refine, have seeds of their own, which follow from it",
        in_name="always",
        minus_one=None,
    )
    stop: Texts = _openai((), "texts that end an answer", in_name="always")
    complete_answers: bool = _llamacpp(
        True,
        "complete an answer that follows a grammar within max_tokens, by ending its texts and "
        "lists in time, and refuse max_tokens that can hold no answer; False lets max_tokens cut "
        "it off",
        in_name="always",
    )
    end_repetitions: bool = _llamacpp(
        False,
        "end a text whose line repeats itself, at least 8 times and for 64 tokens, if the answer "
        "follows a grammar and is to be completed. LlamaCppAdapter switches it on",
    )
    chat_template_kwargs: Variables = _llamacpp(
        dict,
        'variables for the model\'s chat template, such as {"enable_thinking": False} or '
        '{"reasoning_effort": "low"}; those of a request take precedence',
        in_name="always",
    )
    token_budget_limit: Positive | None = setting(
        None,
        "tokens that all requests together may take, prompts and answers, None = any number. A "
        "request that fails or is cancelled is charged for what was computed of it",
        in_name="always",
    )
    requests_per_minute: Positive | None = _indifferent(
        None,
        "beyond this number a request raises an error, and DSPy waits and tries again. None = any "
        "number. A request that is refused before any work does not count",
    )
    timeout_secs: Seconds | None = _indifferent(
        None,
        "seconds that a request may take, its wait for others included, None = any time. DSPy "
        "tries again after the error",
    )
    max_retries: Natural = _indifferent(
        3, "how often DSPy tries again after an error that is only temporary"
    )
    initial_backoff_ms: Natural = _indifferent(
        100, "milliseconds that DSPy waits at least before it tries again"
    )
    max_backoff_ms: Natural = _indifferent(
        60_000, "milliseconds that DSPy waits at most, at least initial_backoff_ms"
    )
    enable_cache: bool = _indifferent(True, "let DSPy answer a repeated call from its cache")
    cache_ttl_secs: Seconds | None = _indifferent(
        None, "how old such an answer may be, None = any age"
    )
    enable_streaming: bool = _indifferent(True, "let DSPy stream answers")
    execution: Execution = setting(
        "batched",
        '"batched" computes requests together and shares what their prompts have in common, '
        '"isolated" computes one at a time, in a context of its own',
        in_name="always",
    )

    def __post_init__(self) -> None:
        check_all(self)
        if self.max_backoff_ms < self.initial_backoff_ms:
            raise InvalidParameterError(
                "max_backoff_ms",
                self.max_backoff_ms,
                f"at least initial_backoff_ms, {self.initial_backoff_ms}",
            )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        object.__setattr__(self, SETTING, copied(self.chat_template_kwargs))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> LlamaCppConfig:
        """Make a config from the fields in a mapping.

        Raises:
            InvalidParameterError: a key that is no field, or a value outside its range.
            ConfigurationError: there is no model_name.
        """
        names = sorted(settings_of(cls), key="model_name".__ne__)
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
        """Make a config from the keys in a TOML file, or in one of its tables, such as
        ``"models.small"``.

        Raises:
            ConfigurationError: the file is not valid TOML, or has no such table.
            OSError: the file cannot be read.
            InvalidParameterError: as ``from_dict``.
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


@dataclass(frozen=True, kw_only=True)
class CallSettings(LlamaCppConfig):
    """The settings of one call: the config's, those that the call sets, and those that only calls
    have.
    """

    grammar: Annotated[str, only_if(is_text), Words("a grammar in GBNF")] | None = _llamacpp(
        None, "a grammar in GBNF that the answer follows"
    )
    reasoning_budget_tokens: Count | None = _llamacpp(
        None, "tokens that the model may reason for before it answers"
    )
    logprobs: Natural | None = _openai(
        None, "likeliest tokens to report beside each sampled one, with log-probabilities"
    )
    response_format: Annotated[Any, Words("as OpenAI's API has it")] = _openai(
        None, "JSON, or the JSON Schema that the answer follows"
    )
    reasoning_effort: Annotated[Any, Words("as OpenAI's API has it")] = _openai(
        None, "how long the model thinks, where its template has levels"
    )

    @cached_property
    def sampling(self) -> Sampling:
        """The sampler settings."""
        return Sampling(**{name: getattr(self, name) for name in settings_of(Sampling)})


SETTINGS: Mapping[str, Setting] = settings_of(CallSettings)
"""All settings, by name."""

OPENAI_SETTINGS = frozenset(name for name, each in SETTINGS.items() if each.call == "openai")
"""What DSPy's own parameters set."""

LLAMACPP_SETTINGS = tuple(name for name, each in SETTINGS.items() if each.call == "llamacpp")
"""What metadata={"llamacpp": {...}} may hold: settings of llama.cpp's server that DSPy lacks."""
