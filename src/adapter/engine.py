"""The engines that dspy.LM runs: lm15 requests in, lm15 responses out, one attempt each.

DSPy owns the cache, retries, n, history and callbacks. An engine holds a loaded model it does not
own, and hands every call to the model's generator.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from dspy import lm15
from dspy.lm15 import (
    Adaptation,
    Message,
    Request,
    Response,
    StreamDeltaEvent,
    StreamEndEvent,
    StreamStartEvent,
    TextDelta,
    Usage,
)

from adapter.call_settings import call_settings
from adapter.config import LlamaCppConfig
from adapter.errors import (
    ConfigurationError,
    ContextTooLongError,
    InferenceError,
    InvalidParameterError,
    LlamaCppError,
    ModelNotLoadedError,
    TokenizationError,
)
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.messages import template_messages

if TYPE_CHECKING:
    from adapter.loaded_model import LoadedModel

StreamEvent: TypeAlias = StreamStartEvent | StreamDeltaEvent | StreamEndEvent

MAX_ASYNC_CALLS = 64
"""Async calls in progress at once; more wait. Each holds a thread that mostly sleeps."""

_engines: weakref.WeakValueDictionary[str, LlamaCppEngine] = weakref.WeakValueDictionary()
"""The live engines by model string: where a saved program finds its model again."""


class LlamaCppEngine:
    """Answers lm15 requests with a loaded model. Any number of threads may call it at once.

    `loaded` is the model and `config` says what a request leaves open. Raises ConfigurationError
    when the two do not fit together.
    """

    # Read by DSPy: what an adapter may ask of this engine.
    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = frozenset(
        {
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "seed",
            "stop",
            "frequency_penalty",
            "presence_penalty",
        }
    )

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
        self.loaded = loaded
        self.config = config
        self.context_length = config.context_length or loaded.context_length
        self.model = _model_string(loaded, config)
        self._closed = False
        _engines[self.model] = self

    def complete(self, request: Request) -> Response:
        """Answer a request."""
        with _lm15_errors(), self.loaded.lease():
            call = self._prepare(request)
            result = self.loaded.generator.generate(call.request)
        return self._response(request, call, result)

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Answer a request piece by piece. Closing the iterator stops the computation."""
        with _lm15_errors(), self.loaded.lease():
            call = self._prepare(request)
            yield StreamStartEvent(model=request.model, adaptations=call.adaptations)
            pieces = self.loaded.generator.stream(call.request)
            try:
                for piece in pieces:
                    if isinstance(piece, GenerationResult):
                        yield StreamEndEvent(
                            piece.finish_reason, _usage(piece), self._provider_data(call)
                        )
                    elif piece.text:
                        yield StreamDeltaEvent(TextDelta(piece.text))
            finally:
                _close(pieces)

    def complete_unless(self, cancelled: threading.Event, request: Request) -> Response | None:
        """Answer a request, or stop at the next token and return None once `cancelled` is set."""
        with _lm15_errors(), self.loaded.lease():
            call = self._prepare(request)
            pieces = self.loaded.generator.stream(call.request)
            try:
                for piece in pieces:
                    if isinstance(piece, GenerationResult):
                        return self._response(request, call, piece)
                    if cancelled.is_set():
                        return None
            finally:
                _close(pieces)
            raise InferenceError("the generator ended without a result")

    def close(self) -> None:
        """Refuse further calls. The model stays loaded: it belongs to its pool."""
        self._closed = True
        if _engines.get(self.model) is self:
            del _engines[self.model]

    def dump_state(self) -> dict[str, str]:
        """Return what load_state needs to find this engine again."""
        return {"model": self.model}

    @classmethod
    def load_state(cls, state: dict[str, str]) -> LlamaCppEngine:
        """Find the live engine that a program was saved with.

        Raises ModelNotLoadedError when this process has none for the same file and settings.
        """
        engine = _engines.get(state["model"])
        if engine is None:
            raise ModelNotLoadedError(
                state["model"],
                "load the same file and build its LlamaCppAdapter with the same config before "
                "loading the program, or save the program without an lm",
            )
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaCppEngine:
        # Copies of a program share its model, as they would share a server.
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LlamaCppEngine lives in its process and cannot be pickled; save the program's "
            "state with program.save('program.json') instead"
        )

    def _prepare(self, request: Request) -> _Call:
        """Turn an lm15 request into tokens and settings that fit the context."""
        if self._closed:
            raise _closed_error(self.loaded)
        settings = call_settings(request, self.config)
        prompt = tuple(self.loaded.tokenize(self.loaded.render(template_messages(request))))
        room = self.context_length - len(prompt)
        if room < 1:
            raise ContextTooLongError(len(prompt), self.context_length)
        adaptations = settings.adaptations
        if settings.max_tokens > room:
            reason = f"a prompt of {len(prompt)} tokens leaves that many of {self.context_length}"
            adaptations += (
                Adaptation(
                    "config.max_tokens", "clamped", reason, asked=settings.max_tokens, applied=room
                ),
            )
        return _Call(
            GenerationRequest(
                prompt=prompt,
                max_tokens=min(settings.max_tokens, room),
                sampling=settings.sampling,
                seed=settings.seed,
                stop=settings.stop + self.loaded.turn_stops,
            ),
            adaptations,
        )

    def _response(self, request: Request, call: _Call, result: GenerationResult) -> Response:
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(result.text),
            finish_reason=result.finish_reason,
            usage=_usage(result),
            provider_data=self._provider_data(call),
            adaptations=call.adaptations,
        )

    def _provider_data(self, call: _Call) -> dict[str, Any]:
        # The seed, drawn or given, is what repeats this very answer.
        return {"seed": call.request.seed, "device": self.loaded.device}


