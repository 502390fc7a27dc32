"""What one request asks of the sampler, read from its lm15 Config.

Every field of Config ends in one of three ways: it is honoured, it is answered with an Adaptation
on the response, or it is refused with an lm15 error.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from dspy.lm15 import Adaptation, Config, Request, UnsupportedFeatureError

from adapter.config import MAX_SEED, LlamaCppConfig
from adapter.errors import InvalidParameterError
from adapter.generation.request import Sampling

LLAMACPP_SETTINGS = ("min_p", "repeat_penalty")
"""What metadata={"llamacpp": {...}} may hold: settings llama.cpp has and lm15 has not."""


@dataclass(frozen=True)
class CallSettings:
    """How one completion is sampled, and what was changed from what was asked."""

    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    adaptations: tuple[Adaptation, ...]


def call_settings(request: Request, defaults: LlamaCppConfig) -> CallSettings:
    """Read a request's Config, unset fields from `defaults`. Without a seed, draw one.

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
    settings = replace(defaults, **asked, **_llamacpp_settings(config))
    sampling = Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        repeat_penalty=settings.repeat_penalty,
        frequency_penalty=config.frequency_penalty or 0.0,
        presence_penalty=config.presence_penalty or 0.0,
    )
    return CallSettings(
        max_tokens=settings.max_tokens,
        sampling=sampling,
        seed=secrets.randbelow(MAX_SEED + 1) if settings.seed is None else settings.seed,
        stop=settings.stop,
        adaptations=tuple(_adaptations(request)),
    )


def _llamacpp_settings(config: Config) -> dict[str, Any]:
    settings = _metadata(config).get("llamacpp", {})
    if not isinstance(settings, dict):
        raise InvalidParameterError(
            "metadata['llamacpp']", settings, f"a dict with keys from {LLAMACPP_SETTINGS}"
        )
    for name, value in settings.items():
        if name not in LLAMACPP_SETTINGS:
            raise InvalidParameterError(
                f"metadata['llamacpp'][{name!r}]", value, f"one of {LLAMACPP_SETTINGS}"
            )
    return settings


def _metadata(config: Config) -> dict[str, Any]:
    metadata = (config.extensions or {}).get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidParameterError("metadata", metadata, "a dict")
    return metadata


def _refuse_unsupported(request: Request) -> None:
    """Refuse what would change the meaning of the answer if it were left out."""
    config = request.config
    choice = config.tool_choice
    unsupported = {
        "tools": request.tools and not (choice and choice.mode == "none"),
        "config.tool_choice": choice and choice.mode == "required",
        "config.response_format": config.response_format is not None,
        "config.logprobs": config.logprobs is not None,
        "config.probabilities": config.probabilities == "required",
        "config.cache.resource": config.cache and config.cache.resource is not None,
        **{
            f"config.extensions.{name}": True
            for name in config.extensions or {}
            if name != "metadata"
        },
    }
    for feature, asked in unsupported.items():
        if asked:
            raise UnsupportedFeatureError(
                f"{feature} is not supported by the llama.cpp engine yet; leave it out",
                feature=feature,
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

    if request.tools:
        dropped("tools", [tool.name for tool in request.tools], "tool_choice asks for no tools")
    if config.tool_choice is not None:
        satisfied("config.tool_choice", config.tool_choice.mode, "the model is shown no tools")
    if config.reasoning is not None:
        dropped("config.reasoning", config.reasoning.effort, "the engine has no reasoning dial")
    if config.probabilities == "off":
        satisfied("config.probabilities", "off", "none are measured")
    elif config.probabilities is not None:
        dropped("config.probabilities", config.probabilities, "the engine measures none yet")
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
