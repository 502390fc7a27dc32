"""What a chat template is given besides the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from dspy.lm15 import Adaptation, Config

from adapter.engine.call_settings import asked_llamacpp
from adapter.engine.thinking import thinking_options
from adapter.models.template_variables import SETTING

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel


def template_options(
    config: Config, defaults: Mapping[str, Any], loaded: LoadedModel
) -> tuple[dict[str, Any], tuple[Adaptation, ...]]:
    """The options of a template, and the wanted ones that have no effect on it.

    The request's own variables override what it says about reasoning. Both override the defaults.

    Args:
        defaults: the variables of the lm's config.
    """
    own = dict(asked_llamacpp(config).get(SETTING) or {})
    thinking, adaptations = thinking_options(config, loaded)
    wanted = dict(thinking.pop(SETTING, {})) | thinking
    for name in wanted.keys() & own.keys():
        if own[name] != wanted[name]:
            reason = f"{SETTING} of the request has {name}={own[name]!r}, which comes first"
            adaptations += (
                Adaptation(
                    "config.reasoning",
                    "substituted",
                    reason,
                    asked=wanted[name],
                    applied=own[name],
                ),
            )
    variables = {**defaults, **wanted, **own}
    for name, value in {**defaults, **own}.items():
        if not loaded.reads(name):
            adaptations += (_unread(name, value, loaded),)
    options: dict[str, Any] = {}
    if "enable_thinking" in variables:
        options["enable_thinking"] = variables.pop("enable_thinking")
    if variables:
        options[SETTING] = variables
    return options, adaptations


def _unread(name: str, value: Any, loaded: LoadedModel) -> Adaptation:
    near = get_close_matches(name, loaded.template_variables, 1, cutoff=0.8)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    reason = f"the chat template of {loaded.name!r} has no variable {name!r}{hint}"
    return Adaptation(f"{SETTING}.{name}", "dropped", reason, asked=value)
