"""Renames the rules of a GBNF grammar, so that two grammars can stand in one text."""

from __future__ import annotations

import re
from collections.abc import Callable

_GBNF = re.compile(
    r"""
      "(?:\\.|[^"\\])*"        # a literal
    | \[(?:\\.|[^\]\\])*\]     # a class of characters
    | <[^>]*>                  # a token
    | \#[^\n]*                 # a comment
    | \{[0-9,\ ]*\}            # a number of repetitions
    | (?P<rule>[A-Za-z0-9-]+)  # the name of a rule
    """,
    re.VERBOSE | re.DOTALL,
)


def renamed_rules(gbnf: str, named: Callable[[str], str]) -> str:
    """The grammar with other names for its rules.

    Args:
        named: gives the new name of a rule.
    """

    def rename(found: re.Match[str]) -> str:
        name = found["rule"]
        return found[0] if name is None else named(name)

    return _GBNF.sub(rename, gbnf)
