"""Splits what a model wrote by its chat template's format: content, reasoning, tool calls."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyllama._guard import raise_caught, take_str
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._uncopyable import Uncopyable
from pyllama.errors import ChatParseError, NativeError

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer


@dataclass(frozen=True)
class ChatToolCall:
    """A function that the model wants called."""

    #: The function's name.
    name: str
    #: JSON as the model wrote it; a partial text may cut it off anywhere.
    arguments: str
    #: The call's id; empty where the format has none.
    id: str = ""


@dataclass(frozen=True)
class ChatMessageDiff:
    """What one step of a stream adds to a message: texts to append, where not empty."""

    #: Text of the thoughts.
    reasoning_content_delta: str
    #: Text of the answer.
    content_delta: str
    #: The call that ``tool_call_delta`` belongs to, or None.
    tool_call_index: int | None
    #: What is added to the call. The first delta of a call has its name and id; later ones have
    #: them only when they change.
    tool_call_delta: ChatToolCall | None


@dataclass(frozen=True)
class ChatMessage:
    """An assistant's message."""

    #: The text of the answer.
    content: str = ""
    #: The thoughts; empty where none were found.
    reasoning_content: str = ""
    #: The calls of functions.
    tool_calls: tuple[ChatToolCall, ...] = ()

    def compute_diffs(self, previous: ChatMessage) -> tuple[ChatMessageDiff, ...]:
        """What this message has beyond an earlier one (``common_chat_msg_diff``).

        Args:
            previous: the result of parsing an earlier part of the same text; ``ChatMessage()`` at
                the beginning.

        Raises:
            ChatParseError: it is no earlier part of this message.
        """
        if not isinstance(previous, ChatMessage):
            raise TypeError(f"previous must be a pyllama.ChatMessage, got {previous!r}")
        diffs = _taken(
            lib.guarded_chat_compute_diffs(_to_json(previous), _to_json(self)),
            "comparing with the previous message",
        )
        return tuple(
            ChatMessageDiff(
                diff["reasoning_content_delta"],
                diff["content_delta"],
                diff["tool_call_index"],
                ChatToolCall(**call) if (call := diff["tool_call_delta"]) else None,
            )
            for diff in diffs
        )


class ChatParser(Uncopyable):
    """Parses what the model answers to one rendered chat; see ``RenderedChat.parser``.

    Any number of threads may use one at once. It outlives its template.
    """

    _instead_of_copying = "RenderedChat.parser makes another"

    def __init__(self, params: str) -> None:
        parser = lib.guarded_chat_parser_init(params.encode())
        if parser == ffi.NULL:
            raise_caught("reading the chat format")
        self._handle = Handle(parser, lib.guarded_chat_parser_free)

    def parse(self, text: str | bytes, *, partial: bool = False) -> ChatMessage:
        """The message that a generated text stands for (``common_chat_parse``).

        Args:
            text: all that was generated after the prompt, without the tokens that end the turn, and
                with the text of those in ``RenderedChat.preserved_tokens``. Bytes may end
                within a character; those that are no UTF-8 become U+FFFD.
            partial: the text goes on. A part that could still become something else is left out.

        Raises:
            ChatParseError: it does not fit the format, or nests brackets deeper than 200.

        Of a continued message (``continue_final_message``) the result holds the first part too.
        """
        if not isinstance(text, (str, bytes)):
            raise TypeError(f"text must be a str or bytes, got {text!r}")
        try:
            data = text.encode() if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise ChatParseError(
                f"text holds a lone surrogate at index {error.start}, which has no UTF-8 form"
            ) from None
        with self._handle as parser:
            message = _taken(
                lib.guarded_chat_parse(parser, data, len(data), bool(partial)),
                "parsing the generated text",
            )
        return ChatMessage(
            message["content"],
            message["reasoning_content"],
            tuple(ChatToolCall(**call) for call in message["tool_calls"]),
        )

    def __repr__(self) -> str:
        return "<pyllama.ChatParser>"


def _to_json(message: ChatMessage) -> bytes:
    return json.dumps(asdict(message)).encode()


def _taken(text: Pointer[bytes], what: str) -> Any:
    if text == ffi.NULL:
        try:
            raise_caught(what)
        except NativeError as error:
            raise ChatParseError(str(error)) from None
    return json.loads(take_str(text, what))
