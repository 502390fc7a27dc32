"""Places the grammar of an answer after the model's thoughts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyllama
from adapter.generation.sampling import Constraint
from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.rule_names import renamed_rules
from adapter.grammar.gbnf.rules import Rule, Rules, Text, choice, one_of, optional, repeat, sequence

_PLACE = "the answer stands here"

ANSWER_SCHEMA: dict[str, Any] = {"const": _PLACE}
"""A schema with one possible text. It shows where the template's own format has the answer."""

_IN_FORMAT = f'"\\"{_PLACE}\\""'
# Some formats allow or require a fence around JSON, which the text of an answer must not have.
_OR_FENCED = '"```json" space response-format space "```" | '
_FENCED = re.compile(r'"```json" space (response-format(?:-schema)?) space "```"')
# gpt-oss announces JSON, and may think several times.
_SAYS_JSON = '(space "<|constrain|>"? [A-Za-z0-9_-]+)? '
_THINKS_AGAIN = "root ::= (start analysis)* start response-format"
_ANSWER = "answer-itself"


def after_thinking(
    gbnf: str,
    shaped: pyllama.RenderedChat,
    answer_tokens: Callable[[str], tuple[int, ...]],
) -> Constraint:
    """Constrain an answer to a grammar, and leave the thoughts before it free.

    Args:
        gbnf: the answer's grammar.
        shaped: the conversation, rendered for an answer of ANSWER_SCHEMA.
        answer_tokens: gives the tokens of a text in the assistant's turn.
    """
    renamed = _with_names(gbnf)
    if shaped.grammar.count(_IN_FORMAT) == 1 and not shaped.grammar_lazy:
        template = _FENCED.sub(r"\1", shaped.grammar.replace(_OR_FENCED, ""))
        template = template.replace(_SAYS_JSON, "")
        template = template.replace(_THINKS_AGAIN, _THINKS_AGAIN.replace("*", "?"))
        template = template.replace(_IN_FORMAT, _ANSWER)
        return Constraint(f"{template}\n{renamed}", prefix=answer_tokens(shaped.generation_prompt))
    start, ends = shaped.thinking_start_tag, shaped.thinking_end_tags
    if not ends:
        return Constraint(gbnf)
    begin, _, opened = shaped.prompt.rpartition(start) if start else (shaped.prompt, "", "")
    is_open = bool(begin) and start in shaped.generation_prompt and ends[0] not in opened
    rules = Rules()
    thoughts = _until(rules, ends[0])
    space = repeat(one_of(Characters.of(" \n")), 0, 4)
    thinking = sequence(thoughts, space)
    if not is_open:
        thinking = optional(sequence(start, thinking))
    before = rules.gbnf(sequence(thinking, Rule(_ANSWER)), known=frozenset({_ANSWER}))
    return Constraint(f"{before}{renamed}")


def _until(rules: Rules, end: str) -> Rule:
    """Any text up to and including the first `end`."""
    letters = Characters.of(end)

    def state(read: str) -> Rule:
        return rules.add("thought", ("thought", read), lambda: body(read))

    def body(read: str) -> Any:
        options: list[Any] = []
        for letter in dict.fromkeys(end):
            text = read + letter
            if text == end:
                options.append(Text(letter))
                continue
            kept = next(text[i:] for i in range(len(text) + 1) if end.startswith(text[i:]))
            options.append(sequence(letter, state(kept)))
        return choice([*options, sequence(one_of(~letters), state(""))])

    return state("")


def _with_names(gbnf: str) -> str:
    """The grammar with rule names that no template's grammar has. Its root is the answer."""
    return renamed_rules(gbnf, lambda name: _ANSWER if name == "root" else f"{_ANSWER}-{name}")
