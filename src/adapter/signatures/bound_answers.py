"""Answers that cannot fail to parse: the sampler follows a grammar of the adapter's own form."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import dspy
from dspy.adapters import Adapter, JSONAdapter
from dspy.adapters.utils import annotation_allows_none
from dspy.clients.base_lm import BaseLM
from dspy.clients.call_context import StreamProgress, adapter_fallback_scope
from dspy.lm15 import ThinkingPart
from dspy.signatures import Signature
from dspy.utils.exceptions import AdapterParseError

from adapter.context_variables import assigned
from adapter.engine.config import MAX_SEED
from adapter.engine.engine import LlamaCppEngine
from adapter.grammar.schema.merging import SchemaError
from adapter.signatures.answer_grammar import AnswerGrammar, Form, answer_grammar
from adapter.signatures.field_values import Misfit, constrained_values
from adapter.signatures.known_tools import calls_schema, or_null
from adapter.signatures.one_body import Answers, Ask, blocking, completed
from adapter.signatures.values import is_of_calls

if TYPE_CHECKING:
    from dspy.adapters import Adapter as _Adapter
else:  # a mixin for DSPy's classes, not an adapter by itself
    _Adapter = object


class CutAnswerError(AdapterParseError):
    """max_tokens, or the end of the context, cut off an answer before all fields were there.

    A subclass of DSPy's AdapterParseError.
    """


class InvalidValueError(AdapterParseError):
    """An answer has a value that its field does not allow, even after further attempts.

    A subclass of DSPy's AdapterParseError. The text names field, value and constraint.
    """


ATTEMPTS = 4
"""How many attempts there are for an answer with values that its fields do not allow."""

_TEMPERATURE_AGAIN = 0.7
"""The temperature of another attempt after a greedy one, which would give the same answer."""


@dataclass
class _Watch:
    """One call of an adapter: what constrains its answers, and how each of them ended."""

    demos: list[dict[str, Any]]
    grammar: AnswerGrammar | None = None
    responses: list[Any] = field(default_factory=list)
    misfits: dict[int, AdapterParseError] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget the answers so far."""
        self.responses, self.misfits = [], {}


_watch: ContextVar[_Watch | None] = ContextVar("bound_answers", default=None)


_bound_predicts: WeakKeyDictionary[Any, type[Signature] | None] = WeakKeyDictionary()
"""The grammar of the last answer that a dspy.Predict asked for, for stream listeners."""


def is_being_bound(signature: type[Signature]) -> bool:
    """Whether the answer that is being parsed followed a grammar of these output fields."""
    watch = _watch.get()
    grammar = None if watch is None else watch.grammar
    return grammar is not None and grammar.names == tuple(signature.output_fields)


def bound_signature(predict: Any) -> type[Signature] | None:
    """The signature whose grammar constrains the answer that a dspy.Predict asks for, if any."""
    return _bound_predicts.get(predict)


class BoundAnswers(_Adapter):
    """A mixin for an adapter's class: its answers follow a grammar of its own form.

    This applies to answers from an engine of this package. Any other lm is asked as before, and the
    values of its answers are checked against the constraints of their fields. A request with tools,
    a response_format or a grammar of the caller's own keeps its own constraint.
    """

    form: ClassVar[Form]
    parse_checks_constraints: ClassVar[bool] = False
    """Whether the class's own `parse` checks values against their fields' constraints."""

    def __call__(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> Answers:
        """Let the adapter work with constrained answers.

        Raises:
            CutAnswerError: an answer was cut off.
            InvalidValueError: a value is still not allowed by its field after ATTEMPTS.
            AdapterParseError: any other text without the output fields.
        """
        # Without what DSPy's subclasses add: a schema, or another attempt without the form.
        bound, others = partial(Adapter.__call__, self), super().__call__
        call = (signature, demos, inputs)
        return completed(
            self._bound_answers(blocking(bound), blocking(others), lm, lm_kwargs, *call)
        )

    async def acall(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> Answers:
        """Do the same without blocking the event loop."""
        bound, others = partial(Adapter.acall, self), super().acall
        return await self._bound_answers(bound, others, lm, lm_kwargs, signature, demos, inputs)

    async def _bound_answers(
        self, bound: Ask, others: Ask, lm: BaseLM, lm_kwargs: dict[str, Any], *call: Any
    ) -> Answers:
        """Ask for constrained answers, or those of an lm that is not of this package."""
        signature, demos, _ = call
        if not _is_ours(lm):
            return self._checked(signature, await others(lm, lm_kwargs, *call))
        with _watched(lm, demos) as (watched, watch), adapter_fallback_scope() as progress:
            answers: Answers = await bound(watched, dict(lm_kwargs), *call)
            for index, asked in self._again(watch, lm, lm_kwargs, signature, progress):
                with _noted(watch):
                    [answers[index]] = await bound(watched, asked, *call)
        return answers

    def _again(
        self,
        watch: _Watch,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        progress: StreamProgress,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields which candidate to ask for again, with which settings, until all fit.

        Nothing is asked for again after a part of it was streamed.
        """
        responses, misfits = watch.responses, watch.misfits
        for index, error in sorted(misfits.items()):
            seed = _seed(responses[index] if index < len(responses) else None)
            failed, attempts = error, 1
            while attempts < ATTEMPTS and not progress.emitted:
                watch.begin()
                yield index, _settings_again(lm, lm_kwargs, seed, attempts)
                attempts += 1
                if not watch.misfits:
                    break
                if _is_misfit(watch.misfits[0]):
                    failed = watch.misfits[0]
            else:
                reason = failed.__cause__ or failed.__context__
                tries = "" if attempts == 1 else f"\n{attempts} answers were tried."
                raise InvalidValueError(
                    adapter_name=type(self).__name__,
                    signature=signature,
                    lm_response=failed.lm_response,
                    message=f"{reason if isinstance(reason, Misfit) else _message(failed)}{tries}",
                    parsed_result=failed.parsed_result,
                ) from reason

    def _checked(
        self, signature: type[Signature], answers: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Answers whose values are all checked against the constraints of their fields."""
        if self.parse_checks_constraints:
            return answers
        try:
            return [constrained_values(signature.output_fields, answer) for answer in answers]
        except Misfit as misfit:
            raise AdapterParseError(
                adapter_name=type(self).__name__,
                signature=signature,
                lm_response=str(answers),
                message=str(misfit),
            ) from misfit

    def _call_preprocess(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        inputs: dict[str, Any],
    ) -> type[Signature]:
        processed: type[Signature] = super()._call_preprocess(lm, lm_kwargs, signature, inputs)
        watch = _watch.get()
        if watch is not None:
            watch.grammar = self._bind(lm, lm_kwargs, processed, inputs, watch.demos)
        predict = dspy.settings.caller_predict
        if predict is not None:
            is_bound = watch is not None and watch.grammar is not None
            _bound_predicts[predict] = processed if is_bound else None
        return processed

    def _call_postprocess(
        self,
        processed_signature: type[Signature],
        original_signature: type[Signature],
        outputs: list[dict[str, Any] | str],
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        postprocess = super()._call_postprocess

        def read(output: dict[str, Any] | str) -> dict[str, Any]:
            if not processed_signature.output_fields:
                output = _with_text(output)  # if calls are allowed, there may be none
            try:
                [answer] = postprocess(
                    processed_signature, original_signature, [output], lm, lm_kwargs
                )
            except AdapterParseError:
                raise
            except Exception as error:  # of DSPy's own parser, or of a validator of the user's
                raise self._unreadable(processed_signature, str(output), error) from error
            return dict(answer)

        watch = _watch.get()
        if watch is None:
            return [read(output) for output in outputs]
        self._require_whole(watch, outputs, processed_signature, {**lm.kwargs, **lm_kwargs})
        answers = []
        for index, output in enumerate(outputs):
            try:
                [answer] = self._checked(original_signature, [read(output)])
            except AdapterParseError as error:
                if not _is_misfit(error):
                    raise
                watch.misfits[index], answer = error, {}
            answers.append(answer)
        return answers

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """Return the output fields in a model's answer; a signature without fields has none.

        Raises:
            AdapterParseError: the answer could not be read.
        """
        if not signature.output_fields:
            return {}
        try:
            parsed: dict[str, Any] = super().parse(signature, completion)
        except AdapterParseError:
            raise
        except Exception as error:  # of DSPy's own parser, or of a validator of the user's
            raise self._unreadable(signature, completion, error) from error
        return parsed

    def _unreadable(
        self, signature: type[Signature], text: str, error: Exception
    ) -> AdapterParseError:
        return AdapterParseError(
            adapter_name=type(self).__name__,
            signature=signature,
            lm_response=text,
            message=f"reading the answer failed: {type(error).__name__}: {error}",
        )

    def _require_whole(
        self,
        watch: _Watch,
        outputs: list[dict[str, Any] | str],
        signature: type[Signature],
        asked: Mapping[str, Any],
    ) -> None:
        """Refuse an answer that was cut off before its last field or within a typed one."""
        for output, response in zip(outputs, watch.responses, strict=False):
            if getattr(response, "finish_reason", "") != "length":
                continue
            text = ((output["text"] if isinstance(output, dict) else output) or "").lstrip()
            limit = f"max_tokens={asked.get('max_tokens')}, or where the context was full,"
            if not text and _thoughts(response):
                message = (
                    f"The model thought until it was cut off at {limit} and wrote no answer. Bound "
                    'its thoughts with metadata={"llamacpp": {"reasoning_budget_tokens": …}}, or '
                    "turn them off with reasoning_effort='off', or raise max_tokens."
                )
            elif watch.grammar is None or self._is_in_last_text(text, watch.grammar, signature):
                continue
            else:
                message = (
                    f"The answer was cut off at {limit} before its last field was complete. Raise "
                    "max_tokens (or the model's context_length), or ask for less."
                )
            raise CutAnswerError(
                adapter_name=type(self).__name__,
                signature=signature,
                lm_response=text,
                message=message,
            )

    def _is_in_last_text(
        self, text: str, grammar: AnswerGrammar, signature: type[Signature]
    ) -> bool:
        """Whether a text reaches into a last field of free text, which may end anywhere."""
        begin = grammar.last_text
        return (
            begin is not None and re.search(f"^{re.escape(begin)}", text, re.MULTILINE) is not None
        )

    def _known_of_fields(
        self, signature: type[Signature], demos: list[dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Attributes of the grammar's fields of which more is known than their types say."""
        return {}

    def _calls_schema(self, inputs: Mapping[str, Any], demos: list[dict[str, Any]]) -> str | None:
        """The schema of calls that are written as a field, as JSON; None for what DSPy reads."""
        return calls_schema(inputs)

    def _settings_of_bound(self) -> Mapping[str, Any]:
        """llama.cpp's settings for an answer that follows the grammar, where a call has none."""
        return {}

    def _bind(
        self,
        lm: BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        inputs: Mapping[str, Any],
        demos: list[dict[str, Any]],
    ) -> AnswerGrammar | None:
        """Constrain answers to the adapter's form, unless something else constrains them."""
        asked = {**lm.kwargs, **lm_kwargs}
        metadata = asked.get("metadata") or {}
        settings = metadata.get("llamacpp") or {} if isinstance(metadata, Mapping) else None
        if asked.get("tools") and isinstance(self, JSONAdapter):
            self._prepare_response_format(lm, lm_kwargs, signature)
        if asked.get("tools") or asked.get("response_format"):
            return None
        if not isinstance(settings, Mapping) or "grammar" in settings:
            return None
        grammar = self._answer_grammar(signature, inputs, demos)
        if grammar is not None:
            bound = {**self._settings_of_bound(), **settings, "grammar": grammar.gbnf}
            lm_kwargs["metadata"] = {**metadata, "llamacpp": bound}
        return grammar

    def _answer_grammar(
        self,
        signature: type[Signature],
        inputs: Mapping[str, Any],
        demos: list[dict[str, Any]],
    ) -> AnswerGrammar | None:
        """The grammar of a call's answers. Calls written as a field may call only known tools."""
        known = self._known_of_fields(signature, demos)
        calls = [
            name for name, one in signature.output_fields.items() if is_of_calls(one.annotation)
        ]

        def of_calls(schema: str | None) -> dict[str, dict[str, Any]]:
            made = {}
            for name in calls:
                optional = annotation_allows_none(signature.output_fields[name].annotation)
                given = schema if schema is None or not optional else or_null(schema)
                made[name] = {**known.get(name, {}), "schema": given}
            return made

        if not calls:
            return answer_grammar(signature, self.form, known)
        try:
            schema = self._calls_schema(inputs, demos)
            return answer_grammar(signature, self.form, {**known, **of_calls(schema)})
        except SchemaError:  # of a tool whose schema no grammar can follow
            by_type = {
                name: {key: value for key, value in more.items() if key != "by_value"}
                for name, more in {**known, **of_calls(self._calls_schema({}, demos))}.items()
            }
            return answer_grammar(signature, self.form, by_type)


def _with_text(output: dict[str, Any] | str) -> dict[str, Any] | str:
    """An answer that DSPy does not take for an empty one."""
    if isinstance(output, str):
        return output or "(no text)"
    return {**output, "text": output.get("text") or "(no text)"}


def _is_ours(lm: BaseLM) -> bool:
    return isinstance(getattr(lm, "engine", None), LlamaCppEngine)


@contextmanager
def _watched(lm: BaseLM, demos: list[dict[str, Any]]) -> Iterator[tuple[BaseLM, _Watch]]:
    """A copy of an lm that keeps its responses, which DSPy records only in histories."""
    watch = _Watch(demos)
    unrecorded = dspy.settings.disable_history

    def update_history(entry: dict[str, Any]) -> None:
        responses = entry["response"]
        watch.responses += responses if isinstance(responses, tuple) else (responses,)
        if not unrecorded:
            lm.update_history(entry)

    watched = lm.copy()
    watched.history = lm.history
    watched.callbacks = lm.callbacks
    watched.update_history = update_history
    with assigned(_watch, watch), dspy.context(disable_history=False):
        yield watched, watch


@contextmanager
def _noted(watch: _Watch) -> Iterator[None]:
    """Record an error of one attempt among several."""
    try:
        yield
    except AdapterParseError as error:
        watch.misfits[0] = error


def _is_misfit(error: AdapterParseError) -> bool:
    """Whether a text had the form of an answer, and a value in it was refused."""
    reason = error.__cause__ or error.__context__
    # A SyntaxError is that of XML, and an AdapterParseError that of another form.
    return isinstance(reason, Exception) and not isinstance(
        reason, (SyntaxError, AdapterParseError)
    )


def _thoughts(response: Any) -> tuple[Any, ...]:
    message = getattr(response, "message", None)
    return () if message is None else tuple(message.parts_of(ThinkingPart))


def _message(error: AdapterParseError) -> str:
    """An error's own message, without what DSPy adds to it."""
    return str(error).partition(f"\n\nAdapter {error.adapter_name} failed")[0]


def _seed(response: Any) -> int:
    """The seed of a response, drawn or given."""
    provider_data = getattr(response, "provider_data", None) or {}
    return int(provider_data.get("seed", 0))


def _settings_again(
    lm: BaseLM, lm_kwargs: dict[str, Any], seed: int, attempt: int
) -> dict[str, Any]:
    """The settings of another attempt, with a seed that is derived from the first one's.

    DSPy's cache distinguishes the attempts by it, and the same call makes the same attempts.
    """
    digest = hashlib.sha256(f"{seed} {attempt}".encode()).digest()
    asked = {**lm_kwargs, "n": 1, "seed": int.from_bytes(digest[:4], "big") % (MAX_SEED + 1)}
    engine: Any = getattr(lm, "engine", None)
    temperature = {**lm.kwargs, **lm_kwargs}.get("temperature")
    if temperature is None:
        temperature = engine.config.temperature
    if temperature == 0:
        asked["temperature"] = _TEMPERATURE_AGAIN
    return asked
