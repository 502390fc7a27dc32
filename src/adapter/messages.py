"""A DSPy request's conversation, as the chat template takes it: roles and texts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dspy.lm15 import (
    CitationPart,
    DataPart,
    Message,
    RefusalPart,
    Request,
    TextPart,
    ThinkingPart,
    UnsupportedFeatureError,
)


def template_messages(request: Request) -> list[dict[str, str]]:
    """Return the request's messages as dicts with "role" and "content".

    The roles are system, user and assistant. Thinking and citations of earlier answers are left
    out, as chat templates leave them out. Raises lm15's UnsupportedFeatureError, naming the part,
    for anything that is not text.
    """
    messages = []
    if request.system is not None:
        parts = request.system if isinstance(request.system, tuple) else (TextPart(request.system),)
        messages.append({"role": "system", "content": _text(parts, "system")})
    for index, message in enumerate(request.messages):
        messages.append(_template_message(message, f"messages[{index}]"))
    return messages


def _template_message(message: Message, where: str) -> dict[str, str]:
    if message.role == "tool":
        raise UnsupportedFeatureError(
            f"{where} is a tool result; this engine does not call tools yet", feature=where
        )
    content = _text(message.parts, f"{where}.parts")
    if message.role == "developer":
        # Chat templates know no such role, and many refuse a system message in the middle.
        return {"role": "user", "content": f"[developer]\n{content}"}
    return {"role": message.role, "content": content}


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
