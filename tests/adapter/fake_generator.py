"""A model without a model: scripted answers, one token for each character.

For tests of the DSPy side. It keeps what it was asked, counts what is running, and obeys
max_tokens, stop texts and closing like the real thing.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import GeneratorType, SimpleNamespace
from typing import Any

import pyllama
from adapter.engine.config import LlamaCppConfig
from adapter.errors import PromptError
from adapter.generation.pending import Pending
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.scoring import Score, ScoringRequest, ScoringResult
from adapter.models.template_trials import calls_tools, complaint
from adapter.models.template_variables import variables_in
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter

Script = Callable[[str, GenerationRequest], str]


class FakeGenerator:
    """Answers a prompt with what `script(prompt text, request)` returns.

    `before_token` is called before every token: to block, to count, or to fail.
    """

    def __init__(self, script: Script, before_token: Callable[[], None] = lambda: None) -> None:
        self.script = script
        self.before_token = before_token
        self.likelihood: Callable[[str], float] = lambda _: 0.1
        self.requests: list[GenerationRequest] = []
        self.scored: list[ScoringRequest] = []
        self.closed = threading.Event()
        self.tokens_computed = 0

    def stream(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Iterator[Delta | GenerationResult]:
        self.requests.append(request)
        text = self.script("".join(map(chr, request.prompt)), request)
        reason = "stop"
        for stop in request.stop:
            text = text.partition(stop)[0]
        if len(text) > request.max_tokens:
            text, reason = text[: request.max_tokens], "length"
        request.taken.prompt = len(request.prompt)
        try:
            for character in text:
                self.before_token()
                if cancelled is not None and cancelled.is_set():
                    return
                self.tokens_computed += 1
                request.taken.answer += 1
                yield Delta(character, (ord(character),))
        finally:
            self.closed.set()
        tokens = tuple(map(ord, text))
        yield GenerationResult(text, tokens, len(request.prompt), len(tokens), reason)

    def score(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> ScoringResult | None:
        """Find a continuation as likely as `likelihood(its text)`, all on its last token."""
        self.scored.append(request)
        self.before_token()
        if cancelled is not None and cancelled.is_set():
            return None
        scores = []
        for continuation in request.continuations:
            tokens = [0.0] * len(continuation)
            tokens[-1:] = [math.log(self.likelihood("".join(map(chr, continuation))))]
            scores.append(Score(tuple(tokens), 0.0))
        return ScoringResult.of(request, scores)

    def generate(self, request: GenerationRequest) -> GenerationResult:
        *_, result = self.stream(request)
        assert isinstance(result, GenerationResult)
        return result

    def submit(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> FakePending:
        return FakePending(lambda: self.stream(request, cancelled))

    def submit_scoring(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> FakePending:
        return FakePending(lambda: iter([self.score(request, cancelled)]))


class FakePending(Pending[Any]):
    """A request whose outcomes are computed by whoever takes them."""

    def __init__(self, start: Callable[[], Iterator[object]]) -> None:
        self._start = start
        self._outcomes: Iterator[object] | None = None

    def take(self, *, wait: bool = False) -> object:
        if self._outcomes is None:
            self._outcomes = self._start()
        return next(self._outcomes, None)

    def listen(self, ready: Callable[[], object]) -> None:
        raise AssertionError("there is always something to take")

    def wake(self) -> None:
        """Nobody listens."""

    def stop(self) -> None:
        if isinstance(self._outcomes, GeneratorType):
            self._outcomes.close()


class FakeVocab:
    """What a fake model's tokens are: characters."""

    def token_to_piece(self, token: int) -> bytes:
        return chr(token).encode()


class FakeLease(nullcontext[SimpleNamespace]):
    """A lease on a model that has no more than a vocabulary."""

    def move_here(self) -> None:
        """It is nobody's."""


@dataclass
class FakeModel:
    """What a LoadedModel shows to the DSPy side."""

    generator: FakeGenerator
    name: str = "fake"
    path: Path = Path("models/fake.gguf")
    fingerprint: str = "00ff"
    computation: tuple[str, ...] = ("threads=1",)
    n_ctx_train: int = 8192
    context_length: int = 4096
    turn_stops: tuple[str, ...] = ()
    has_chat_template: bool = True
    device: str = "CPU"
    n_vocab: int = 0x110000
    turn_ends: tuple[int, ...] = (0,)
    fewest: int = 0
    source: str = (
        "{% for message in messages %}{{ message.role | title }}: {{ message.content }}\n"
        "{% endfor %}Assistant:"
    )
    rendered: list[list[dict[str, object]]] = field(default_factory=list)
    options: list[dict[str, object]] = field(default_factory=list)

    def reads(self, variable: str) -> bool:
        through = self.capabilities.get(f"supports_{variable}")
        return variable in self.template_variables or bool(through)

    def __post_init__(self) -> None:
        self.template_variables = variables_in(self.source)
        self.generators = {"batched": self.generator, "isolated": self.generator}
        self.template = pyllama.ChatTemplate(source=self.source)
        self.capabilities = self.template.capabilities
        self.calls_tools = calls_tools(self.template)

    def lease(self) -> FakeLease:
        return FakeLease(SimpleNamespace(vocab=FakeVocab()))

    def render(
        self, messages: Sequence[Mapping[str, object]], **options: object
    ) -> pyllama.RenderedChat:
        self.rendered.append([dict(message) for message in messages])
        self.options.append(options)
        try:
            return self.template.apply(messages, **options)
        except pyllama.ChatTemplateError as error:
            raise PromptError(complaint(error, messages)) from error

    def tokenize(self, prompt: pyllama.RenderedChat | str) -> list[int]:
        return list(map(ord, prompt if isinstance(prompt, str) else prompt.prompt))

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def fewest_tokens(self, constraint: object) -> int:
        return self.fewest


def fake_model(answer: str | Script, **changes: object) -> FakeModel:
    """Return a model that always gives `answer`, or what a script makes of the prompt."""
    script = answer if callable(answer) else lambda *_: answer
    return FakeModel(FakeGenerator(script), **changes)


def adapter_of(
    model: FakeModel,
    *,
    route_other_lms: bool | None = None,
    use_json_adapter_fallback: bool = True,
    pick_by_likelihood: bool = False,
    **settings: object,
) -> LlamaCppAdapter:
    """Return the adapter of a scripted model."""
    return LlamaCppAdapter.from_loaded_model(
        model,
        LlamaCppConfig(model.name, **settings),
        route_other_lms=route_other_lms,
        use_json_adapter_fallback=use_json_adapter_fallback,
        pick_by_likelihood=pick_by_likelihood,
    )


def echo(prompt: str, request: GenerationRequest) -> str:
    """Answer with the last question asked and the seed it was asked with."""
    question = re.findall(r"question: (.*)", prompt)[-1]
    return f"answer: {question} / {request.seed}"
