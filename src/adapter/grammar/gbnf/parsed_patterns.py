"""Regular expressions as Python's parser reads them, in the dialect of JSON schemas."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as constants
    from re import _parser as parser
else:
    import sre_constants as constants
    import sre_parse as parser

__all__ = ["InvalidPattern", "UnsupportedPattern", "constants", "parsed_pattern"]

MAX_PATTERN = 10_000
"""Characters of a regular expression."""


class UnsupportedPattern(ValueError):
    """A regular expression without an equivalent in a grammar."""


class InvalidPattern(UnsupportedPattern):
    """A text that is no regular expression."""


def parsed_pattern(pattern: str) -> Any:
    """The parts of a regular expression.

    Raises:
        InvalidPattern: it is not a regular expression.
        UnsupportedPattern: it has flags, is too large, or means something else to Python than in
            ECMA-262.
    """
    if len(pattern) > MAX_PATTERN:
        raise UnsupportedPattern(f"more than {MAX_PATTERN} characters")
    try:
        parsed: Any = parser.parse(_with_plain_sets(pattern))
    except parser.error as error:
        raise InvalidPattern(f"no regular expression: {error}") from None
    except (RecursionError, OverflowError):
        raise UnsupportedPattern("nested too deep, or repeated too often") from None
    except Warning as warning:  # if Python is set to raise them
        raise UnsupportedPattern(str(warning)) from None
    if parsed.state.flags & ~constants.SRE_FLAG_UNICODE:
        raise UnsupportedPattern("flags")
    return parsed


_CATEGORIES = tuple(f"\\{letter}" for letter in "dDsSwW")
_OF_SETS = "-&~|["
"""Signs that Python may read as operators of sets one day, and warns of where they are doubled."""


def _with_plain_sets(pattern: str) -> str:
    """The pattern with a backslash before each sign in a set that stands for itself."""
    written: list[str] = []
    at = 0
    while at < len(pattern):
        if pattern.startswith("(?#", at):
            raise UnsupportedPattern("a comment")
        if pattern[at] == "[":
            at = _add_set(pattern, at, written)
        else:
            size = 2 if pattern[at] == "\\" else 1
            written.append(pattern[at : at + size])
            at += size
    return "".join(written)


def _add_set(pattern: str, at: int, written: list[str]) -> int:
    """Write the set that begins at a place. Returns where it ends."""
    begin = "[^" if pattern.startswith("[^", at) else "["
    written.append(begin)
    at += len(begin)
    if pattern.startswith("]", at):
        raise UnsupportedPattern("an empty set")  # Python takes the bracket for one of its signs
    is_end_of_range = False
    while at < len(pattern) and pattern[at] != "]":
        size = 2 if pattern[at] == "\\" else 1
        sign = pattern[at : at + size]
        written.append("\\" + sign if sign in _OF_SETS else sign)
        at += size
        if sign in _CATEGORIES:
            is_end_of_range = False
            continue  # no range begins with one: a hyphen behind it stands for itself
        if not is_end_of_range and pattern.startswith("-", at) and pattern[at + 1 : at + 2] != "]":
            written.append("-")
            at += 1
            is_end_of_range = True
        else:
            is_end_of_range = False
    return at
