"""A request's conversation, tools and form of answer, made into tokens and a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspy.lm15 import Adaptation, Config, FunctionTool, Request, UnsupportedFeatureError

import pyllama
from adapter.errors import InvalidParameterError
from adapter.generation.sampling import Constraint, checked_grammar
from adapter.grammar.json_schema import json_schema_grammar
from adapter.grammar.schema_merging import SchemaError
from adapter.grammar.thinking import ANSWER_SCHEMA, after_thinking
from adapter.messages import template_messages

if TYPE_CHECKING:
    from adapter.loaded_model import LoadedModel


@dataclass(frozen=True)
class Prompt:
    """What a model is shown, and how its answer is read.

    parser is None where the generated text is the answer as it stands.
    """

    tokens: tuple[int, ...]
    constraint: Constraint | None
    stops: tuple[str, ...]
    preserved_tokens: frozenset[int]
    parser: pyllama.ChatParser | None
    adaptations: tuple[Adaptation, ...]


def build_prompt(request: Request, loaded: LoadedModel, grammar: str | None) -> Prompt:
    """Render a request with the model's chat template, by llama.cpp's own engine.

    `grammar` is GBNF that the answer must follow.

    Raises InvalidParameterError for a schema or grammar that cannot be used, TokenizationError
    for messages that the template refuses, and lm15's UnsupportedFeatureError for what this model
    or engine cannot do.
    """
    tools = _tools(request, loaded)
    schema, schema_grammar, schema_adaptations = _schema(request.config)
    if grammar is not None:
        if schema is not None or tools:
            other = "response_format" if schema is not None else "tools"
            raise InvalidParameterError(
                "metadata['llamacpp']['grammar']", grammar, f"left out where there are {other}"
            )
        _require_usable("metadata['llamacpp']['grammar']", grammar)
    options: dict[str, Any] = {}
    if tools:
        choice = request.config.tool_choice
        options = {"tools": tools, "tool_choice": choice.mode if choice else "auto"}
        if choice is not None and choice.parallel is not None:
            options["parallel_tool_calls"] = choice.parallel
    thinks = loaded.capabilities["supports_thinking"]
    if schema is not None:
        if tools:
            # The template's format puts the answer beside calls.
            options["json_schema"] = schema
        else:
            grammar = schema_grammar
    thinking, adaptations = _thinking(request.config, loaded)
    messages = template_messages(request)
    rendered = loaded.render(messages, **options, **thinking)
    if grammar is not None:
        constraint: Constraint | None = Constraint(grammar)
        if thinks:
            shaped = loaded.render(messages, json_schema=ANSWER_SCHEMA, **thinking)
            constraint = after_thinking(grammar, shaped, loaded.answer_tokens)
    else:
        constraint = _constraint(rendered, loaded)
    return Prompt(
        tokens=tuple(loaded.tokenize(rendered.prompt)),
        constraint=constraint,
        stops=rendered.stops + loaded.turn_stops,
        preserved_tokens=frozenset(
            token for text in rendered.preserved_tokens for token in loaded.answer_tokens(text)
        ),
        parser=rendered.parser if tools or thinks else None,
        adaptations=schema_adaptations + adaptations,
    )


def _tools(request: Request, loaded: LoadedModel) -> list[dict[str, Any]]:
    """The functions that the model may call, as chat templates take them."""
    choice = request.config.tool_choice
    if not request.tools or (choice and choice.mode == "none"):
        if choice and choice.mode == "required":
            raise UnsupportedFeatureError(
                "tool_choice is 'required' and there are no tools", feature="config.tool_choice"
            )
        return []
    if not loaded.capabilities["supports_tools"]:
        raise UnsupportedFeatureError(
            f"the chat template of {loaded.name!r} has no place for tools; leave them out, or "
            "load a model that was trained to call functions",
            feature="tools",
        )
    allowed = choice.allowed if choice and choice.allowed else None
    described = []
    for tool in request.tools:
        if not isinstance(tool, FunctionTool):
            raise UnsupportedFeatureError(
                f"tool {tool.name!r} is a provider's own; this engine calls functions only",
                feature="tools",
            )
        if allowed is None or tool.name in allowed:
            function = {"name": tool.name, "parameters": tool.parameters}
            if tool.description is not None:
                function["description"] = tool.description
            described.append({"type": "function", "function": function})
    return described


def _schema(
    config: Config,
) -> tuple[Mapping[str, Any] | None, str, tuple[Adaptation, ...]]:
    """The JSON schema that the answer must fit, its grammar, and what that cannot say."""
    asked = config.response_format
    if asked is None:
        return None, "", ()
    schema = {"type": "object"} if asked["type"] == "json_object" else asked["schema"]
    try:
        grammar = json_schema_grammar(json.dumps(schema, allow_nan=False))
        checked_grammar(grammar.gbnf)
    except (SchemaError, pyllama.GrammarError, TypeError, ValueError) as error:
        raise InvalidParameterError(
            "response_format", asked, f"a schema that a grammar can express: {error}"
        ) from error
    if not grammar.unchecked:
        return schema, grammar.gbnf, ()
    reason = "a grammar cannot express these, so an answer may break them: check it"
    field = "config.response_format.schema"
    dropped = Adaptation(field, "dropped", reason, asked=grammar.unchecked)
    return schema, grammar.gbnf, (dropped,)


def _thinking(config: Config, loaded: LoadedModel) -> tuple[dict[str, Any], tuple[Adaptation, ...]]:
    """How the template is told to let the model reason, and what it cannot be told."""
    asked = config.reasoning
    if asked is None:
        return {}, ()
    capabilities = loaded.capabilities
    if not capabilities["supports_thinking"]:
        if asked.is_off:
            reason = f"{loaded.name!r} does not reason before it answers"
            return {}, (Adaptation("config.reasoning", "satisfied", reason, asked="off"),)
        reason = f"{loaded.name!r} was not trained to reason before it answers"
        return {}, (Adaptation("config.reasoning", "dropped", reason, asked=asked.effort),)
    options: dict[str, Any] = {"enable_thinking": not asked.is_off}
    adaptations = []
    if not asked.is_off:
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
    if asked.thinking_budget is not None:
        reason = "reasoning ends where the model ends it, or at max_tokens"
        adaptations.append(
            Adaptation(
                "config.reasoning.thinking_budget",
                "dropped",
                reason,
                asked=asked.thinking_budget,
            )
        )
    return options, tuple(adaptations)


def _constraint(rendered: pyllama.RenderedChat, loaded: LoadedModel) -> Constraint | None:
    """The template's grammar of the answer, with what the prompt already holds of it."""
    if not rendered.grammar:
        return None
    if rendered.grammar_lazy:
        triggers = rendered.grammar_triggers
        return Constraint(
            rendered.grammar,
            trigger_patterns=tuple(t.pattern for t in triggers if t.pattern is not None),
            trigger_tokens=tuple(t.token for t in triggers if t.token is not None),
        )
    return Constraint(rendered.grammar, begun=loaded.answer_tokens(rendered.generation_prompt))


def _require_usable(name: str, gbnf: str) -> None:
    try:
        checked_grammar(gbnf)
    except pyllama.GrammarError as error:
        raise InvalidParameterError(name, gbnf, f"a grammar in GBNF: {error}") from error
