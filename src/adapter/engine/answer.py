"""A completion as DSPy reads it: text, reasoning, tool calls, token counts and probabilities."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from dspy.lm15 import (
    FinishReason,
    Message,
    StreamDeltaEvent,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    TokenLogprob,
    ToolCallDelta,
    ToolCallPart,
    TopLogprob,
    Usage,
)

import pyllama
from adapter.engine.call_text import CallText, read_arguments
from adapter.errors import InferenceError
from adapter.generation.request import Delta, GenerationResult
from adapter.generation.request import TokenLogprob as SampledToken

Piece = Callable[[int], bytes]
"""The bytes of a token."""

_NO_MESSAGE = pyllama.ChatMessage()


def message_of(result: GenerationResult, parser: pyllama.ChatParser | None) -> Message:
    """The assistant's message of a completion.

    Raises:
        InferenceError: tool calls that do not fit the model's own format.
    """
    if parser is None:
        return Message.assistant(result.text)
    # An answer that max_tokens cut off is no error. It is shown as far as it goes.
    parsed = _parse(parser, result.text, partial=result.finish_reason == "length")
    parts: list[ThinkingPart | TextPart | ToolCallPart] = []
    if parsed.reasoning_content:
        parts.append(ThinkingPart(parsed.reasoning_content))
    calls = parsed.tool_calls
    if result.finish_reason == "length":
        calls = tuple(call for call in calls if _is_whole(call))
    if parsed.content or not calls:
        parts.append(TextPart(parsed.content))
    parts += [ToolCallPart(call.id or _new_id(), call.name, _arguments(call)) for call in calls]
    return Message("assistant", tuple(parts))


def finish_reason_of(result: GenerationResult, *, called: bool) -> FinishReason:
    """Why the completion ended, and whether it ended by calling functions."""
    return "tool_call" if called and result.finish_reason == "stop" else result.finish_reason


def usage_of(result: GenerationResult, parser: pyllama.ChatParser | None, piece: Piece) -> Usage:
    """Count the tokens that were evaluated and sampled.

    If the model reasoned, the tokens sampled before the text or the tool calls count as reasoning.
    """
    return Usage(
        input_tokens=result.prompt_tokens,
        output_tokens=result.completion_tokens,
        cache_read_tokens=result.cache_read_tokens,
        reasoning_tokens=None if parser is None else _reasoning_tokens(result, parser, piece),
    )


def logprobs_of(sampled: Sequence[SampledToken], piece: Piece) -> tuple[TokenLogprob, ...]:
    """Log-probabilities in lm15's form."""
    if not sampled:  # as for most pieces of a stream
        return ()

    @cache  # The same few tokens are likely at many places, and share their texts.
    def decoded(token: int) -> tuple[str, tuple[int, ...]]:
        data = piece(token)
        return data.decode("utf-8", "replace"), tuple(data)

    def top(token: int, logprob: float) -> TopLogprob:
        text, data = decoded(token)
        return TopLogprob(text, logprob, bytes=data, token_id=token)

    found = []
    for one in sampled:
        text, data = decoded(one.token)
        likeliest = tuple(top(*other) for other in one.top)
        found.append(TokenLogprob(text, one.logprob, bytes=data, token_id=one.token, top=likeliest))
    return tuple(found)


