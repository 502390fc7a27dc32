"""What one request asks of the sampler, read from its lm15 Config.

Every field of Config ends in one of three ways: it is honoured, it is answered with an Adaptation
on the response, or it is refused with an lm15 error.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from dspy.lm15 import Adaptation, Config, Request, UnsupportedFeatureError

from adapter.engine.config import MAX_SEED, LlamaCppConfig, is_integer, is_number
from adapter.engine.rollouts import current_rollout
from adapter.errors import InvalidParameterError
from adapter.generation.sampling import Sampling
from adapter.models.template_variables import ALLOWED, SETTING, are_template_variables


@dataclass(frozen=True)
class CallSettings:
    """How one completion is sampled, and what was changed from what was asked.

    max_tokens is None for as many as there is room for. grammar is GBNF, logprobs the number of
    likeliest tokens to tell, both None if not asked for.
    """

    max_tokens: int | None
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    grammar: str | None
    logprobs: int | None
    complete_answers: bool
    adaptations: tuple[Adaptation, ...]


def call_settings(request: Request, defaults: LlamaCppConfig, n_vocab: int) -> CallSettings:
    """Read a request's Config, unset fields from `defaults`. Without a seed, draw one.

    A seed that is given is that of the call: each of its candidates and rollouts has one of its
    own, which follows from it.

    `n_vocab` is the number of tokens that the model knows.

    Raises InvalidParameterError for a value out of range or an unknown llama.cpp setting, and
    lm15's UnsupportedFeatureError for what this engine cannot do.
    """
    _refuse_unsupported(request)
    config = request.config
    asked: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")
        if getattr(config, name) is not None
    }
    if config.stop:
        asked["stop"] = config.stop
    llamacpp = _llamacpp_settings(config)
    grammar = llamacpp.pop("grammar", None)
    llamacpp.pop("reasoning_budget_tokens", None)  # adapter.engine.thinking sees to it
    llamacpp.pop(SETTING, None)  # adapter.engine.template_options does
    for name in ("min_p", "repeat_penalty", "complete_answers"):
        if name in llamacpp:
            asked[name] = llamacpp.pop(name)
    settings = replace(defaults, **asked)
    sampling = Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repeat_penalty=settings.repeat_penalty,
        frequency_penalty=config.frequency_penalty or 0.0,
        presence_penalty=config.presence_penalty or 0.0,
        logit_bias=_logit_bias(config, n_vocab),
        **llamacpp,
    )
    if config.logprobs is not None and config.logprobs > n_vocab:
        raise InvalidParameterError(
            "logprobs", config.logprobs, f"at most {n_vocab}, the tokens that the model knows"
        )
    return CallSettings(
        max_tokens=settings.max_tokens,
        sampling=sampling,
        seed=_seed(settings.seed),
        stop=settings.stop,
        grammar=grammar,
        logprobs=config.logprobs,
        complete_answers=settings.complete_answers,
        adaptations=tuple(_adaptations(request)),
    )


def _seed(seed: int | None) -> int:
    return secrets.randbelow(MAX_SEED + 1) if seed is None else current_rollout().seed(seed)


MAX_ALTERNATIVES = 500_000
"""Likeliest tokens that one answer may tell of. As an object of lm15 each takes some 130 bytes and
10 µs to make."""


def require_tellable(logprobs: int, max_tokens: int | None, room: int) -> None:
    """Refuse to tell of more likely tokens than an answer can carry, before anything is computed.

    Args:
        room: the most tokens that the answer can have in the context.

    Raises InvalidParameterError.
    """
    longest = room if max_tokens is None else min(max_tokens, room)
    if logprobs * longest > MAX_ALTERNATIVES:
        raise InvalidParameterError(
            "logprobs",
            logprobs,
            f"at most {MAX_ALTERNATIVES // longest} where an answer may have {longest} tokens: "
            f"one answer can tell of {MAX_ALTERNATIVES} likely tokens; ask for fewer, or for a "
            "smaller max_tokens",
        )


def _llamacpp_settings(config: Config) -> dict[str, Any]:
    """The settings in metadata={"llamacpp": {...}}, checked."""
    settings = _metadata(config).get("llamacpp", {})
    known = ", ".join(LLAMACPP_SETTINGS)
    if not isinstance(settings, dict):
        raise InvalidParameterError("metadata['llamacpp']", settings, f"a dict of {known}")
    checked = {}
    for name, value in settings.items():
        where = f"metadata['llamacpp'][{name!r}]"
        if name not in LLAMACPP_SETTINGS:
            raise InvalidParameterError(where, value, f"one of {known}")
        fits, allowed = LLAMACPP_SETTINGS[name]
        if not fits(value):
            raise InvalidParameterError(where, value, allowed)
        checked[name] = tuple(value) if isinstance(value, list) else value
    return checked


def _logit_bias(config: Config, n_vocab: int) -> Mapping[int, float]:
    """What OpenAI's field of this name says: numbers by token, from -100 to 100."""
    asked = (config.extensions or {}).get("logit_bias") or {}
    allowed = f"a dict of tokens from 0 to {n_vocab - 1} and numbers from -100 to 100"
    if not isinstance(asked, dict):
        raise InvalidParameterError("logit_bias", asked, allowed)
    biases = {}
    for key, bias in asked.items():
        try:
            token = int(key)  # JSON has no other keys than strings
        except (TypeError, ValueError, OverflowError):
            token = -1
        if not 0 <= token < n_vocab or not _is_between(-100, 100)(bias):
            raise InvalidParameterError("logit_bias", {key: bias}, allowed)
        biases[token] = float(bias)
    return biases


