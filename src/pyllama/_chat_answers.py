"""Checks the answers of a template's process, which the template may have taken over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from pyllama.errors import ChatTemplateAborted

_Check = Callable[[Any], bool]


def description(text: str, capabilities: Iterable[str]) -> dict[str, Any]:
    """What it reports of a template: its ``source``, ``capabilities`` and ``is_analyzed``.

    Args:
        capabilities: the names that must be among them.

    Raises:
        ChatTemplateAborted: the answer has another form.
    """
    flags = _object(dict.fromkeys(capabilities, _is(bool)))
    return _read(text, {"source": _is(str), "capabilities": flags, "is_analyzed": _is(bool)})


def prompt(text: str) -> dict[str, Any]:
    """A rendered prompt. Raises as above."""
    return _read(text, _PROMPT)


def chat(text: str) -> dict[str, Any]:
    """A rendered prompt with its format. Raises as above."""
    return _read(text, _CHAT)


def _read(text: str, checks: dict[str, _Check]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChatTemplateAborted(f"the chat template's engine sent no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ChatTemplateAborted("the chat template's engine sent no JSON object")
    wrong = [name for name, check in checks.items() if name not in value or not check(value[name])]
    if wrong:
        raise ChatTemplateAborted(
            f"the chat template's engine sent something else for {', '.join(wrong)}"
        )
    return value


def _is(kind: type) -> _Check:
    return lambda value: type(value) is kind


def _list(check: _Check) -> _Check:
    return lambda value: type(value) is list and all(map(check, value))


def _object(checks: dict[str, _Check]) -> _Check:
    return lambda value: (
        type(value) is dict
        and all(name in value and check(value[name]) for name, check in checks.items())
    )


def _is_trigger(value: Any) -> bool:
    kinds = ("token", "word", "pattern", "pattern_full")
    return (
        _object({"type": kinds.__contains__, "value": _is(str)})(value)
        and value.keys() <= {"type", "value", "token"}
        and type(value.get("token", 0)) in (int, type(None))
    )


_PROMPT = {"prompt": _is(str), "generation_prompt": _is(str)}
_CHAT = {
    **_PROMPT,
    **dict.fromkeys(("grammar", "format", "thinking_start_tag"), _is(str)),
    **dict.fromkeys(("grammar_lazy", "supports_thinking"), _is(bool)),
    **dict.fromkeys(("preserved_tokens", "stops", "thinking_end_tags"), _list(_is(str))),
    "grammar_triggers": _list(_is_trigger),
    "parser": _object({"format": _is(int), "generation_prompt": _is(str), "parser": _is(str)}),
}