class AnswerStream:
    """Turns the pieces of a completion into the deltas of a stream."""

    def __init__(self, parser: pyllama.ChatParser | None, piece: Piece) -> None:
        self._parser = parser
        self._piece = piece
        self._text = ""
        self._message = _NO_MESSAGE
        self._call_texts: dict[int, CallText] = {}
        self._parts: list[str | int] = []  # "thinking", "text", or the index of a tool call

    def push(self, delta: Delta) -> Iterator[StreamDeltaEvent]:
        """What a piece adds to the answer."""
        logprobs = logprobs_of(delta.logprobs, self._piece)
        if self._parser is None:
            if delta.text or logprobs or not delta.logprobs_complete:
                yield StreamDeltaEvent(
                    TextDelta(
                        delta.text, logprobs=logprobs, logprobs_complete=delta.logprobs_complete
                    )
                )
            return
        self._text += delta.text
        yield from self._advance(partial=True)
        if logprobs or not delta.logprobs_complete:
            # Reasoning and calls carry none: the log-probabilities are those of the text.
            yield StreamDeltaEvent(
                TextDelta(
                    "",
                    self._part("text"),
                    logprobs=logprobs,
                    logprobs_complete=delta.logprobs_complete,
                )
            )

    def finish(self, result: GenerationResult) -> Iterator[StreamDeltaEvent]:
        """What the end of the completion adds: texts that were kept back until then."""
        if self._parser is not None and result.finish_reason == "stop":
            yield from self._advance(partial=False)

    @property
    def called(self) -> bool:
        """Whether the answer calls a function."""
        return bool(self._message.tool_calls)

    def _advance(self, *, partial: bool) -> Iterator[StreamDeltaEvent]:
        assert self._parser is not None
        message = _parse(self._parser, self._text, partial=partial)
        for diff in message.compute_diffs(self._message):
            if diff.reasoning_content_delta:
                yield StreamDeltaEvent(
                    ThinkingDelta(diff.reasoning_content_delta, self._part("thinking"))
                )
            if diff.content_delta:
                yield StreamDeltaEvent(TextDelta(diff.content_delta, self._part("text")))
            if diff.tool_call_delta is not None and diff.tool_call_index is not None:
                yield StreamDeltaEvent(self._call_delta(diff.tool_call_index, diff.tool_call_delta))
        self._message = message

    def _call_delta(self, index: int, call: pyllama.ChatToolCall) -> ToolCallDelta:
        arguments = self._call_texts.setdefault(index, CallText()).push(call.arguments)
        if index in self._parts:
            return ToolCallDelta(arguments, self._part(index))
        name = call.name or None
        return ToolCallDelta(arguments, self._part(index), call.id or _new_id(), name)

    def _part(self, part: str | int) -> int:
        if part not in self._parts:
            self._parts.append(part)
        return self._parts.index(part)


def _parse(parser: pyllama.ChatParser, text: str, *, partial: bool) -> pyllama.ChatMessage:
    try:
        return parser.parse(text, partial=partial)
    except pyllama.ChatParseError as error:
        raise InferenceError(f"the model's answer does not fit its own format: {error}") from error


def _is_whole(call: pyllama.ChatToolCall) -> bool:
    """Whether a call was complete before the answer was cut off."""
    try:
        return bool(call.name) and isinstance(read_arguments(call.arguments), dict)
    except ValueError:
        return False


def _arguments(call: pyllama.ChatToolCall) -> dict[str, object]:
    try:
        arguments = read_arguments(call.arguments or "{}")
    except ValueError as error:
        raise InferenceError(
            f"the model called {call.name!r} with arguments that are no JSON: {error}"
        ) from error
    if not isinstance(arguments, dict):
        raise InferenceError(
            f"the model called {call.name!r} with {call.arguments}, which is no object"
        )
    return arguments


def _new_id() -> str:
    # Mistral's templates accept only nine letters and digits, other templates accept anything.
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))


_ID_CHARACTERS = string.ascii_letters + string.digits


def _reasoning_tokens(
    result: GenerationResult, parser: pyllama.ChatParser, piece: Piece
) -> int | None:
    """How many tokens come before the first that adds to the text or calls a function."""
    pieces = [piece(token) for token in result.token_ids]

    def parsed(count: int) -> pyllama.ChatMessage:
        return _parse(parser, b"".join(pieces[:count]).decode("utf-8", "replace"), partial=True)

    if not parsed(len(pieces)).reasoning_content:
        return None
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high) // 2
        message = parsed(middle + 1)
        if message.content or message.tool_calls:
            high = middle
        else:
            low = middle + 1
    return low
