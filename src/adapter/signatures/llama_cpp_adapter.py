"""The DSPy adapter of a loaded model."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy
from dspy import LM
from dspy.adapters import Adapter, JSONAdapter
from dspy.clients.base_lm import BaseLM
from dspy.clients.call_context import adapter_fallback_scope
from dspy.signatures import Signature
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from adapter.context_variables import assigned
from adapter.engine.config import OPENAI_SETTINGS, LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.language_model import language_model
from adapter.errors import ConfigurationError
from adapter.signatures.answer_grammar import FIELD_LINES, AnswerGrammar
from adapter.signatures.bound_answers import (
    BoundAnswers,
    CutAnswerError,
    InvalidValueError,
    is_being_bound,
)
from adapter.signatures.constrained_adapters import constrained
from adapter.signatures.decisions import DecisionPlan, decisions_in
from adapter.signatures.field_lines import input_lines, output_lines
from adapter.signatures.field_markers import FieldMarkers
from adapter.signatures.formatting import demonstrated, system_message
from adapter.signatures.known_tools import (
    bare_calls_schema,
    calling_agent,
    calls_schema,
    step_schemas,
)
from adapter.signatures.long_lists import ShortenedLists
from adapter.signatures.one_body import Answers, Ask, blocking, completed
from adapter.signatures.paragraphs import (
    below_their_names,
    has_line_breaks,
    known_of_texts,
)
from adapter.signatures.parsing import parse_completion
from adapter.signatures.repeated_calls import KEPT, RepeatedCall
from adapter.signatures.values import is_of_calls

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel

GENERATION_SETTINGS = OPENAI_SETTINGS | {"n", "top_logprobs", "metadata", "rollout_id"}
"""What a call takes over from the settings of the dspy.LM that it was meant for."""


MAX_THOUGHT = 600
"""The most characters of a dspy.ReAct's thought, which is one line unless a demonstration has more.
"""


_below: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
    "below", default=frozenset()
)  # the outputs that begin on the line below their names, while a call is formatted


class _Beginning(NamedTuple):
    """The messages before the inputs of a call, and the outputs below their names in them."""

    system: str
    demos: tuple[dict[str, Any], ...]
    below: frozenset[str]


_beginning: contextvars.ContextVar[_Beginning | None] = contextvars.ContextVar(
    "beginning", default=None
)  # what is known of the call that is being formatted


class _Ways(NamedTuple):
    """How a call is answered: in the adapter's own form, in JSON, or by the lm itself."""

    in_lines: Ask
    in_json: Ask
    lm: Ask


