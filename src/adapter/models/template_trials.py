"""Tries what a model's chat template can do, and reports why it refuses a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyllama

_PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def calls_tools(template: pyllama.ChatTemplate) -> bool:
    """Whether tools are shown to a model with this template, and its calls can be read.

    Some templates show tools, but write calls in a form that llama.cpp does not know.

    Raises:
        ChatTemplateAborted: the trial has no result.
        ChatProcessError: the trial has no result.
    """
    if not template.capabilities["supports_tools"]:
        return False
    question = {"role": "user", "content": "?"}
    try:
        asked = template.apply([question], tools=[_PROBE], tool_choice="required")
    except pyllama.ChatTemplateAborted:
        raise
    except pyllama.ChatTemplateError:
        return False
    return bool(asked.grammar)


def complaint(error: pyllama.ChatTemplateError, messages: Sequence[Mapping[str, Any]]) -> str:
    """The reason why a template refuses a conversation, in one line without a stack trace."""
    reason = " ".join(_JINJA.split(str(error))[-1].split())
    roles = [str(message.get("role")) for message in messages]
    shown = ", ".join(roles[:_MAX_ROLES]) + (", ..." if len(roles) > _MAX_ROLES else "")
    return f"the chat template refuses the conversation: {reason} (its roles: {shown})"


_JINJA = re.compile(r"\bError: (?:Jinja Exception: )?")

_MAX_ROLES = 24
