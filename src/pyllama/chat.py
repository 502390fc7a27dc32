"""Chat templates: messages to a prompt, by llama.cpp's own template engine.

A template comes out of the model file, which is untrusted input: it is interpreted by
libllama-common in C++, which gives it nothing but the messages, and never by Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyllama._guard import raise_caught, take_str
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama.errors import ChatTemplateError, NativeError
from pyllama.model import Model


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as the model wants it.

    ``prompt`` holds special tokens as text: tokenize it with ``parse_special=True``. ``stops``
    are texts at which the template's format ends a turn beside the vocabulary's own tokens.
    """

    prompt: str
    stops: tuple[str, ...]


class ChatTemplate:
    """A chat template, ready to apply (``common_chat_templates_init``). It outlives the model.

    Any number of threads may use one at a time.

    :param model: the model whose template and special tokens are used.
    :param source: a template in Jinja to use in place of the model's.
    :raises ChatTemplateError: the template does not parse, or the model has none.
    """

    def __init__(self, model: Model, source: str | None = None) -> None:
        if not isinstance(model, Model):
            raise TypeError(f"model must be a pyllama.Model, got {model!r}")
        if source is None and model.chat_template() is None:
            raise ChatTemplateError(
                f"the model has no chat template: {model.desc}. Give one as source"
            )
        if source is not None and not isinstance(source, str):
            raise TypeError(f"source must be a str, got {source!r}")
        if source is not None and ("\0" in source or not source.strip()):
            raise ChatTemplateError(f"source must be the text of a template, got {source!r}")
        try:
            text = (source or "").encode()
        except UnicodeEncodeError as error:
            raise ChatTemplateError(
                f"source holds a lone surrogate at index {error.start}, which has no UTF-8 form"
            ) from None
        with model._open() as pointer:
            chat = lib.guarded_chat_init(pointer, text)
            if chat == ffi.NULL:
                _raise_template_error("parsing the chat template")
        self._handle = Handle(chat, lib.guarded_chat_free)
        #: The template as it is applied.
        self.source = take_str(lib.guarded_chat_source(chat), "reading the chat template")
        #: What the template can express, such as ``{"supports_tools": False, ...}``.
        self.capabilities: Mapping[str, bool] = json.loads(
            take_str(lib.guarded_chat_capabilities(chat), "reading the chat template")
        )

    def apply(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> RenderedChat:
        """Render messages (``common_chat_templates_apply``).

        :param messages: in OpenAI's form: ``{"role": "user", "content": "Hello"}``.
        :param add_generation_prompt: end with the beginning of an assistant's turn.
        :raises ChatTemplateError: messages of another form, or that the template refuses.
        """
        try:
            inputs = json.dumps(
                {
                    "messages": [dict(message) for message in messages],
                    "add_generation_prompt": bool(add_generation_prompt),
                }
            )
        except (TypeError, ValueError) as error:
            raise ChatTemplateError(
                f"messages must be dicts that JSON can hold, got {messages!r}: {error}"
            ) from None
        with self._handle as chat:
            text = lib.guarded_chat_apply(chat, inputs.encode())
            if text == ffi.NULL:
                _raise_template_error("applying the chat template")
            result = json.loads(take_str(text, "applying the chat template"))
        return RenderedChat(result["prompt"], tuple(result["stops"]))

    def __repr__(self) -> str:
        return f"<pyllama.ChatTemplate of {len(self.source)} characters>"


def _raise_template_error(what: str) -> None:
    try:
        raise_caught(what)
    except NativeError as error:
        raise ChatTemplateError(str(error)) from None
