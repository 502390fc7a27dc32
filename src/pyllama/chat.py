"""Chat templates: messages to a prompt, with llama.cpp's own template engine.

A template comes from the model file, which is untrusted. libllama-common interprets it in C++, and
gives it only the messages. Python never interprets it.
"""

from __future__ import annotations

import json
import re
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from pyllama import _chat_answers
from pyllama._arguments import choice
from pyllama._guard import raise_caught, take_str
from pyllama._half_made import or_half_made
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._text_marks import TextMarker
from pyllama._uncopyable import Uncopyable
from pyllama.chat_parser import ChatParser
from pyllama.errors import ChatTemplateAborted, ChatTemplateError, NativeError
from pyllama.model import Model
from pyllama.rendered_chat import ChatCapabilities, GrammarTrigger, RenderedChat
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from pyllama._native._binding import Pointer, pyllama_tokenizer
    from pyllama.chat_process import ChatProcess

ToolChoice = Literal["auto", "required", "none"]
ReasoningFormat = Literal["none", "auto", "deepseek", "deepseek-legacy"]

_TOOL_CHOICES = dict.fromkeys(("auto", "required", "none"))
_REASONING_FORMATS = dict.fromkeys(("none", "auto", "deepseek", "deepseek-legacy"))
_CONTINUATIONS = dict.fromkeys(("content", "reasoning_content"))

MAX_KEPT_FORMATS = 64  # of one template: a format for each set of tools and schema in use


class ChatTemplate(Uncopyable):
    """A chat template, ready to apply (``common_chat_templates_init``). It outlives the model.

    Any number of threads may use one at once. A template of more than 256 KiB, 1,000 tokens in a
    block, or 50 nested brackets or statements is refused. It can still run forever, take all
    memory, or recurse until the process ends: ``isolated`` makes that an error.

    Args:
        model: the model whose template and special tokens are used. Its template for tools
            (``"tool_use"``) is used for conversations with tools, if it has one.
        source: a template in Jinja to use in place of the model's.
        bos: the text of the token that begins a sequence, for a source without a model.
        eos: the text of the token that ends one.
        isolated: run the template in a child process, for files that are not trusted. A call that
            computes for more than 5 seconds, takes more than 1 GiB (on Linux), or that ends
            the child, is an error then. It costs a process, and a fraction of a millisecond for
            each call.

    Raises:
        ChatTemplateError: the template does not parse, or the model has none.
        ChatTemplateAborted: an isolated template took its process down, or too long.
        ChatProcessError: its process was ended from outside, stalled, or could not start.
    """

    _instead_of_copying = "Any number of threads may use it; or make another from its source"

    def __init__(
        self,
        model: Model | None = None,
        source: str | None = None,
        *,
        bos: str | None = None,
        eos: str | None = None,
        isolated: bool = False,
    ) -> None:
        if model is not None and not isinstance(model, Model):
            raise TypeError(f"model must be a pyllama.Model, got {model!r}")
        if model is None and source is None:
            raise TypeError("a chat template needs a model, or a source")
        if model is not None and (bos is not None or eos is not None):
            raise ValueError("bos and eos are the model's own; they go with a source alone")
        tool_use = None
        if model is not None and source is None:
            source, tool_use = _templates_of(model)
        for name, text in (("source", source), ("source", tool_use), ("bos", bos), ("eos", eos)):
            _check_text(name, text)

        texts = (bos or "", eos or "") if model is None else _token_texts(model.vocab)
        added = texts[0] if model is not None and model.vocab.add_bos else ""
        tokenizer = None if model is None else model.vocab._tokenizer

        def engine(source: str) -> _Engine:
            # The engine reads all line ends as \n. Its time for replacing them is quadratic.
            source = source.replace("\r\n", "\n")
            if not isolated:
                return _Engine(_Native(source, *texts), added, tokenizer)
            from pyllama.chat_process import ChatProcess  # subprocess is slow to import

            return _Engine(ChatProcess(source, *texts), added, tokenizer)

        self._engine = engine(cast("str", source))
        self._tool_use = engine(tool_use) if tool_use else self._engine
        self._supports_thinking: bool | None = None
        #: The template as it is applied.
        self.source = self._engine.source

    @property
    def capabilities(self) -> ChatCapabilities:
        """What the template can express (``common_chat_templates_get_caps``).

        Raises:
            ChatTemplateAborted: an isolated template took its process down, or too long; asking
                again tries again.
            ChatProcessError: its process was ended from outside, stalled, or could not start.
        """
        if self._supports_thinking is None:
            try:
                thinking = self.apply([{"role": "user", "content": "Hello"}]).supports_thinking
            except ChatTemplateAborted:  # which does not mean that the template lacks abilities
                raise
            except ChatTemplateError:
                thinking = False
            self._supports_thinking = thinking
        flags = {**self._tool_use.capabilities, "supports_thinking": self._supports_thinking}
        return cast(ChatCapabilities, flags)

    def apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool | None = None,
        json_schema: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        enable_thinking: bool = True,
        reasoning_format: ReasoningFormat = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | Literal["content", "reasoning_content"] = False,
        now: datetime | None = None,
    ) -> RenderedChat:
        """Render messages (``common_chat_templates_apply``).

        Args:
            messages: in OpenAI's form: ``{"role": "user", "content": "Hello"}``. Content may be
                text parts, ``[{"type": "text", "text": …}]``; an assistant's message may have
                ``reasoning_content`` and ``tool_calls``, a tool's result has ``tool_call_id``.
            tools: functions that the model may call, in OpenAI's form.
            tool_choice: whether the model must or may not call one.
            parallel_tool_calls: allow several calls in one answer; None for whether the template
                can show them.
            json_schema: what the answer must be; it becomes the result's grammar.
            grammar: GBNF that the answer must follow, in place of a schema or tools.
            enable_thinking: let the model reason, where the template leaves the choice.
            reasoning_format: with ``"none"`` the parser leaves reasoning in the content, and with
                all others it takes it out.
            chat_template_kwargs: more variables for the template: any values that JSON can hold.
            add_generation_prompt: end with the beginning of an assistant's turn.
            continue_final_message: the last message is the beginning of the answer: of its content
                or reasoning, or True for the part that it ends with. No other turn begins then.
            now: the time for templates that mention the date; None for the local time.

        Raises:
            ChatTemplateError: messages or tools of another form, nested deeper than 100, or that
                the template refuses.
            ChatTemplateAborted: an isolated template took its process down, or too long.
            ChatProcessError: its process was ended from outside, stalled, or could not start.
            ValueError: arguments that exclude one another.
        """
        choice("tool_choice", tool_choice, _TOOL_CHOICES)
        choice("reasoning_format", reasoning_format, _REASONING_FORMATS)
        if not isinstance(continue_final_message, bool):
            choice("continue_final_message", continue_final_message, _CONTINUATIONS)
        functions = _objects("tools", tools)
        _check_grammar(grammar, json_schema, bool(functions) and tool_choice != "none")
        engine = self._tool_use if functions else self._engine
        if parallel_tool_calls is None:
            parallel_tool_calls = engine.capabilities["supports_parallel_tool_calls"]
        format_inputs = {
            "tools": functions,
            "tool_choice": tool_choice,
            "parallel_tool_calls": bool(parallel_tool_calls),
            "json_schema": _schema(json_schema),
            "reasoning_format": reasoning_format,
        }
        conversation = _objects("messages", messages)
        if continue_final_message:
            _check_continued(conversation)
        prompt_inputs = {
            "messages": conversation,
            "enable_thinking": bool(enable_thinking),
            "add_generation_prompt": bool(add_generation_prompt),
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": engine.variables(chat_template_kwargs, now),
        }
        rendered = engine.apply(format_inputs, prompt_inputs, chat_template_kwargs or {})
        return rendered if grammar is None else replace(rendered, grammar=grammar)

    @or_half_made
    def __repr__(self) -> str:
        return f"<pyllama.ChatTemplate of {len(self.source)} characters>"


class _Native:
    """One template in C++, in this process."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        chat = lib.guarded_chat_init(source.encode(), bos.encode(), eos.encode())
        if chat == ffi.NULL:
            _raise_template_error("parsing the chat template")
        self._handle = Handle(chat, lib.guarded_chat_free)
        self.description = take_str(lib.guarded_chat_describe(chat), "reading the chat template")

    def call(self, function: str, inputs: str) -> str:
        with self._handle as chat:
            text = getattr(lib, function)(chat, inputs.encode())
            if text == ffi.NULL:
                _raise_template_error("applying the chat template")
            return take_str(text, "applying the chat template")


class _Engine:
    """One template, wherever it runs, and the formats found for it.

    Args:
        bos: removed from the beginning of a prompt, since tokenizing adds it.
        tokenizer: what names control tokens, if it is known.
    """

    def __init__(
        self,
        template: _Native | ChatProcess,
        bos: str,
        tokenizer: Handle[Pointer[pyllama_tokenizer]] | None,
    ) -> None:
        self._template = template
        self._bos = bos
        self._tokenizer = tokenizer
        self._unmarked: dict[tuple[str, bool], None] = {}
        capabilities = ChatCapabilities.__annotations__.keys() - {"supports_thinking"}
        about = _chat_answers.description(template.description, capabilities)
        self.source: str = about["source"]
        self.capabilities: dict[str, bool] = about["capabilities"]
        # llama.cpp finds most formats by rendering dozens of trial conversations, at each call. The
        # result does not depend on the conversation, so it can be cached.
        self._finds_format: bool = about["is_analyzed"]
        self._formats: dict[tuple[str, str], RenderedChat] = {}
        self._of_second: tuple[int, dict[str, Any]] = (-1, {})
        self._directives: list[str] = []
        if "strftime_now" in self.source:
            found = set(re.findall(r"%[-_0^#]?[A-Za-z]", self.source))
            self._directives = sorted(found, key=len, reverse=True)

    def variables(self, given: Mapping[str, Any] | None, now: datetime | None) -> dict[str, Any]:
        """The template's variables: the given ones, and the time, which llama.cpp takes from its
        own clock.
        """
        if now is not None and not isinstance(now, datetime):
            raise TypeError(f"now must be a datetime, got {now!r}")
        variables = self._of_now() if now is None else self._of_time(now)
        if given is None:
            return variables
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise TypeError(
                f"chat_template_kwargs must be a mapping with str keys, got {reprlib.repr(given)}"
            )
        if "enable_thinking" in given:
            raise ValueError(
                "enable_thinking has an argument of its own beside chat_template_kwargs"
            )
        return {**variables, **given}

    def _of_now(self) -> dict[str, Any]:
        """The variables of this second, unless the template asks for more than the date."""
        if self._directives:
            return self._of_time(datetime.now().astimezone())
        second = int(time.time())
        kept = self._of_second
        if kept[0] != second:
            self._of_second = kept = second, self._of_time(datetime.now().astimezone())
        return kept[1]

    def _of_time(self, now: datetime) -> dict[str, Any]:
        return {
            "datetime": now.strftime("%b %d %Y"),
            "date_string": now.strftime("%d %b %Y"),
            "pyllama_strftime": {
                directive: now.strftime(directive) for directive in self._directives
            },
        }

    def apply(
        self, format_inputs: dict[str, Any], prompt_inputs: dict[str, Any], given: Mapping[str, Any]
    ) -> RenderedChat:
        """Render the chat. Only the template's text may contain control tokens.

        Args:
            format_inputs: what the format depends on.
            prompt_inputs: what else the prompt depends on.
            given: the template's variables that the caller gave, among all of them.
        """
        shape, prompt = _json(format_inputs), _json(prompt_inputs)
        marked, marker = (shape, prompt), None
        if self._tokenizer is not None:
            marker = TextMarker(self._tokenizer, self._unmarked, shape, prompt, self.source)
            variables = {**prompt_inputs["chat_template_kwargs"], **marker.options(given)}
            texts = (
                {
                    **format_inputs,
                    "tools": marker.options(format_inputs["tools"]),
                    "json_schema": marker.options(format_inputs["json_schema"]),
                },
                {
                    **prompt_inputs,
                    "messages": marker.messages(prompt_inputs["messages"]),
                    "chat_template_kwargs": variables,
                },
            )
            if marker.used:
                marked = _json(texts[0]), _json(texts[1])
            else:
                marker = None
        if self._finds_format and not prompt_inputs["continue_final_message"]:
            result = self._call("guarded_chat_render", _chat_answers.prompt, *marked, marker)
            rendered = self._with_kept_format(shape, prompt, result["generation_prompt"])
        else:
            rendered = self._apply(shape, prompt)
            if marker is None:
                return rendered
            result = self._call("guarded_chat_apply", _chat_answers.chat, *marked, marker)
        return replace(rendered, prompt=result["prompt"], literal=result["literal"])

    def _with_kept_format(self, shape: str, prompt: str, generation_prompt: str) -> RenderedChat:
        key = (shape, generation_prompt)
        kept = self._formats.get(key)
        if kept is None:
            if len(self._formats) >= MAX_KEPT_FORMATS:
                self._formats.clear()
            kept = replace(self._apply(shape, prompt), prompt="")
            self._formats[key] = kept
        return kept

    def _apply(self, shape: str, prompt: str) -> RenderedChat:
        result = self._call("guarded_chat_apply", _chat_answers.chat, shape, prompt)
        try:
            parser = ChatParser(json.dumps(result["parser"]))
        except NativeError as error:
            raise ChatTemplateAborted(
                f"the chat template's format has no parser: {error}"
            ) from None
        return RenderedChat(
            prompt=result["prompt"],
            generation_prompt=result["generation_prompt"],
            grammar=result["grammar"],
            grammar_lazy=result["grammar_lazy"],
            grammar_triggers=tuple(GrammarTrigger(**item) for item in result["grammar_triggers"]),
            preserved_tokens=tuple(result["preserved_tokens"]),
            stops=tuple(result["stops"]),
            format=result["format"],
            supports_thinking=result["supports_thinking"],
            thinking_start_tag=result["thinking_start_tag"],
            thinking_end_tags=tuple(result["thinking_end_tags"]),
            parser=parser,
        )

    def _call(
        self,
        function: str,
        read: Callable[[str], dict[str, Any]],
        shape: str,
        prompt: str,
        marker: TextMarker | None = None,
    ) -> dict[str, Any]:
        inputs = f"{shape[:-1]},{prompt[1:]}"  # two JSON objects as one
        result = read(self._template.call(function, inputs))
        result["prompt"] = result["prompt"].removeprefix(self._bos)
        result["literal"] = ()
        if marker is not None:
            result["prompt"], result["literal"] = marker.unmark(result["prompt"])
            result["generation_prompt"], _ = marker.unmark(result["generation_prompt"])
        return result


def _check_text(name: str, text: str | None) -> None:
    if text is None:
        return
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, got {text!r}")
    if "\0" in text or (name == "source" and not text.strip()):
        raise ChatTemplateError(f"{name} must be the text of a template, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ChatTemplateError(
            f"{name} holds a lone surrogate at index {error.start}, which has no UTF-8 form"
        ) from None


def _templates_of(model: Model) -> tuple[str, str | None]:
    """A model's own template, and its template for tools, if any."""
    default, tool_use = model.chat_template(), model.chat_template("tool_use")
    source = default or tool_use
    if not source:
        raise ChatTemplateError(f"the model has no chat template: {model.desc}. Give one as source")
    return source, tool_use