class LlamaCppAdapter(ShortenedLists, BoundAnswers, Adapter):
    """Formats signatures for a small local model, runs them on it, and parses its answers.

    Use it with its own language model, because DSPy needs one::

        adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig(loaded.name))
        dspy.configure(lm=adapter.lm, adapter=adapter)

    Without an lm the adapter only formats and parses, as DSPy's own adapters do.

    If a field does not allow its value, the model is asked again, with seeds derived from the first
    one. If the last attempt fails, the call raises InvalidValueError. The model is not asked again
    after a part of the answer was streamed.

    Outputs of dspy.experimental's types Choice, Score and Noul get probabilities that are measured
    from the model's logits, after the other outputs were generated; see docs/probabilities.md.

    Args:
        lm: the language model that ``from_loaded_model`` makes.
        route_other_lms: which of the calls with another lm this adapter's model answers, under that
            lm's history, callbacks, cache switch, retries and generation settings. None: calls with
            the lm that DSPy is configured with, or a copy of it; all calls if none is configured.
            An optimizer's teacher or prompt model is another lm, and answers for itself. True: all
            calls. False: none.
        use_json_adapter_fallback: ask once more through DSPy's JSONAdapter if a text does not have
            the form of an answer, as ChatAdapter does. That answer follows a grammar and is checked
            as well. A model without a chat template is asked this way from the start if there is no
            demonstration, no stream and no tool, because it follows JSON better than any other
            form.
        pick_by_likelihood: answer outputs of type bool, Literal and Enum with their likeliest
            value, instead of sampling one.
        use_native_function_calling: use the model's own format for functions, if its chat template
            has one, for an input of dspy.Tool and an output of dspy.ToolCalls. A grammar makes sure
            that calls are valid. Otherwise calls are ordinary fields.
        end_texts_at_blank_line: end the text of an output that is one of several at a blank line,
            because a small model seldom finds another end. Reasoning ends there too, and does not
            count as one of several. A text may have blank lines if its name or description asks
            for something long (an essay, paragraphs, steps), or if a demonstration has one.
        end_repeated_texts: end a text whose line repeats the same words over and over, as a small
            model would do until max_tokens. Code, and lines that are alike, are not ended.
        callbacks: DSPy's callbacks.
    """

    form = FIELD_LINES  #: How an answer is written: a line for each field.
    parse_checks_constraints = True  #: Whether parse() refuses values that a field does not allow.

    def __init__(
        self,
        lm: LM | None = None,
        *,
        route_other_lms: bool | None = None,
        use_json_adapter_fallback: bool = True,
        pick_by_likelihood: bool = False,
        use_native_function_calling: bool = True,
        end_texts_at_blank_line: bool = True,
        end_repeated_texts: bool = True,
        callbacks: list[BaseCallback] | None = None,
    ) -> None:
        super().__init__(
            callbacks=callbacks, use_native_function_calling=use_native_function_calling
        )
        self._lm = lm
        self.route_other_lms = route_other_lms
        self.use_json_adapter_fallback = use_json_adapter_fallback
        self.pick_by_likelihood = pick_by_likelihood
        self.end_texts_at_blank_line = end_texts_at_blank_line
        self.end_repeated_texts = end_repeated_texts

    @classmethod
    def from_loaded_model(
        cls,
        loaded: LoadedModel,
        config: LlamaCppConfig,
        *,
        route_other_lms: bool | None = None,
        use_json_adapter_fallback: bool = True,
        pick_by_likelihood: bool = False,
        use_native_function_calling: bool = True,
        end_texts_at_blank_line: bool = True,
        end_repeated_texts: bool = True,
        callbacks: list[BaseCallback] | None = None,
    ) -> LlamaCppAdapter:
        """Build the adapter of a loaded model, with its lm.

        Args:
            loaded: the model.
            config: its settings.
            route_other_lms: as for the class, like all that follow.

        Raises:
            ConfigurationError: the config is for another model, or asks for more context than the
                model was loaded with.
        """
        return cls(
            language_model(loaded, config),
            route_other_lms=route_other_lms,
            use_json_adapter_fallback=use_json_adapter_fallback,
            pick_by_likelihood=pick_by_likelihood,
            use_native_function_calling=use_native_function_calling,
            end_texts_at_blank_line=end_texts_at_blank_line,
            end_repeated_texts=end_repeated_texts,
            callbacks=callbacks,
        )

    @property
    def lm(self) -> LM:
        """The dspy.LM of the model.

        Its model string contains the model's content and settings, so DSPy's cache never mixes up
        two models.

        Raises:
            ConfigurationError: the adapter was made without one.
        """
        if self._lm is None:
            raise ConfigurationError(
                "this LlamaCppAdapter has no lm of its own; build it with "
                "LlamaCppAdapter.from_loaded_model, or pass an lm to each call"
            )
        return self._lm

    def __call__(
        self,
        lm: BaseLM | None,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> Answers:
        """Format the call, run it on the model it belongs to, and parse every candidate.

        Raises:
            AdapterParseError: an answer without the output fields.
            LMError: DSPy's own errors, for what the model could not do.
        """
        routed = self._route(lm)
        in_json = blocking(lambda *asked: self._json_adapter()(*asked))
        ways = _Ways(blocking(super().__call__), in_json, blocking(routed))
        return completed(self._answer_call(ways, routed, lm_kwargs, signature, demos, inputs))

    async def acall(
        self,
        lm: BaseLM | None,
        lm_kwargs: dict[str, Any],
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> Answers:
        """Do the same without blocking the event loop."""
        routed = self._route(lm)
        ways = _Ways(super().acall, lambda *asked: self._json_adapter().acall(*asked), routed.acall)
        return await self._answer_call(ways, routed, lm_kwargs, signature, demos, inputs)

    async def _answer_call(
        self, ways: _Ways, lm: BaseLM, lm_kwargs: dict[str, Any], *call: Any
    ) -> Answers:
        """Generate the fields that are to be generated, and measure the decisions after them."""
        signature, demos, inputs = call
        decisions = decisions_in(signature, lm, pick_by_likelihood=self.pick_by_likelihood)
        if not decisions:
            return await self._generate(ways, lm, lm_kwargs, *call)
        plan = DecisionPlan.of(self, signature, decisions, demos, inputs)
        candidates = plan.nothing_written(lm, lm_kwargs)
        if plan.rest.output_fields:
            candidates = await self._generate(ways, lm, lm_kwargs, plan.rest, demos, inputs)
        with dspy.context(send_stream=None):
            return [
                plan.values(written, await ways.lm(plan.request(lm, written)))
                for written in candidates
            ]

    async def _generate(
        self, ways: _Ways, lm: BaseLM, lm_kwargs: dict[str, Any], *call: Any
    ) -> Answers:
        signature, demos, _ = call
        if self._asks_in_json(lm, signature, demos):
            in_json: Answers = await ways.in_json(lm, lm_kwargs, *call)
            return in_json
        with adapter_fallback_scope() as progress:
            try:
                answers: Answers = await ways.in_lines(lm, dict(lm_kwargs), *call)
            except (CutAnswerError, InvalidValueError):
                raise  # another form would be cut off or refused, too
            except AdapterParseError:
                if progress.emitted or not self.use_json_adapter_fallback:
                    raise
                answers = await ways.in_json(lm, lm_kwargs, *call)
        return answers

    def _asks_in_json(
        self, lm: BaseLM, signature: type[Signature], demos: list[dict[str, Any]]
    ) -> bool:
        """Whether a call is better made in JSON from the start.

        A model without a chat template was not trained to follow instructions, but has read much
        JSON. With demonstrations it follows our own form as well, which streams and agents need.
        """
        engine = getattr(lm, "engine", None)
        if not isinstance(engine, LlamaCppEngine) or engine.loaded.has_chat_template or demos:
            return False
        if not self.use_json_adapter_fallback or dspy.settings.send_stream is not None:
            return False
        calls = any(is_of_calls(field.annotation) for field in signature.output_fields.values())
        return not calls and calling_agent(signature) is None

    def _json_adapter(self) -> JSONAdapter:
        return constrained(
            JSONAdapter(use_native_function_calling=self.use_native_function_calling)
        )

    def __repr__(self) -> str:
        if "_lm" not in vars(self):
            return "<LlamaCppAdapter, which could not be made>"
        own = "without an lm" if self._lm is None else f"of {self._lm!r}"
        return f"<LlamaCppAdapter {own}>"

    def _route(self, lm: BaseLM | None) -> BaseLM:
        """Return the language model that answers a call made with `lm`."""
        _require_own_listener()
        if lm is None:
            return self.lm
        if self._lm is None or getattr(lm, "engine", None) is self._lm.engine:
            return lm
        if not self._takes_over(lm):
            return lm
        asked = dict(lm.kwargs)
        # How dspy.LM keeps max_tokens for OpenAI's reasoning models.
        asked.setdefault("max_tokens", asked.get("max_completion_tokens"))
        routed: LM = self._lm.copy(
            cache=lm.cache,
            num_retries=lm.num_retries,
            **{name: asked[name] for name in GENERATION_SETTINGS if asked.get(name) is not None},
        )
        routed.history = lm.history
        routed.callbacks = lm.callbacks
        return routed

    def _takes_over(self, lm: BaseLM) -> bool:
        """Whether this adapter's model answers a call that was made with another lm."""
        if self.route_other_lms is not None:
            return self.route_other_lms
        # An optimizer sets its teacher's lm with dspy.context, which is not visible in an empty
        # context.
        configured = contextvars.Context().run(lambda: dspy.settings.lm)
        return configured is None or _is_copy(lm, configured)

    def format(
        self,
        signature: type[Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the messages of a call."""
        call = RepeatedCall.of(signature, demos) if type(self) is LlamaCppAdapter else None
        beginning = None if call is None else _kept_beginning(call)
        below = below_their_names(signature, demos) if beginning is None else beginning.below
        with demonstrated(bool(demos)), assigned(_below, below), assigned(_beginning, beginning):
            messages: list[dict[str, Any]] = super().format(signature, demos, inputs)
        return messages

    def format_system_message(self, signature: type[Signature]) -> str:
        """Return the instructions and the form of the answer."""
        beginning = _beginning.get()
        return system_message(signature) if beginning is None else beginning.system

    def format_demos(
        self, signature: type[Signature], demos: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the demonstrations as turns of the conversation."""
        beginning = _beginning.get()
        if beginning is not None:
            return [dict(message) for message in beginning.demos]
        messages: list[dict[str, Any]] = super().format_demos(signature, demos)
        return messages

    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return the inputs as `field: value` lines.

        Without inputs the user asks for the outputs, since a conversation needs a user's message.
        """
        lines = input_lines(signature, inputs)
        text = "\n\n".join(part for part in (prefix, lines, suffix) if part)
        return text or f"Write {', '.join(signature.output_fields)}."

    def format_assistant_message_content(
        self,
        signature: type[Signature],
        outputs: dict[str, Any],
        missing_field_message: str | None = None,
    ) -> str:
        """Return the outputs as `field: value` lines."""
        return output_lines(
            signature.output_fields, outputs, missing_field_message, below=_below.get()
        )

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """Return the output fields in a model's answer; see adapter.signatures.parsing.

        Raises:
            AdapterParseError: no strategy finds all of them.
        """
        return parse_completion(signature, completion, is_bound=is_being_bound(signature))

    def _known_of_fields(
        self, signature: type[Signature], demos: list[dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        agent = calling_agent(signature)
        call = RepeatedCall.of(signature, demos) if agent is None else None
        if call is not None:
            return _kept_known(call, self.end_texts_at_blank_line)
        known = known_of_texts(signature, demos, paragraphs=self.end_texts_at_blank_line)
        if agent is not None:
            for name in ("next_thought", "reasoning"):
                if name in known and not has_line_breaks(name, demos):
                    known[name]["characters"] = MAX_THOUGHT
            if steps := step_schemas(agent, signature):
                known["next_tool_args"]["by_value"] = steps
        return known

    def _calls_schema(self, inputs: Mapping[str, Any], demos: list[dict[str, Any]]) -> str | None:
        return calls_schema(inputs) if demos else bare_calls_schema(inputs)

    def _settings_of_bound(self) -> Mapping[str, Any]:
        return {"end_repetitions": True} if self.end_repeated_texts else {}

    def _is_in_last_text(
        self, text: str, grammar: AnswerGrammar, signature: type[Signature]
    ) -> bool:
        markers = FieldMarkers(signature, is_bound=True)
        markers.push(text)
        return grammar.last_text is not None and [*signature.output_fields][-1] in markers.values()


@lru_cache(KEPT)
def _kept_beginning(call: RepeatedCall) -> _Beginning:
    signature, demos = call.signature, call.demos
    below = below_their_names(signature, demos)
    with demonstrated(bool(demos)), assigned(_below, below), assigned(_beginning, None):
        messages = LlamaCppAdapter().format_demos(signature, demos)
        return _Beginning(system_message(signature), tuple(messages), below)


@lru_cache(KEPT)
def _kept_known(call: RepeatedCall, paragraphs: bool) -> dict[str, dict[str, Any]]:
    return known_of_texts(call.signature, call.demos, paragraphs=paragraphs)


def _require_own_listener() -> None:
    """Refuse a call that DSPy's own listener waits for: it supports only DSPy's adapters."""
    predict = dspy.settings.caller_predict
    if dspy.settings.send_stream is None or predict is None:
        return
    for listener in dspy.settings.stream_listeners or []:
        if listener.predict is predict and not hasattr(listener, "reads_field_lines"):
            raise ConfigurationError(
                f"{type(listener).__name__} does not know the form of LlamaCppAdapter's answers; "
                f"use adapter.LlamaCppStreamListener({listener.signature_field_name!r}) instead"
            )


def _is_copy(lm: BaseLM, original: BaseLM) -> bool:
    """Whether two lms are the same, or differ only in their settings."""
    same_engine = getattr(lm, "engine", None) == getattr(original, "engine", None)
    return lm is original or (lm.model == original.model and same_engine)
