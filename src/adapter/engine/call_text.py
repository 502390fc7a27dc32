"""The arguments of a call as JSON.

The forms of LFM2 write strings as Python does. llama.cpp makes JSON of them and leaves control
characters in it as they are, which JSON does not allow.
"""

from __future__ import annotations

import json
import math


def read_arguments(text: str) -> object:
    """The arguments that a text in JSON holds. Raises ValueError if it is not JSON."""
    return json.loads(text, strict=False, parse_constant=_refused, parse_float=_finite)


def _refused(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


class CallText:
    """Escapes the control characters in the strings of a JSON text that comes in pieces."""

    def __init__(self) -> None:
        self._in_string = False
        self._is_escaped = False

    def push(self, piece: str) -> str:
        """Return the next piece as JSON has it."""
        written = []
        for character in piece:
            if self._in_string and character < " ":
                written.append(json.dumps(character)[1:-1])
                continue
            written.append(character)
            if self._is_escaped:
                self._is_escaped = False
            elif character == '"':
                self._in_string = not self._in_string
            else:
                self._is_escaped = self._in_string and character == "\\"
        return "".join(written)
