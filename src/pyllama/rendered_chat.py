"""What a chat template can express, and what it makes of a conversation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from pyllama.chat_parser import ChatParser

GrammarTriggerType = Literal["token", "word", "pattern", "pattern_full"]

_ECMASCRIPT_SYNTAX = re.compile(r"[.^$|()*+?\[\]{}\\]")


class ChatCapabilities(TypedDict):
    """What a template can express, as llama.cpp found by trying it."""

    #: A message may be a text.
    supports_string_content: bool
    #: A message may be a list of parts with types.
    supports_typed_content: bool
    #: A system message is shown as one.
    supports_system_role: bool
    #: Tools are described to the model.
    supports_tools: bool
    #: Earlier tool calls are shown to it.
    supports_tool_calls: bool
    #: A message may have several calls.
    supports_parallel_tool_calls: bool
    #: The arguments of a call are an object to the template, instead of its JSON.
    supports_object_arguments: bool
    #: The model may reason before it answers.
    supports_thinking: bool
    #: ``chat_template_kwargs={"preserve_reasoning": True}`` keeps the reasoning of all turns.
    supports_preserve_reasoning: bool
    #: ``chat_template_kwargs={"reasoning_effort": "low"}`` has an effect.
    supports_reasoning_effort: bool


@dataclass(frozen=True)
class GrammarTrigger:
    """What makes a lazy grammar begin to apply (``common_grammar_trigger``)."""

    #: What it looks for: a word, a token, or a pattern.
    type: GrammarTriggerType
    #: A text for ``"word"``; a regular expression for ``"pattern"``, which is found anywhere, and
    #: for ``"pattern_full"``, which fits all that was generated.
    value: str
    #: The token, for ``"token"`` only.
    token: int | None = None

    @property
    def pattern(self) -> str | None:
        """The regular expression that ``GrammarSampler`` takes; None for a ``"token"``."""
        if self.type == "token":
            return None
        if self.type == "word":
            return _ECMASCRIPT_SYNTAX.sub(r"\\\g<0>", self.value)
        if self.type == "pattern":
            return self.value
        return "^" + self.value.removeprefix("^").removesuffix("$") + "$"


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as the model wants it, and how to read what it answers."""

    #: It holds special tokens as text: tokenize it with :meth:`Vocab.tokenize_prompt` and
    #: ``literal``.
    prompt: str
    #: Its end, where the assistant's turn begins: text that belongs to the answer.
    generation_prompt: str = ""
    #: GBNF that the answer must follow, for tools or a schema; empty for none.
    grammar: str = ""
    #: The grammar begins to apply at one of the triggers, instead of at once.
    grammar_lazy: bool = False
    #: What makes a lazy grammar begin to apply.
    grammar_triggers: tuple[GrammarTrigger, ...] = ()
    #: Special tokens that the parser must see as text in what was generated.
    preserved_tokens: tuple[str, ...] = ()
    #: Texts at which the format ends a turn, beside the vocabulary's own tokens.
    stops: tuple[str, ...] = ()
    #: llama.cpp's name for the format, such as ``"peg-native"``.
    format: str = ""
    #: Whether the format has a place for thoughts.
    supports_thinking: bool = False
    #: The text before the thoughts.
    thinking_start_tag: str = ""
    #: Texts that end the thoughts.
    thinking_end_tags: tuple[str, ...] = ()
    #: Ranges of characters of the prompt that came from messages, tools, a schema or
    #: chat_template_kwargs and could name a control token: text for the model. Known for a template
    #: with a model.
    literal: tuple[tuple[int, int], ...] = ()
    #: Takes the generated text apart.
    parser: ChatParser = field(kw_only=True, repr=False, compare=False)
