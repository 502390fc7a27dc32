"""What one request asks of the sampler, read from its lm15 Config.

Every field of Config ends in one of three ways: it is honoured, it is answered with an Adaptation
on the response, or it is refused with an lm15 error.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from dspy.lm15 import Adaptation, Config, Request, UnsupportedFeatureError

from adapter.engine.config import (
    LLAMACPP_SETTINGS,
    MAX_SEED,
    OPENAI_SETTINGS,
    SETTINGS,
    CallSettings,
    LlamaCppConfig,
)
from adapter.engine.rollouts import current_rollout
from adapter.errors import InvalidParameterError
from adapter.generation.sampling import are_biases
from adapter.models.template_variables import SETTING


def call_settings(
    request: Request, defaults: LlamaCppConfig, n_vocab: int
) -> tuple[CallSettings, tuple[Adaptation, ...]]:
    """Read a request's Config. Fields that it leaves out come from `defaults`.

    Args:
        n_vocab: tokens in the model's vocabulary.

    Returns:
        the settings, and an Adaptation for each field that has no effect here.

    Raises:
        InvalidParameterError: a value out of range, or an unknown setting of llama.cpp.
        UnsupportedFeatureError: lm15's; something that this engine cannot do.
    """
    _refuse_unsupported(request)
    config = request.config
    asked = {
        name: value
        for name in OPENAI_SETTINGS
        if (value := getattr(config, name, None)) not in (None, ())
    }
    llamacpp = _metadata(config).get("llamacpp", {})
    biases = (config.extensions or {}).get("logit_bias") or defaults.logit_bias
    if not biases and _is_exact(asked) and _is_exact(llamacpp):
        settings = _kept(defaults, n_vocab, _key(asked), _key(llamacpp))
    else:
        settings = _checked(defaults, n_vocab, asked, llamacpp, biases)
    return settings, tuple(_adaptations(request))


def _checked(
    defaults: LlamaCppConfig,
    n_vocab: int,
    asked: Mapping[str, Any],
    llamacpp: Any,
    biases: Any,
) -> CallSettings:
    own = _llamacpp_settings(llamacpp)
    own.pop(SETTING, None)  # adapter.engine.template_options handles it
    given = {**asked, **own, "logit_bias": _logit_bias(biases, n_vocab)}
    settings = CallSettings(**{**vars(defaults), **given})
    if settings.logprobs is not None and settings.logprobs > n_vocab:
        raise InvalidParameterError(
            "logprobs", settings.logprobs, f"at most {n_vocab}, the tokens that the model knows"
        )
    return settings


KEPT_SETTINGS = 256
"""Settings of calls that stay checked: a program asks with the same few again and again."""

_Key: TypeAlias = tuple[tuple[str, type, Any], ...]


@lru_cache(KEPT_SETTINGS)
def _kept(defaults: LlamaCppConfig, n_vocab: int, asked: _Key, llamacpp: _Key) -> CallSettings:
    given, own = ({name: value for name, _, value in key} for key in (asked, llamacpp))
    return _checked(defaults, n_vocab, given, own, {})


def _key(asked: Mapping[str, Any]) -> _Key:
    # With the types: True equals 1, and is not allowed where 1 is.
    return tuple((name, type(value), value) for name, value in asked.items())


def _is_exact(asked: Any) -> bool:
    """Whether settings hold only numbers and texts: if these are equal and of equal types, they are
    the same.
    """
    return type(asked) is dict and all(
        type(value) in _SCALARS or (type(value) is tuple and all(type(one) is str for one in value))
        for value in asked.values()
    )


_SCALARS = frozenset((bool, int, float, str))


def drawn_seed(seed: int | None) -> int:
    """The seed of an answer; drawn if the call has none.

    Each candidate and each rollout of a call has a seed of its own, which is derived from the
    call's.
    """
    return secrets.randbelow(MAX_SEED + 1) if seed is None else current_rollout().seed(seed)


MAX_ALTERNATIVES = 500_000
"""How many likely tokens one answer may report. As an object of lm15 each takes about 130 bytes and
10 µs.
"""


def require_reportable(logprobs: int, max_tokens: int | None, room: int) -> None:
    """Refuse to report more likely tokens than an answer can carry, before anything is computed.

    Args:
        room: the most tokens that the answer can have in the context.

    Raises:
        InvalidParameterError: there would be more than ``MAX_TOP``.
    """
    longest = room if max_tokens is None else min(max_tokens, room)
    if logprobs * longest > MAX_ALTERNATIVES:
        raise InvalidParameterError(
            "logprobs",
            logprobs,
            f"at most {MAX_ALTERNATIVES // longest} where an answer may have {longest} tokens: "
            f"one answer can list {MAX_ALTERNATIVES} likely tokens; ask for fewer, or for a "
            "smaller max_tokens",
        )


def asked_llamacpp(config: Config) -> dict[str, Any]:
    """What metadata={"llamacpp": {...}} holds, once ``call_settings`` has checked it."""
    return dict(_metadata(config).get("llamacpp") or {})


def _llamacpp_settings(settings: Any) -> dict[str, Any]:
    """The settings in metadata={"llamacpp": {...}}, checked."""
    known = ", ".join(LLAMACPP_SETTINGS)
    if not isinstance(settings, dict):
        raise InvalidParameterError("metadata['llamacpp']", settings, f"a dict of {known}")
    checked = {}
    for name, value in settings.items():
        where = f"metadata['llamacpp'][{name!r}]"
        if name not in LLAMACPP_SETTINGS:
            raise InvalidParameterError(where, value, f"one of {known}")
        checked[name] = SETTINGS[name].checked(value, where)
    return checked


def _logit_bias(asked: Any, n_vocab: int) -> Mapping[int, float]:
    """The value of OpenAI's field of this name: numbers from -100 to 100 by token."""
    allowed = f"a dict of tokens from 0 to {n_vocab - 1} and numbers from -100 to 100"
    if not isinstance(asked, Mapping):
        raise InvalidParameterError("logit_bias", asked, allowed)
    biases = {}
    for key, bias in asked.items():
        try:
            token = int(key)  # JSON has only strings as keys
        except (TypeError, ValueError, OverflowError):
            token = -1
        if not 0 <= token < n_vocab or not are_biases({token: bias}):
            raise InvalidParameterError("logit_bias", {key: bias}, allowed)
        biases[token] = float(bias)
    return biases


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
