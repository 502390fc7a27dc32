"""A conversation with a model, for the commands that hold one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from adapter.cli.console import messages, say, say_piece, visible

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel

Turn = tuple[Literal["user", "assistant"], str]


@dataclass
class Answer:
    """What a model answered.

    Attributes:
        finish_reason: "stop" or "length"; None if it was stopped.
        seconds: from the request to its end.
        first_seconds: from the request to the first token, which is the time for the prompt.
    """

    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens a second after the first one."""
        seconds = self.seconds - self.first_seconds
        return max(0, self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


@dataclass
class Conversation:
    """Turns, and the engine that continues them.

    Attributes:
        settings: those of LlamaCppConfig.
        system: the system prompt; None or an empty text for none.
        form: response_format and extensions of a request, if the answer has a form.
    """

    loaded: LoadedModel
    settings: dict[str, Any]
    system: str | None = None
    form: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        from adapter.engine.config import LlamaCppConfig
        from adapter.engine.engine import LlamaCppEngine

        self.system = self.system or None
        self.engine = LlamaCppEngine(self.loaded, LlamaCppConfig(self.loaded.name, **self.settings))

    def ask(self, text: str, answer: Answer) -> Iterator[tuple[Literal["thinking", "text"], str]]:
        """Yield the answer to a turn piece by piece, and record all of it in `answer`.

        If it is stopped, what came so far becomes a turn of the conversation. If it fails, neither
        turn does.

        Raises:
            LM15Error: lm15's errors.
        """
        from dspy.lm15 import (
            Config,
            Message,
            Request,
            StreamDeltaEvent,
            StreamEndEvent,
            TextDelta,
            ThinkingDelta,
        )

        makers = {"user": Message.user, "assistant": Message.assistant}
        turns = [*self.turns, ("user", text)]
        request = Request(
            model=self.engine.model,
            messages=tuple(makers[role](text) for role, text in turns),
            system=self.system,
            config=Config(**self.form),
        )
        start = time.perf_counter()
        try:
            for event in self.engine.stream(request):
                if isinstance(event, StreamDeltaEvent):
                    if not answer.first_seconds:
                        answer.first_seconds = time.perf_counter() - start
                    if isinstance(event.delta, ThinkingDelta):
                        answer.thinking += event.delta.text
                        yield "thinking", event.delta.text
                    elif isinstance(event.delta, TextDelta) and event.delta.text:
                        answer.text += event.delta.text
                        yield "text", event.delta.text
                elif isinstance(event, StreamEndEvent):
                    answer.finish_reason = event.finish_reason
                    if event.usage is not None:
                        answer.prompt_tokens = event.usage.input_tokens or 0
                        answer.completion_tokens = event.usage.output_tokens or 0
        except (KeyboardInterrupt, GeneratorExit):
            self._keep(text, answer)
            raise
        finally:
            answer.seconds = time.perf_counter() - start
        self._keep(text, answer)

    def _keep(self, text: str, answer: Answer) -> None:
        if answer.text:
            self.turns += [("user", text), ("assistant", answer.text)]


def show_answer(conversation: Conversation, text: str, answer: Answer) -> None:
    """Write an answer as it comes: the text to standard output, thoughts dimmed among it."""
    ended_thinking = True
    for kind, piece in conversation.ask(text, answer):
        if kind == "thinking":
            if messages.is_terminal:
                messages.print(visible(piece), end="", style="dim", markup=False, soft_wrap=True)
                ended_thinking = False
            continue
        if not ended_thinking:
            messages.print("\n")
            ended_thinking = True
        say_piece(piece)
    say("")
