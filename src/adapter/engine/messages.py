"""The conversation of a DSPy request, in the form that the chat template takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

import pyllama
from adapter.engine.plain_tools import plain_tools, without_arrays
from adapter.errors import PromptError, TemplateAbortedError

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel


def template_messages(request: Request) -> list[dict[str, Any]]:
    """Return the request's messages in OpenAI's form, which chat templates take.

    Citations of earlier answers are left out.

    Raises:
        UnsupportedFeatureError: lm15's; a part that is not text, a tool call or a tool's result.
    """
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        parts = request.system if isinstance(request.system, tuple) else (TextPart(request.system),)
        messages.append({"role": "system", "content": _text(parts, "system")})
    for index, message in enumerate(request.messages):
        messages += _template_messages(message, f"messages[{index}].parts")
    return messages


def rendered_by(
    loaded: LoadedModel, messages: list[dict[str, Any]], **options: Any
) -> pyllama.RenderedChat:
    """Render a conversation as it is, or in the first stricter form that the template accepts.

    Tools are described by their schemas. If the template fails on these, simpler ones are tried.

    Raises:
        PromptError: the template accepts no form of the conversation.
        TemplateAbortedError: the template ends its process.
    """
    if not loaded.capabilities["supports_tool_calls"] and any(
        _calls(one) or one["role"] == "tool" for one in messages
    ):
        messages = in_words(messages)  # such a template leaves them out
    described = [options]
    if options.get("tools"):
        simpler = (plain_tools, without_arrays)
        described += [{**options, "tools": simple(options["tools"])} for simple in simpler]
    first: PromptError | None = None
    tried: list[Any] = []
    for form in (None, list, one_call_each, in_words):
        turns = messages if form is None else in_turns(form(messages))
        if turns in tried:
            continue
        tried.append(turns)
        for given in described:
            made = _rendered(loaded, turns, given)
            if not isinstance(made, PromptError):
                return made
            first = first or made
    assert first is not None
    raise first


def _rendered(
    loaded: LoadedModel, messages: list[dict[str, Any]], options: Mapping[str, Any]
) -> pyllama.RenderedChat | PromptError:
    """Render a conversation, or return why the template refuses it."""
    try:
        return loaded.render(messages, **options)
    except TemplateAbortedError:
        raise
    except PromptError as error:
        return error


def in_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same conversation in the form that the strictest templates accept.

    Consecutive messages of one role are joined. The user comes first. The assistant says something
    between a tool's result and the user. Ids of calls have nine letters and digits.
    """
    turns: list[dict[str, Any]] = []
    for message in map(_with_short_ids, messages):
        last = turns[-1] if turns else {"role": ""}
        if message["role"] == "assistant" and last["role"] in ("", "system"):
            turns.append({"role": "user", "content": _LEFT_OUT})
        if message["role"] == "user" and last["role"] == "tool":
            turns.append({"role": "assistant", "content": _RESULTS_SEEN})
        if message["role"] == last["role"] != "tool" and not _calls(message) and not _calls(last):
            both = [one["content"] for one in (last, message) if one["content"]]
            turns[-1] = {**last, **message, "content": "\n\n".join(both)}
        else:
            turns.append(message)
    return turns


def in_words(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same conversation with calls and results as text, for templates without tools."""
    made = []
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in _calls(message) or ()
    }
    for message in messages:
        plain = {name: message[name] for name in ("role", "content")}
        if message["role"] == "tool":
            name = message.get("name") or names.get(message["tool_call_id"], "a tool")
            plain = {"role": "user", "content": f"Result of {name}: {plain['content']}"}
        functions = [call["function"] for call in _calls(message) or ()]
        calls = [f"Call of {one['name']}: {one['arguments']}" for one in functions]
        plain["content"] = "\n".join([*filter(None, [plain["content"]]), *calls])
        made.append(plain)
    return made


_LEFT_OUT = "(The conversation began before this.)"
"""The user's message before a conversation that begins with an answer."""

_RESULTS_SEEN = "(I have the results.)"
"""The assistant's message between results of tools and the user's next message."""


def one_call_each(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same conversation with one call in each message, followed by its own result."""
    results = [message for message in messages if message["role"] == "tool"]
    made: list[dict[str, Any]] = []
    moved: list[int] = []
    for message in messages:
        calls = _calls(message) or ()
        if len(calls) < 2:
            if id(message) not in moved:
                made.append(dict(message))
            continue
        for index, call in enumerate(calls):
            whole = message if index == 0 else {"role": message["role"], "content": ""}
            made.append({**whole, "tool_calls": [call]})
            for result in results:
                if result["tool_call_id"] == call["id"] and id(result) not in moved:
                    made.append(dict(result))
                    moved.append(id(result))
                    break
    return made


def has_begun_answer(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation ends with the beginning of the answer, which is to be continued."""
    last = messages[-1] if messages else {"role": "system"}
    return last["role"] == "assistant" and bool(last["content"]) and not _calls(last)


def _calls(message: Mapping[str, Any]) -> Any:
    return message.get("tool_calls")


def _with_short_ids(message: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(message)
    if _calls(message):
        made["tool_calls"] = [{**call, "id": _short(call["id"])} for call in _calls(message)]
    if "tool_call_id" in message:
        made["tool_call_id"] = _short(message["tool_call_id"])
    return made


def _short(call_id: str) -> str:
    """An id of nine letters and digits, always the same for the same id."""
    if len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


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
