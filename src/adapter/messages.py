"""A DSPy request's conversation, as the chat template takes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dspy.lm15 import (
    CitationPart,
    DataPart,
    Message,
    RefusalPart,
    Request,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    UnsupportedFeatureError,
)


def template_messages(request: Request) -> list[dict[str, Any]]:
    """Return the request's messages in the form that chat templates take, which is OpenAI's.

    Citations of earlier answers are left out. Raises lm15's UnsupportedFeatureError, naming the
    part, for anything that is not text, a tool call or a tool's result.
    """
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        parts = request.system if isinstance(request.system, tuple) else (TextPart(request.system),)
        messages.append({"role": "system", "content": _text(parts, "system")})
    for index, message in enumerate(request.messages):
        messages += _template_messages(message, f"messages[{index}].parts")
    return messages


def _template_messages(message: Message, where: str) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [_tool_result(part, where) for part in message.parts]
    if message.role == "assistant":
        return [_answer(message, where)]
    content = _text(message.parts, where)
    if message.role == "developer":
        # Chat templates know no such role, and many refuse a system message in the middle.
        content = f"[developer]\n{content}"
    return [{"role": "user", "content": content}]


def _answer(message: Message, where: str) -> dict[str, Any]:
    """An earlier answer: its text, its reasoning, and the functions that it called."""
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    thoughts = [part.text for part in message.parts if isinstance(part, ThinkingPart)]
    others = [part for part in message.parts if not isinstance(part, (ToolCallPart, ThinkingPart))]
    answer: dict[str, Any] = {"role": "assistant", "content": _text(others, where)}
    if thoughts:
        answer["reasoning_content"] = "\n".join(thoughts)
    if calls:
        answer["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.input, ensure_ascii=False),
                },
            }
            for call in calls
        ]
    return answer


def _tool_result(part: object, where: str) -> dict[str, Any]:
    if not isinstance(part, ToolResultPart):
        raise UnsupportedFeatureError(
            f"{where} holds a {type(part).__name__} in a tool's message", feature=where
        )
    content = _text(part.content, where)
    result = {
        "role": "tool",
        "tool_call_id": part.id,
        "content": f"Error: {content}" if part.is_error else content,
    }
    if part.name is not None:
        result["name"] = part.name
    return result


def _text(parts: Sequence[object], where: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        if isinstance(part, (TextPart, RefusalPart)):
            texts.append(part.text)
        elif isinstance(part, DataPart):
            texts.append(json.dumps(part.value, ensure_ascii=False))
        elif not isinstance(part, (ThinkingPart, CitationPart)):
            kind = getattr(part, "type", type(part).__name__)
            raise UnsupportedFeatureError(
                f"{where}[{index}] is a part of type {kind!r}; this engine takes text only",
                feature=f"{where}[{index}]",
            )
    return "\n".join(texts)
