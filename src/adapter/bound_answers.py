"""Answers that cannot fail to parse: an adapter's own form as the grammar of what is sampled."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, TypeVar

import dspy
from dspy.adapters import Adapter, ChatAdapter, JSONAdapter, XMLAdapter
from dspy.clients.base_lm import BaseLM
from dspy.signatures import Signature
from dspy.utils.exceptions import AdapterParseError

from adapter.engine import LlamaCppEngine
from adapter.errors import ConfigurationError
from adapter.grammar.answer_grammar import CHAT, JSON, XML, AnswerGrammar, Form, answer_grammar

AnyAdapter = TypeVar("AnyAdapter", bound=Adapter)


class CutAnswerError(AdapterParseError):
    """An answer that max_tokens, or the end of the context, cut off before all fields were there.

    A subclass of DSPy's AdapterParseError.
    """


@dataclass
class _Watch:
    """One call of an adapter: what its answers are bound by, and why each of them ended."""

    grammar: AnswerGrammar | None = None
    finish_reasons: list[str] = field(default_factory=list)


_watch: ContextVar[_Watch | None] = ContextVar("bound_answers", default=None)


class BoundAnswers:
    """Put before an adapter's class: its answers follow a grammar of its own form.

    So they do where they come from an engine of this package. Whatever else answers is asked as
    ever. A request with tools, with a response_format or a grammar of the caller's own, is left to
    those.
    """

    form: ClassVar[Form]

    def __call__(self, lm: BaseLM, *call: Any, **named: Any) -> list[dict[str, Any]]:
        """Have the adapter do its work, with its answers bound."""
        if not _is_ours(lm):
            unbound: list[dict[str, Any]] = _next(self).__call__(lm, *call, **named)
            return unbound
        with _watched(lm) as watched:
            # Not what DSPy's subclasses add to it: a schema, or another try without the form.
            answers: list[dict[str, Any]] = Adapter.__call__(self, watched, *call, **named)
        return answers

    async def acall(self, lm: BaseLM, *call: Any, **named: Any) -> list[dict[str, Any]]:
        """Do the same without blocking the event loop."""
        if not _is_ours(lm):
            unbound: list[dict[str, Any]] = await _next(self).acall(lm, *call, **named)
            return unbound
        with _watched(lm) as watched:
            answers: list[dict[str, Any]] = await Adapter.acall(self, watched, *call, **named)
        return answers

    def _call_preprocess(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        inputs: dict[str, Any],
    ) -> type[Signature]:
        processed: type[Signature] = _next(self)._call_preprocess(lm, lm_kwargs, signature, inputs)
        watch = _watch.get()
        if watch is not None:
            watch.grammar = self._bind(lm, lm_kwargs, processed)
        return processed

    def _call_postprocess(
        self,
        processed_signature: type[Signature],
        original_signature: type[Signature],
        outputs: list[dict[str, Any] | str],
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        watch = _watch.get()
        if watch is not None and watch.grammar is not None:
            for output, reason in zip(outputs, watch.finish_reasons, strict=False):
                text = output["text"] if isinstance(output, dict) else output
                if reason == "length" and not _is_in_last_text(text or "", watch.grammar):
                    max_tokens = {**lm.kwargs, **lm_kwargs}.get("max_tokens")
                    raise CutAnswerError(
                        adapter_name=type(self).__name__,
                        signature=processed_signature,
                        lm_response=text or "",
                        message=f"The answer was cut off at max_tokens={max_tokens}, or where the "
                        "context was full, before its last field was complete. Raise max_tokens "
                        "(or the model's context_length), or ask for less.",
                    )
        answers: list[dict[str, Any]] = _next(self)._call_postprocess(
            processed_signature, original_signature, outputs, lm, lm_kwargs
        )
        return answers

    def _bind(
        self, lm: BaseLM, lm_kwargs: dict[str, Any], signature: type[Signature]
    ) -> AnswerGrammar | None:
        """Ask for answers in the adapter's form, where nothing else says what they must be."""
        asked = {**lm.kwargs, **lm_kwargs}
        metadata = asked.get("metadata") or {}
        settings = metadata.get("llamacpp") or {} if isinstance(metadata, Mapping) else None
        if asked.get("tools") and isinstance(self, JSONAdapter):
            self._prepare_response_format(lm, lm_kwargs, signature)
        if asked.get("tools") or asked.get("response_format"):
            return None
        if not isinstance(settings, Mapping) or "grammar" in settings:
            return None
        grammar = answer_grammar(signature, self.form)
        if grammar is not None:
            bound = {**settings, "grammar": grammar.gbnf}
            lm_kwargs["metadata"] = {**metadata, "llamacpp": bound}
        return grammar


def constrained(adapter: AnyAdapter) -> AnyAdapter:
    """One of DSPy's adapters, whose answers cannot fail to parse with a model of this package.

        dspy.configure(lm=…, adapter=constrained(dspy.ChatAdapter()))

    It is a copy that is of the same kind, and does the same with every other lm. An adapter of
    ChatAdapter's, JSONAdapter's, BAMLAdapter's or XMLAdapter's form will do.

    Raises ConfigurationError for an adapter of another form.
    """
    made = copy.copy(adapter)
    kind: Any = type(adapter)
    made.__class__ = _bound_class(kind)
    return made


@cache
def _bound_class(kind: type[Adapter]) -> type[Adapter]:
    forms = {XMLAdapter: XML, JSONAdapter: JSON, ChatAdapter: CHAT}
    form = next((form for base, form in forms.items() if issubclass(kind, base)), None)
    if form is None or issubclass(kind, BoundAnswers):
        raise ConfigurationError(
            f"{kind.__name__} has no form that this package knows, or is bound already; give "
            "constrained() a ChatAdapter, JSONAdapter, BAMLAdapter or XMLAdapter"
        )
    # DSPy knows its adapters by the names of their classes.
    made: type[Adapter] = type(
        kind.__name__, (BoundAnswers, kind), {"form": form, "__doc__": kind.__doc__}
    )
    return made


def _next(adapter: BoundAnswers) -> Any:
    """The adapter's class after BoundAnswers: DSPy's own, which have no types."""
    return super(BoundAnswers, adapter)


def _is_ours(lm: BaseLM) -> bool:
    return isinstance(getattr(lm, "engine", None), LlamaCppEngine)


@contextmanager
def _watched(lm: BaseLM) -> Iterator[BaseLM]:
    """A copy of an lm that notes why its answers ended, which DSPy tells in histories only."""
    watch = _Watch()
    unrecorded = dspy.settings.disable_history

    def update_history(entry: dict[str, Any]) -> None:
        responses = entry["response"]
        for response in responses if isinstance(responses, tuple) else (responses,):
            watch.finish_reasons.append(getattr(response, "finish_reason", ""))
        if not unrecorded:
            lm.update_history(entry)

    watched = lm.copy()
    watched.history = lm.history
    watched.callbacks = lm.callbacks
    watched.update_history = update_history
    token = _watch.set(watch)
    try:
        with dspy.context(disable_history=False):
            yield watched
    finally:
        _watch.reset(token)


def _is_in_last_text(text: str, grammar: AnswerGrammar) -> bool:
    """Whether a text reaches into a last field of free text, which may end anywhere."""
    begin = grammar.last_text
    return begin is not None and re.search(f"^{re.escape(begin)}", text, re.MULTILINE) is not None