class AsyncLlamaCppEngine:
    """The async twin of a LlamaCppEngine: the same answers, computed off the event loop.

    Cancelling a call, or closing a stream, stops its computation at the next token.
    """

    def __init__(self, engine: LlamaCppEngine) -> None:
        self.engine = engine
        # Not the loop's own executor: DSPy uses that one, and long answers would starve it.
        self._threads = ThreadPoolExecutor(MAX_ASYNC_CALLS, thread_name_prefix="llamacpp-async")
        self._closed = False

    async def complete(self, request: Request) -> Response:
        """Answer a request."""
        self._refuse_if_closed()
        cancelled = threading.Event()
        try:
            response = await asyncio.get_running_loop().run_in_executor(
                self._threads, self.engine.complete_unless, cancelled, request
            )
        finally:
            cancelled.set()
        assert response is not None  # only cancelling gives None, and then nobody is here
        return response

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        """Answer a request piece by piece."""
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[StreamEvent | None] = asyncio.Queue()
        cancelled = threading.Event()

        def send(event: StreamEvent | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def work() -> None:
            # One thread for the whole answer: a generator must not change threads midway.
            source = self.engine.stream(request)
            try:
                for event in source:
                    if cancelled.is_set():
                        return
                    send(event)
            finally:
                _close(source)
                if not cancelled.is_set():
                    send(None)

        worker = loop.run_in_executor(self._threads, work)
        try:
            while (event := await events.get()) is not None:
                yield event
            await worker
        finally:
            cancelled.set()

    async def aclose(self) -> None:
        """Refuse further async calls. Those in progress go on to their end."""
        self._closed = True
        self._threads.shutdown(wait=False)

    def dump_state(self) -> dict[str, str]:
        """Return what load_state needs to find the engine again."""
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, str]) -> AsyncLlamaCppEngine:
        """Make the twin of the live engine that a program was saved with."""
        return cls(LlamaCppEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncLlamaCppEngine:
        return self

    def __reduce__(self) -> NoReturn:
        self.engine.__reduce__()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            with _lm15_errors():
                raise _closed_error(self.engine.loaded)


@dataclass(frozen=True)
class _Call:
    """A request made ready, and what had to be changed on the way."""

    request: GenerationRequest
    adaptations: tuple[Adaptation, ...]


def _model_string(loaded: LoadedModel, config: LlamaCppConfig) -> str:
    """Name everything that decides an answer, for DSPy's cache knows engines by this alone.

    The digest stands last: a name there, such as "o1", would be taken for OpenAI's.
    """
    decisive = {"model": loaded.fingerprint, "context": loaded.context_length, **asdict(config)}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"llamacpp/{loaded.name}/{digest[:16]}"


def _closed_error(loaded: LoadedModel) -> ConfigurationError:
    return ConfigurationError(
        f"the engine of {loaded.name!r} is closed; build a new LlamaCppAdapter for the model"
    )


def _usage(result: GenerationResult) -> Usage:
    return Usage(
        input_tokens=result.prompt_tokens,
        output_tokens=result.completion_tokens,
        cache_read_tokens=result.cache_read_tokens,
    )


def _close(iterator: Iterator[object]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()


@contextmanager
def _lm15_errors() -> Iterator[None]:
    """Turn this package's errors into the lm15 errors that DSPy understands.

    None of them is retried: the same request would fail again.
    """
    try:
        yield
    except ContextTooLongError as error:
        raise lm15.ContextLengthError(str(error), provider="llamacpp") from error
    except (InvalidParameterError, TokenizationError) as error:
        raise lm15.InvalidRequestError(str(error), provider="llamacpp") from error
    except (ConfigurationError, ModelNotLoadedError) as error:
        raise lm15.ConfigurationError(str(error), provider="llamacpp") from error
    except LlamaCppError as error:
        raise lm15.ProviderError(str(error), provider="llamacpp") from error
