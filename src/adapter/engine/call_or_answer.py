"""Grammars of requests with tools: calls that are required, and calls beside a JSON schema.

llama.cpp's formats allow any amount of text before a required call. With a schema most of them
forbid calls. DSPy's ReActV2 needs required calls and its JSONAdapter needs calls beside a schema.
So this module makes the first grammar stricter, and joins the two grammars for the second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyllama
from adapter.grammar.gbnf.rule_names import renamed_rules

_TEXT_BEFORE_CALLS = re.compile(r"until-\d+\??(?= (?:space )?[a-z0-9-]*tool-call)")
"""In the root of a format's grammar: all text up to where a call begins."""


def render_call(
    render: Callable[..., pyllama.RenderedChat], options: Mapping[str, Any]
) -> pyllama.RenderedChat:
    """Render a conversation whose answer must be calls, after reasoning if there is any.

    If the grammar of a format has another structure, text before the call stays allowed.
    """
    rendered = render(**{**options, "tool_choice": "required"})
    rules = rendered.grammar.split("\n")
    strict = [
        _TEXT_BEFORE_CALLS.sub("", rule) if rule.startswith("root ::=") else rule for rule in rules
    ]
    return replace(rendered, grammar="\n".join(strict))


def render_call_or_answer(
    render: Callable[..., pyllama.RenderedChat],
    options: Mapping[str, Any],
    schema: Mapping[str, Any],
) -> pyllama.RenderedChat:
    """Render a conversation whose answer may call a tool or fit a schema.

    Args:
        render: renders it with the options of ``pyllama.ChatTemplate.apply``.
    """
    rendered = render(**options)
    answer = render(**options, json_schema=schema)
    if answer.grammar_lazy or not answer.grammar:
        # This format constrains calls and leaves other text free.
        return rendered
    call = render_call(render, options)
    return replace(
        rendered,
        grammar=either(answer.grammar, call.grammar),
        grammar_lazy=False,
        grammar_triggers=(),
        parser=_EitherParser(rendered.parser, answer.parser),
    )


def either(one: str, other: str) -> str:
    """A GBNF grammar of all texts of two grammars, whose roots are both "root"."""
    rules = [prefixed_rules(one, "a-"), prefixed_rules(other, "b-")]
    return "\n".join([*rules, "root ::= a-root | b-root\n"])


def prefixed_rules(gbnf: str, prefix: str) -> str:
    """The grammar with a prefix before each rule name."""
    return renamed_rules(gbnf, lambda name: f"{prefix}{name}")


class _EitherParser(pyllama.ChatParser):
    """Reads calls, and reads other text by the format of the answer.

    Formats whose calls begin with a brace take every object for a call, and then refuse it.
    """

    def __init__(self, calls: pyllama.ChatParser, answer: pyllama.ChatParser) -> None:
        self._calls, self._answer = calls, answer

    def parse(self, text: str | bytes, *, partial: bool = False) -> pyllama.ChatMessage:
        try:
            return self._calls.parse(text, partial=partial)
        except pyllama.ChatParseError:
            return self._answer.parse(text, partial=partial)
