"""Variables of chat templates: which may be given, and which a template reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

SETTING = "chat_template_kwargs"

_OF_THE_ENGINE = frozenset(
    {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "datetime",
     "date_string", "pyllama_strftime"}
)  # fmt: skip
"""Variables that the engine itself sets."""

_MAX_SIZE, _MAX_DEPTH = 100_000, 50

ALLOWED = (
    f"a dict of what JSON can hold, with at most {_MAX_SIZE} characters and {_MAX_DEPTH} levels; "
    "its keys are names of variables, but none of "
    f"{', '.join(sorted(_OF_THE_ENGINE))}, and enable_thinking is True or False"
)


def are_template_variables(value: Any) -> bool:
    """Whether a value may be given to a template as its variables."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and name.isidentifier() for name in value)
        and not _OF_THE_ENGINE & value.keys()
        and isinstance(value.get("enable_thinking", True), bool)
        and _copied(value) is not None
    )


def copied(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of the values that are_template_variables() accepts."""
    made = _copied(variables)
    assert made is not None
    return made


def variables_in(source: str) -> frozenset[str]:
    """Return the names in the statements and expressions of a template: its variables and more."""
    code = " ".join(_BLOCK.findall(_COMMENT.sub("", source)))
    return frozenset(_NAME.findall(_TEXT.sub(" ", code)))


_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_BLOCK = re.compile(r"\{[{%].*?[}%]\}", re.DOTALL)
_TEXT = re.compile(r"""\"[^"\\]*(?:\\.[^"\\]*)*\"|'[^'\\]*(?:\\.[^'\\]*)*'""", re.DOTALL)
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*")


def _copied(variables: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        text = json.dumps(dict(variables), allow_nan=False)
        made: dict[str, Any] = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return made if len(text) <= _MAX_SIZE and _depth(made) <= _MAX_DEPTH else None


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        nested = [each for each in level if isinstance(each, (dict, list))]
        level = [
            item for each in nested for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth
