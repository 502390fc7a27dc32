"""Which texts may have blank lines or be empty, and which begin on a line of their own.

A small model that is allowed to have blank lines or empty texts often does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dspy.signatures import Signature
from pydantic.fields import FieldInfo

from adapter.signatures.formatting import (
    beginnings_of_placeholders,
    describe_form,
    description_of,
)

_LONG = re.compile(
    r"(?<![a-z])(paragraphs?|lines|multi-?line|newlines?|sections?|chapters?|stanzas?|verses?|"
    r"essays?|e-?mails?|letters?|poems?|lyrics|songs?|story|stories|articles?|reports?|documents?|"
    r"drafts?|scripts?|dialogues?|recipes?|blog|posts?|markdown|html|yaml|code|program|lists?|"
    r"outline|steps|detailed|long|plan)(?![a-z])",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"(?<![a-z])(empty|blank|nothing|none|optional|omit|leave|left|if)(?![a-z])", re.IGNORECASE
)
FEW = 2
"""Demonstrations that do not yet show that all values are of a kind."""

_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def known_of_texts(
    signature: type[Signature], demos: Sequence[Mapping[str, Any]], *, paragraphs: bool
) -> dict[str, dict[str, Any]]:
    """What is known of the outputs' texts, as attributes of ``answer_grammar.Field`` by name.

    Args:
        paragraphs: whether the text of one of several outputs ends at a blank line.
    """
    unwritten = beginnings_of_placeholders(signature, demos)
    known: dict[str, dict[str, Any]] = {
        name: {"unwritten": unwritten, "required": not may_be_empty(name, field, demos)}
        for name, field in signature.output_fields.items()
    }
    for name in below_their_names(signature, demos):
        known[name]["below"] = True
    if paragraphs:
        for name in single_paragraphs(signature, demos):
            known[name]["paragraph"] = True
    return known


def single_paragraphs(
    signature: type[Signature], demos: Iterable[Mapping[str, Any]]
) -> frozenset[str]:
    """The outputs whose text ends at a blank line: those that are one of several.

    Reasoning is not one of these, so a single answer after reasoning may be long. Nor are outputs
    whose name or description asks for a longer text, or which have a blank line in a demonstration.
    """
    names = [*signature.output_fields]
    if len([name for name in names if name != "reasoning"]) < 2:
        del names[-1]
    return frozenset(
        name
        for name in names
        if not _LONG.search(f"{name} {description_of(name, signature.output_fields[name])}")
        and not any(_BLANK_LINE.search(str(demo.get(name, ""))) for demo in demos)
    )


def below_their_names(
    signature: type[Signature], demos: Sequence[Mapping[str, Any]]
) -> frozenset[str]:
    """The outputs whose text begins below their names: few demonstrations, and all with numbers.

    Many tokenizers write the space before a digit as a token of its own, and the one before a word
    as a part of the word. A small model repeats that token, and has then chosen a number before it
    has looked at the question. A line break leaves it free.
    """
    if not 0 < len(demos) <= FEW:
        return frozenset()
    return frozenset(
        name
        for name, field in signature.output_fields.items()
        if describe_form(field.annotation) == "text"
        and all(str(demo.get(name, "")).strip()[:1].isdecimal() for demo in demos)
    )


def has_line_breaks(name: str, demos: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a field's text has several lines in a demonstration."""
    return any("\n" in str(demo.get(name, "")).strip() for demo in demos)


def may_be_empty(name: str, field: FieldInfo, demos: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a text's default, its description or a demonstration shows that it may be empty."""
    return (
        field.default == ""
        or bool(_NOTHING.search(description_of(name, field)))
        or any(name in demo and not str(demo[name]).strip() for demo in demos)
    )
