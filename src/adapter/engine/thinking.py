"""How long a model may reason before it answers: options of its chat template and its sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy.lm15 import Adaptation, Config

import pyllama
from adapter.engine.call_settings import asked_llamacpp
from adapter.generation.sampling import ReasoningBudget

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel


def thinking_options(
    config: Config, loaded: LoadedModel
) -> tuple[dict[str, Any], tuple[Adaptation, ...]]:
    """Options that make the template let the model reason, and those that the template does not
    have.
    """
    asked = config.reasoning
    if asked is None:
        return {}, ()
    capabilities = loaded.capabilities
    if not (capabilities["supports_thinking"] or capabilities["supports_reasoning_effort"]):
        if asked.is_off:
            reason = f"{loaded.name!r} does not reason before it answers"
            return {}, (Adaptation("config.reasoning", "satisfied", reason, asked="off"),)
        reason = f"{loaded.name!r} was not trained to reason before it answers"
        return {}, (Adaptation("config.reasoning", "dropped", reason, asked=asked.effort),)
    options: dict[str, Any] = {"enable_thinking": not asked.is_off}
    adaptations = []
    if asked.is_off:
        if not loaded.reads("enable_thinking"):
            reason = f"the chat template of {loaded.name!r} has no switch for reasoning"
            adaptations.append(Adaptation("config.reasoning", "dropped", reason, asked="off"))
    else:
        if capabilities["supports_reasoning_effort"]:
            options["chat_template_kwargs"] = {"reasoning_effort": asked.effort}
        else:
            reason = f"the chat template of {loaded.name!r} has no levels of reasoning"
            adaptations.append(
                Adaptation(
                    "config.reasoning.effort",
                    "substituted",
                    reason,
                    asked=asked.effort,
                    applied="on",
                )
            )
    return options, tuple(adaptations)


def reasoning_budget(
    config: Config, rendered: pyllama.RenderedChat, loaded: LoadedModel
) -> tuple[ReasoningBudget | None, tuple[Adaptation, ...]]:
    """The token budget that a request sets for reasoning, with the tags of the model's format.

    lm15's Reasoning can set it. DSPy's adapters can only do so in metadata={"llamacpp":
    {"reasoning_budget_tokens": …}}.
    """
    field, asked = _asked_budget(config)
    is_off = config.reasoning is not None and config.reasoning.is_off
    if asked is None or is_off or not loaded.capabilities["supports_thinking"]:
        return None, ()
    start, ends = rendered.thinking_start_tag, rendered.thinking_end_tags
    if not start or not ends:
        reason = f"the chat template of {loaded.name!r} has no tags around the reasoning"
        return None, (Adaptation(field, "dropped", reason, asked=asked),)
    _, opened, after = rendered.generation_prompt.rpartition(start)
    return (
        ReasoningBudget(
            loaded.answer_tokens(start),
            tuple(loaded.answer_tokens(end) for end in ends),
            asked,
            started=bool(opened) and not any(end in after for end in ends),
        ),
        (),
    )


def _asked_budget(config: Config) -> tuple[str, int | None]:
    """Which setting holds the budget, and its value."""
    if config.reasoning is not None and config.reasoning.thinking_budget is not None:
        return "config.reasoning.thinking_budget", config.reasoning.thinking_budget
    name = "reasoning_budget_tokens"
    return f"metadata['llamacpp'][{name!r}]", asked_llamacpp(config).get(name)
