"""The engines that dspy.LM runs: lm15 requests in, lm15 responses out, one attempt each.

DSPy owns the cache, retries, n, history and callbacks. An engine holds a loaded model that it does
not own, and hands every call to the model's generator.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dspy.lm15 import (
    Adaptation,
    Request,
    Response,
    StreamDeltaEvent,
    StreamEndEvent,
    StreamStartEvent,
    ToolCallPart,
    UnsupportedFeatureError,
)

from adapter.engine.answer import (
    AnswerStream,
    Piece,
    finish_reason_of,
    logprobs_of,
    message_of,
    usage_of,
)
from adapter.engine.call_settings import call_settings, drawn_seed, require_reportable
from adapter.engine.config import OPENAI_SETTINGS, LlamaCppConfig
from adapter.engine.given_up import given_up
from adapter.engine.judgment import (
    Judgment,
    judgment_response,
    judgments_to_measure,
    measured,
    place,
    unmeasured,
    unused_settings,
)
from adapter.engine.lm15_errors import PROVIDER, lm15_errors
from adapter.engine.model_names import engine_name, portable_name, require_known
from adapter.engine.prompt import build_prompt, refuse_grammar
from adapter.engine.quota import Quota, RequestRate, TokenBudget
from adapter.engine.rollouts import current_rollout
from adapter.engine.shortened_answers import Shortened, shortened, too_few
from adapter.engine.steps import Steps, Waits, outcome_of, parts_of
from adapter.engine.template_options import template_options
from adapter.errors import (
    ConfigurationError,
    ContextTooLongError,
    InvalidParameterError,
    ModelNotLoadedError,
    RequestCancelledError,
    RequestTimeoutError,
    TokenBudgetExhaustedError,
)
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.generation.scoring import (
    ScoringRequest,
    ScoringResult,
    longest_continuation,
    n_trie_tokens,
)

if TYPE_CHECKING:
    import pyllama
    from adapter.models.lease import Lease
    from adapter.models.loaded import LoadedModel

StreamEvent: TypeAlias = StreamStartEvent | StreamDeltaEvent | StreamEndEvent

_engines: weakref.WeakValueDictionary[str, LlamaCppEngine] = weakref.WeakValueDictionary()
"""The live engines by model string. A saved program finds its model again here."""


class LlamaCppEngine:
    """Answers lm15 requests with a loaded model. Any number of threads may call it at once.

    Args:
        loaded: the model.
        config: its settings.

    Raises:
        ConfigurationError: the config is for another model.
        InvalidParameterError: the config asks for more context than the model was loaded with.
    """

    # Read by DSPy, like the two hints that depend on the model: what an adapter may ask for.
    supports_response_schema = True
    supported_params = OPENAI_SETTINGS

    #: Read by LlamaCppAdapter: it answers requests with config.probabilities.
    measures_probabilities = True

    def __init__(self, loaded: LoadedModel, config: LlamaCppConfig) -> None:
        if config.model_name != loaded.name:
            raise ConfigurationError(
                f"the config is for model {config.model_name!r} and the loaded model is "
                f"{loaded.name!r}; load the one that the config names"
            )
        if config.context_length is not None and config.context_length > loaded.context_length:
            raise InvalidParameterError(
                "context_length",
                config.context_length,
                f"at most {loaded.context_length}, what {loaded.name!r} was loaded with",
            )
        #: The model.
        self.loaded = loaded
        #: Settings for requests that do not set them.
        self.config = replace(config)  # with template variables that nobody else can change
        #: Tokens that a prompt and its answer may have together.
        self.context_length = config.context_length or loaded.context_length
        #: The name that requests give, which DSPy's cache knows the model by.
        self.model = engine_name(loaded, config)
        self._portable = portable_name(loaded, config)
        #: Whether the chat template has a format for calls of functions.
        self.supports_function_calling = loaded.calls_tools
        #: Whether the model may think before it answers.
        self.supports_reasoning = loaded.capabilities["supports_thinking"]
        #: The tokens that were used of the config's budget.
        self.budget = TokenBudget(config.token_budget_limit)
        self._generator = loaded.generators[config.execution]
        self._quota = Quota(self.budget, RequestRate(config.requests_per_minute))
        self._closed = False
        _engines[self.model] = self

    def complete(self, request: Request) -> Response:
        """Answer a request."""
        response = self.complete_unless(given_up(), request)
        if response is None:
            with self.errors():
                raise RequestCancelledError
        current_rollout().index += 1
        return response

    def complete_unless(
        self, cancelled: threading.Event | None, request: Request
    ) -> Response | None:
        """Answer a request, or stop within a step and return None once `cancelled` is set."""
        with self.errors(), closing(parts_of(self.answer(request, cancelled, wait=True))) as parts:
            return next(parts, None)

    def answer(
        self, request: Request, cancelled: threading.Event | None = None, *, wait: bool = False
    ) -> Steps[Response]:
        """Answer a request in steps, the last of which is the response.

        Args:
            cancelled: once it is set they end within a step, without a response.
            wait: have the calling thread wait, instead of giving it something to wait for.
        """
        if _is_set(cancelled):
            return
        with self._leased(request) as model:
            judgments, noted = judgments_to_measure(request, self.loaded)
            if judgments:
                response = yield from self._judge(cancelled, wait, request, model, judgments)
            else:
                response = yield from self._generate(cancelled, wait, request, model, noted)
        if response is not None:
            yield response

    def _generate(
        self,
        cancelled: threading.Event | None,
        wait: bool,
        request: Request,
        model: pyllama.Model,
        noted: tuple[Adaptation, ...],
    ) -> Waits[Response | None]:
        with (
            self._admitted(request, model, noted, streamed=False) as call,
            closing(self._generator.submit(call.request, cancelled)) as pending,
        ):
            while (piece := (yield from outcome_of(pending, wait=wait))) is not None:
                if isinstance(piece, GenerationResult):
                    call.settle(piece)
                    return self._response(request, call, piece)
        return None

    def _judge(
        self,
        cancelled: threading.Event | None,
        wait: bool,
        request: Request,
        model: pyllama.Model,
        judgments: Mapping[str, Judgment],
    ) -> Waits[Response | None]:
        """Generate the part of the answer that is not measured, then measure the rest."""
        arrived = time.monotonic()
        settings, ignored = call_settings(request, self.config, self.loaded.n_vocab)
        refuse_grammar(request, settings.grammar)
        rest = unmeasured(request, judgments)
        written = None
        if rest is not None:
            written = yield from self._generate(cancelled, wait, rest, model, ())
            if written is None or written.finish_reason != "stop":
                return written
        bare = replace(request.config, reasoning=None)  # unused_settings() reports it
        options, noted = template_options(bare, self.config.chat_template_kwargs, self.loaded)
        placement = place(request, self.loaded, judgments, options)
        n_longest = len(placement.request.prompt) + longest_continuation(placement.request)
        if n_longest > self.context_length:
            raise ContextTooLongError(n_longest, self.context_length)
        n_tokens = len(placement.request.prompt) + n_trie_tokens(placement.request.continuations)
        taken = placement.request.taken
        with self._quota.charged(taken, n_tokens - 1, 1, is_first=written is None):
            result = yield from self._score(placement.request, cancelled, wait, arrived, written)
            if result is None:
                return None
            taken.prompt, taken.answer = result.prompt_tokens, result.n_computed
        provider_data = {"device": self.loaded.device}
        adaptations = ignored + noted + unused_settings(request)
        if written is not None:
            provider_data, adaptations = dict(written.provider_data or {}), written.adaptations
        return judgment_response(
            request, measured(placement, result), result, written, provider_data, adaptations
        )

    def _score(
        self,
        request: ScoringRequest,
        cancelled: threading.Event | None,
        wait: bool,
        arrived: float,
        written: Response | None,
    ) -> Waits[ScoringResult | None]:
        """Measure within the time that is left to a request.

        Args:
            arrived: when the request arrived, as ``time.monotonic`` counts.
            written: the answer so far, if a part of it was generated.
        """
        timeout = self.config.timeout_secs
        if timeout is not None:
            left = max(0.0, timeout - (time.monotonic() - arrived))
            request = replace(request, timeout=left)
        try:
            with closing(self._generator.submit_scoring(request, cancelled)) as pending:
                return (yield from outcome_of(pending, wait=wait))
        except RequestTimeoutError as error:
            n_tokens = 0 if written is None else written.usage.output_tokens
            raise RequestTimeoutError(timeout or 0.0, n_tokens or 0) from error

    def stream(
        self, request: Request, cancelled: threading.Event | None = None
    ) -> Iterator[StreamEvent]:
        """Answer a request piece by piece.

        Closing the iterator stops the computation. Once `cancelled` is set it stops within a
        step, and the iterator ends.
        """
        jobs = given_up() if cancelled is None else None
        with self.errors():
            yield from parts_of(self.streamed_answer(request, cancelled or jobs, wait=True))
            if _is_set(jobs):
                raise RequestCancelledError

    def streamed_answer(
        self, request: Request, cancelled: threading.Event | None = None, *, wait: bool = False
    ) -> Steps[StreamEvent]:
        """Answer a request in steps, with the events of ``stream`` among them."""
        if not self.config.enable_streaming:
            raise UnsupportedFeatureError(
                "streaming is switched off: the config has enable_streaming=False",
                feature="stream",
                provider=PROVIDER,
            )
        if _is_set(cancelled):
            return
        lease = self._leased(request)
        with lease as model, self._streamed(request, model) as call:
            yield StreamStartEvent(model=request.model, adaptations=call.adaptations)
            lease.move_here()  # another thread may take the next step
            answer = AnswerStream(call.parser, call.piece)
            with closing(self._generator.submit(call.request, cancelled)) as pending:
                while (piece := (yield from outcome_of(pending, wait=wait))) is not None:
                    if isinstance(piece, GenerationResult):
                        call.settle(piece)
                        current_rollout().index += 1
                        yield from answer.finish(piece)
                        yield StreamEndEvent(
                            finish_reason_of(piece, called=answer.called),
                            usage_of(piece, call.parser, call.piece),
                            self._provider_data(call, shortened(call.request, piece)),
                        )
                        return
                    yield from answer.push(piece)
                    lease.move_here()

    def close(self) -> None:
        """Refuse further calls. The model stays loaded: it belongs to its pool."""
        self._closed = True
        if _engines.get(self.model) is self:
            del _engines[self.model]

    def dump_state(self) -> dict[str, str]:
        """Return what load_state needs to find this engine again."""
        return {"model": self.model, "portable": self._portable}

    @classmethod
    def load_state(cls, state: dict[str, str]) -> LlamaCppEngine:
        """Find the live engine that a program was saved with.

        A program from another machine gets an engine with the same file and settings.

        Raises:
            ModelNotLoadedError: this process has no such engine.
        """
        portable = state.get("portable")
        alike = (engine for engine in list(_engines.values()) if engine._portable == portable)
        engine = _engines.get(state["model"]) or next(alike, None)
        if engine is None:
            raise ModelNotLoadedError(
                state["model"],
                "load the same file and build its LlamaCppAdapter with the same config before "
                "loading the program, or save the program without an lm",
            )
        return engine

    def __repr__(self) -> str:
        if "_closed" not in vars(self):
            return "<LlamaCppEngine, which could not be made>"
        state = " (closed)" if self._closed else ""
        return f"<LlamaCppEngine {self.model!r} on {self.loaded.device}{state}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaCppEngine:
        # Copies of a program share its model, as they would share a server.
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LlamaCppEngine lives in its process and cannot be pickled; save the program's "
            "state with program.save('program.json') instead"
        )

    def _streamed(self, request: Request, model: pyllama.Model) -> AbstractContextManager[_Call]:
        _, noted = judgments_to_measure(request, self.loaded, streaming=True)
        return self._admitted(request, model, noted, streamed=True)

    def _leased(self, request: Request) -> Lease[pyllama.Model]:
        """The model that a request names, kept in memory for a block."""
        if self._closed:
            raise closed_error(self.loaded)
        require_known(request.model, (self.model,), _engines)
        return self.loaded.lease()

    @contextmanager
    def _admitted(
        self,
        request: Request,
        model: pyllama.Model,
        noted: tuple[Adaptation, ...],
        *,
        streamed: bool,
    ) -> Iterator[_Call]:
        """Turn a request into tokens and settings that fit the context, and charge it for a block.

        The charge is the number of tokens that the request took by the end of the block.
        """
        settings, ignored = call_settings(request, self.config, self.loaded.n_vocab)
        prompt = build_prompt(
            request, self.loaded, settings.grammar, self.config.chat_template_kwargs
        )
        room = self.context_length - len(prompt.tokens)
        if room < 1:
            raise ContextTooLongError(len(prompt.tokens), self.context_length)
        adaptations = ignored + noted + prompt.adaptations
        if settings.logprobs is not None:
            require_reportable(settings.logprobs, settings.max_tokens, room)
        max_tokens = room if settings.max_tokens is None else min(settings.max_tokens, room)
        if settings.max_tokens is not None and max_tokens < settings.max_tokens:
            reason = (
                f"a prompt of {len(prompt.tokens)} tokens leaves that many of {self.context_length}"
            )
            adaptations += (_clamped(reason, settings.max_tokens, max_tokens),)
        asked = GenerationRequest(
            prompt=prompt.tokens,
            max_tokens=max_tokens,
            sampling=settings.sampling,
            seed=drawn_seed(settings.seed),
            stop=settings.stop,
            turn_stops=prompt.stops,
            constraint=prompt.constraint,
            completes=settings.complete_answers,
            ends_repetitions=settings.complete_answers and settings.end_repetitions,
            preserved_tokens=prompt.preserved_tokens,
            logprobs=settings.logprobs,
            reasoning_budget=prompt.reasoning_budget,
            timeout=self.config.timeout_secs,
            streamed=streamed,
        )
        fewest = 0
        if settings.complete_answers and prompt.constraint is not None:
            fewest = self.loaded.fewest_tokens(prompt.constraint)
            if settings.max_tokens is not None and settings.max_tokens < fewest:
                raise too_few(settings.max_tokens, fewest)
            if room < fewest:
                raise ContextTooLongError(len(prompt.tokens), self.context_length, fewest)
        with self._quota.charged(asked.taken, len(prompt.tokens), max_tokens) as granted:
            if granted < max_tokens:
                reason = f"the token budget of {self.budget.limit} leaves that many"
                adaptations += (_clamped(reason, max_tokens, granted),)
                asked = replace(asked, max_tokens=granted)
            if granted < fewest and self.budget.limit is not None:
                raise TokenBudgetExhaustedError(self.budget.limit - granted, self.budget.limit)
            yield _Call(asked, prompt.parser, model.vocab.token_to_piece, adaptations)

    def errors(self) -> AbstractContextManager[None]:
        """Raise whatever fails in a block as one of lm15's errors."""
        return lm15_errors(
            initial_backoff=self.config.initial_backoff_ms / 1000,
            max_backoff=self.config.max_backoff_ms / 1000,
        )

    def _response(self, request: Request, call: _Call, result: GenerationResult) -> Response:
        message = message_of(result, call.parser)
        reports = call.request.logprobs is not None
        ended_early = shortened(call.request, result)
        return Response(
            id=None,
            model=request.model,
            message=message,
            finish_reason=finish_reason_of(result, called=bool(message.parts_of(ToolCallPart))),
            usage=usage_of(result, call.parser, call.piece),
            logprobs=logprobs_of(result.logprobs, call.piece) if reports else None,
            logprobs_complete=result.logprobs_complete,
            provider_data=self._provider_data(call, ended_early),
            adaptations=call.adaptations + ended_early.adaptations,
        )

    def _provider_data(self, call: _Call, ended_early: Shortened) -> dict[str, Any]:
        # Whether drawn or given, the seed repeats this very answer.
        data = {"seed": call.request.seed, "device": self.loaded.device}
        return data | (ended_early.provider_data or {})


@dataclass
class _Call:
    """A request that is ready to be computed, and what had to be changed in it."""

    request: GenerationRequest
    parser: pyllama.ChatParser | None
    piece: Piece
    adaptations: tuple[Adaptation, ...]

    def settle(self, result: GenerationResult) -> None:
        """Charge the request for the tokens that its result counts."""
        taken = self.request.taken
        taken.prompt, taken.answer = result.prompt_tokens, result.completion_tokens


def _is_set(cancelled: threading.Event | None) -> bool:
    return cancelled is not None and cancelled.is_set()


def _clamped(reason: str, asked: int, applied: int) -> Adaptation:
    return Adaptation("config.max_tokens", "clamped", reason, asked=asked, applied=applied)


def closed_error(loaded: LoadedModel) -> ConfigurationError:
    """The error of a call to a closed engine."""
    return ConfigurationError(
        f"the engine of {loaded.name!r} is closed; build a new LlamaCppAdapter for the model"
    )
