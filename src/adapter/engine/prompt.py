"""Turns a request's conversation, tools and form of answer into tokens and a grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dspy.lm15 import Adaptation, Config, FunctionTool, Request, UnsupportedFeatureError

import pyllama
from adapter.engine.call_or_answer import render_call, render_call_or_answer
from adapter.engine.messages import has_begun_answer, rendered_by, template_messages
from adapter.engine.template_options import template_options
from adapter.engine.thinking import reasoning_budget
from adapter.engine.thinking_grammar import ANSWER_SCHEMA, after_thinking
from adapter.engine.tool_arguments import BoundCalls, closed_schema, impossible
from adapter.errors import InvalidParameterError
from adapter.generation.sampling import Constraint, ReasoningBudget, checked_grammar
from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.merging import SchemaError

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel


@dataclass(frozen=True)
class Prompt:
    """What a model is shown, and how its answer is read.

    Attributes:
        parser: None if the generated text is the answer as it stands.
    """

    tokens: tuple[int, ...]
    constraint: Constraint | None
    stops: tuple[str, ...]
    preserved_tokens: frozenset[int]
    parser: pyllama.ChatParser | None
    reasoning_budget: ReasoningBudget | None
    adaptations: tuple[Adaptation, ...]


def build_prompt(
    request: Request,
    loaded: LoadedModel,
    grammar: str | None,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> Prompt:
    """Render a request with the model's chat template, in llama.cpp's own Jinja engine.

    Args:
        grammar: GBNF that the answer must follow.
        variables: template variables that the request does not set.

    Raises:
        InvalidParameterError: a schema or grammar that cannot be used.
        PromptError: the template refuses the messages.
        UnsupportedFeatureError: lm15's; something that this model or engine cannot do.
    """
    tools, schemas = _tools(request, loaded)
    schema, schema_grammar, schema_adaptations = _schema(request.config)
    if tools or schema is not None:
        refuse_grammar(request, grammar)
    elif grammar is not None:
        _require_usable("metadata['llamacpp']['grammar']", grammar)
    options: dict[str, Any] = {}
    if tools:
        choice = request.config.tool_choice
        options = {"tools": tools, "tool_choice": choice.mode if choice else "auto"}
        if choice is not None and choice.parallel is not None:
            options["parallel_tool_calls"] = choice.parallel
    if schema is not None and not tools:
        grammar = schema_grammar
    given, adaptations = template_options(request.config, variables, loaded)
    messages = template_messages(request)
    render = BoundCalls(partial(rendered_by, loaded, messages, **given), schemas)
    continues = has_begun_answer(messages) and not tools
    if continues:
        options["continue_final_message"] = "content"
    if tools and options["tool_choice"] == "required":
        rendered = render_call(render, options)
    elif tools and schema is not None:
        rendered = render_call_or_answer(render, options, schema)
    else:
        rendered = render(**options)
    thinks = rendered.supports_thinking or loaded.capabilities["supports_thinking"]
    budget, unspent = reasoning_budget(request.config, rendered, loaded)
    if grammar is not None:
        constraint: Constraint | None = Constraint(grammar)
        if thinks and not continues:
            shaped = render(json_schema=ANSWER_SCHEMA)
            constraint = after_thinking(grammar, shaped, loaded.answer_tokens)
    else:
        constraint = _constraint(rendered, loaded)
    preserved = frozenset(
        token for text in rendered.preserved_tokens for token in loaded.answer_tokens(text)
    )
    if constraint is not None:
        marks = () if budget is None else (budget.start, *budget.ends)
        shown = preserved.union(*marks)
        constraint = replace(constraint, shown=shown) if shown else constraint
    return Prompt(
        tokens=tuple(loaded.tokenize(rendered)),
        constraint=constraint,
        stops=rendered.stops + loaded.turn_stops,
        preserved_tokens=preserved,
        # The beginning that was given is not part of the answer, and no thoughts follow it.
        parser=rendered.parser if tools or (thinks and not continues) else None,
        reasoning_budget=budget,
        adaptations=schema_adaptations + render.adaptations + adaptations + unspent,
    )


def refuse_grammar(request: Request, grammar: str | None) -> None:
    """Refuse a user's grammar beside a schema or tools, which need a grammar of their own."""
    if grammar is not None:
        other = "tools" if request.config.response_format is None else "response_format"
        raise InvalidParameterError(
            "metadata['llamacpp']['grammar']", grammar, f"left out where there are {other}"
        )