def _token_texts(vocab: Vocab) -> tuple[str, str]:
    """The text of BOS and EOS; empty without one."""
    pieces = (
        b"" if token is None else vocab.token_to_piece(token, special=True)
        for token in (vocab.bos, vocab.eos)
    )
    bos, eos = (piece.decode("utf-8", "replace") for piece in pieces)
    return bos, eos


def _json(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatTemplateError(f"messages and tools must be what JSON can hold: {error}") from None


def _objects(name: str, values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [dict(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ChatTemplateError(
            f"{name} must be dicts, got {reprlib.repr(values)}: {error}"
        ) from None


def _schema(schema: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if schema is None:
        return None
    if not isinstance(schema, Mapping):
        raise TypeError(f"json_schema must be a mapping, got {reprlib.repr(schema)}")
    # llama.cpp treats an empty schema as none.
    return dict(schema) or {"type": "object"}


def _check_grammar(grammar: str | None, json_schema: object, has_tools: bool) -> None:
    if grammar is None:
        return
    if not isinstance(grammar, str):
        raise TypeError(f"grammar must be a str, got {grammar!r}")
    if json_schema is not None or has_tools:
        raise ValueError("grammar excludes json_schema and tools, which make a grammar themselves")


def _check_continued(conversation: list[dict[str, Any]]) -> None:
    last = conversation[-1] if conversation else {}
    if last.get("role") != "assistant" or last.get("tool_calls"):
        raise ChatTemplateError(
            "continue_final_message needs a last message of the assistant without tool calls, "
            f"got {reprlib.repr(last)}"
        )


def _raise_template_error(what: str) -> None:
    try:
        raise_caught(what)
    except NativeError as error:
        raise ChatTemplateError(str(error)) from None
