"""Tools and a JSON schema in one request: the answer is a call, or what the schema says.

llama.cpp's formats take one of the two for a grammar: with a schema most forbid calls. DSPy's
JSONAdapter asks for both, so the two grammars are made into one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyllama

_GBNF = re.compile(
    r"""
      "(?:\\.|[^"\\])*"        # a literal
    | \[(?:\\.|[^\]\\])*\]     # a class of characters
    | <[^>]*>                  # a token
    | \#[^\n]*                 # a comment
    | \{[0-9,\ ]*\}            # a number of repetitions
    | (?P<rule>[A-Za-z0-9-]+)  # the name of a rule
    """,
    re.VERBOSE,
)


def render_call_or_answer(
    render: Callable[..., pyllama.RenderedChat],
    options: Mapping[str, Any],
    schema: Mapping[str, Any],
) -> pyllama.RenderedChat:
    """Render a conversation whose answer may be a call of a tool or fit a schema.

    :param render: renders it with the options of ``pyllama.ChatTemplate.apply``.
    :param options: with tools and tool_choice. Where calls are required, the schema is left out.
    """
    rendered = render(**options)
    if options["tool_choice"] == "required":
        return rendered
    answer = render(**options, json_schema=schema)
    if answer.grammar_lazy or not answer.grammar:
        # This format holds calls to their form and leaves other text free.
        return rendered
    call = render(**{**options, "tool_choice": "required"})
    return replace(
        rendered,
        grammar=either(answer.grammar, call.grammar),
        grammar_lazy=False,
        grammar_triggers=(),
        parser=_EitherParser(rendered.parser, answer.parser),
    )


def either(one: str, other: str) -> str:
    """A grammar in GBNF of all texts of two grammars, whose roots are both "root"."""
    rules = [_renamed(one, "a-"), _renamed(other, "b-")]
    return "\n".join([*rules, "root ::= a-root | b-root\n"])


def _renamed(gbnf: str, prefix: str) -> str:
    """The grammar with a prefix before the names of its rules."""

    def rename(found: re.Match[str]) -> str:
        name = found["rule"]
        return found[0] if name is None else f"{prefix}{name}"

    return _GBNF.sub(rename, gbnf)


class _EitherParser(pyllama.ChatParser):
    """Reads calls, and what is none by the format of the answer.

    Formats whose calls begin with a brace take every object for one, and then refuse it.
    """

    def __init__(self, calls: pyllama.ChatParser, answer: pyllama.ChatParser) -> None:
        self._calls, self._answer = calls, answer

    def parse(self, text: str | bytes, *, partial: bool = False) -> pyllama.ChatMessage:
        try:
            return self._calls.parse(text, partial=partial)
        except pyllama.ChatParseError:
            return self._answer.parse(text, partial=partial)