def _tools(request: Request, loaded: LoadedModel) -> tuple[list[dict[str, Any]], list[str]]:
    """The functions that the model may call, as chat templates take them, and the closed schemas
    of their arguments as JSON.
    """
    choice = request.config.tool_choice
    if not request.tools or (choice and choice.mode == "none"):
        if choice and choice.mode == "required":
            raise UnsupportedFeatureError(
                "tool_choice is 'required' and there are no tools", feature="config.tool_choice"
            )
        return [], []
    if not loaded.calls_tools:
        raise UnsupportedFeatureError(
            f"the chat template of {loaded.name!r} has no place for tools, or no form of calls "
            "that can be read; leave them out, or load a model that was trained to call functions",
            feature="tools",
        )
    allowed = choice.allowed if choice and choice.allowed else None
    described, schemas = [], []
    for tool in request.tools:
        if not isinstance(tool, FunctionTool):
            raise UnsupportedFeatureError(
                f"tool {tool.name!r} is a provider's own; this engine calls functions only",
                feature="tools",
            )
        if allowed is None or tool.name in allowed:
            schemas.append(_possible_schema(tool))
            function = {"name": tool.name, "parameters": tool.parameters}
            if tool.description is not None:
                function["description"] = tool.description
            described.append({"type": "function", "function": function})
    return described, schemas


def _possible_schema(tool: FunctionTool) -> str:
    """The closed schema of a function's arguments as JSON.

    A schema that nothing fits is refused. Its other faults are reported later.
    """
    try:
        schema = json.dumps(closed_schema(tool.parameters or {}), allow_nan=False)
    except ValueError:  # a number that is too long: rendering refuses it
        return "{}"
    reason = impossible(schema)
    if reason is not None:
        raise InvalidParameterError(
            f"tools[{tool.name!r}].parameters", tool.parameters, f"a schema that fits: {reason}"
        )
    return schema


def _schema(
    config: Config,
) -> tuple[Mapping[str, Any] | None, str, tuple[Adaptation, ...]]:
    """The JSON schema of the answer, its grammar, and what the grammar cannot express."""
    asked = config.response_format
    if asked is None:
        return None, "", ()
    schema = {"type": "object"} if asked["type"] == "json_object" else asked["schema"]
    try:
        grammar = json_schema_grammar(json.dumps(schema, allow_nan=False))
        checked_grammar(grammar.gbnf)
    except (SchemaError, pyllama.GrammarError, TypeError, ValueError, RecursionError) as error:
        raise InvalidParameterError(
            "response_format", asked, f"a schema that a grammar can express: {error}"
        ) from error
    if not grammar.unchecked:
        return schema, grammar.gbnf, ()
    reason = "a grammar cannot express these, so an answer may break them: check it"
    field = "config.response_format.schema"
    dropped = Adaptation(field, "dropped", reason, asked=grammar.unchecked)
    return schema, grammar.gbnf, (dropped,)


def _constraint(rendered: pyllama.RenderedChat, loaded: LoadedModel) -> Constraint | None:
    """The template's grammar of the answer, without what the prompt already contains of it."""
    if not rendered.grammar:
        return None
    if rendered.grammar_lazy:
        triggers = rendered.grammar_triggers
        return Constraint(
            rendered.grammar,
            trigger_patterns=tuple(t.pattern for t in triggers if t.pattern is not None),
            trigger_tokens=tuple(t.token for t in triggers if t.token is not None),
        )
    return Constraint(rendered.grammar, prefix=loaded.answer_tokens(rendered.generation_prompt))


def _require_usable(name: str, gbnf: str) -> None:
    try:
        checked_grammar(gbnf)
    except pyllama.GrammarError as error:
        raise InvalidParameterError(name, gbnf, f"a grammar in GBNF: {error}") from error