def _is_between(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return is_number(value) and low <= value <= high

    return fits


def _is_count(value: Any) -> bool:
    return is_integer(value) and 0 <= value <= MAX_LAST_N


def _are_breakers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(text, str) and 0 < len(text.encode("utf-8", "replace")) <= 40 for text in value
    )


MAX_LAST_N = 2**24
"""Tokens that a sampler can look back on; it allocates as many at once."""

_Range: TypeAlias = tuple[Callable[[Any], bool], str]
_FRACTION: _Range = (_is_between(0, 1), "a number from 0 to 1")
_FACTOR: _Range = (_is_between(0, 1000), "a number from 0 to 1000")
_COUNT: _Range = (_is_count, f"an integer from 0 to {MAX_LAST_N}")

LLAMACPP_SETTINGS: dict[str, _Range] = {
    "min_p": _FRACTION,
    "typical_p": _FRACTION,
    "top_n_sigma": _FACTOR,
    "xtc_probability": _FRACTION,
    "xtc_threshold": _FRACTION,
    "dynatemp_range": (_is_between(0, 2), "a number from 0 to 2"),
    "dynatemp_exponent": _FACTOR,
    "mirostat": (lambda v: _is_count(v) and v <= 2, "0, 1 or 2"),
    "mirostat_tau": _FACTOR,
    "mirostat_eta": _FACTOR,
    "repeat_penalty": (lambda v: _is_between(0, 2)(v) and v > 0, "a number above 0 and up to 2"),
    "repeat_last_n": _COUNT,
    "dry_multiplier": _FACTOR,
    "dry_base": (_is_between(1, 1000), "a number from 1 to 1000"),
    "dry_allowed_length": _COUNT,
    "dry_penalty_last_n": _COUNT,
    "dry_sequence_breakers": (_are_breakers, "a list of texts of 1 to 40 bytes"),
    "reasoning_budget_tokens": _COUNT,
    SETTING: (are_template_variables, ALLOWED),
    "complete_answers": (lambda v: isinstance(v, bool), "True or False"),
    "grammar": (lambda v: isinstance(v, str) and v != "", "a grammar in GBNF"),
}
"""What metadata={"llamacpp": {...}} may hold: what llama.cpp's server has and lm15 has not."""


def _metadata(config: Config) -> dict[str, Any]:
    metadata = (config.extensions or {}).get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidParameterError("metadata", metadata, "a dict")
    return metadata


def _refuse_unsupported(request: Request) -> None:
    """Refuse what would change the meaning of the answer if it were left out."""
    config = request.config
    unsupported = {
        "config.cache.resource": config.cache and config.cache.resource is not None,
        **{
            f"config.extensions.{name}": True
            for name in config.extensions or {}
            if name not in ("metadata", "logit_bias")
        },
    }
    for feature, asked in unsupported.items():
        if asked:
            name = feature.rpartition(".")[2]
            instead = "leave it out"
            if name in LLAMACPP_SETTINGS:
                instead = f'give it as metadata={{"llamacpp": {{{name!r}: …}}}}'
            raise UnsupportedFeatureError(
                f"{feature} is not supported by the llama.cpp engine; {instead}", feature=feature
            )


def _adaptations(request: Request) -> list[Adaptation]:
    """Record the hints that have no effect here."""
    config = request.config
    adaptations = []

    def dropped(field: str, asked: object, reason: str) -> None:
        if asked is not None:
            adaptations.append(Adaptation(field, "dropped", reason, asked=asked))

    def satisfied(field: str, asked: object, reason: str) -> None:
        adaptations.append(Adaptation(field, "satisfied", reason, asked=asked))

    choice = config.tool_choice
    if choice is not None and choice.mode == "none" and request.tools:
        dropped("tools", [tool.name for tool in request.tools], "tool_choice asks for no tools")
    if choice is not None and (choice.mode == "none" or not request.tools):
        satisfied("config.tool_choice", choice.mode, "the model is shown no tools")
    if config.probabilities == "off":
        satisfied("config.probabilities", "off", "none are measured")
    if config.cache is not None:
        dropped("config.cache", config.cache.mode, "there is no provider that caches prompts")
    if config.store is False:
        satisfied("config.store", False, "nothing leaves this process")
    else:
        dropped("config.store", config.store, "there is no provider that stores responses")
    dropped("config.service_tier", config.service_tier, "there is no provider with service tiers")
    dropped("config.user_id", config.user_id, "there is no provider to tell")
    tags = {name: value for name, value in _metadata(config).items() if name != "llamacpp"}
    dropped("config.extensions.metadata", tags or None, "there is no provider to tell")
    return adaptations
