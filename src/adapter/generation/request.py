"""What a generator is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are llama.cpp's own.

    temperature        0 to 2; 0 takes the likeliest token
    top_k              candidates kept, 0 = all
    top_p              0 to 1; smallest set of candidates whose probabilities reach it, 1 = all
    min_p              0 to 1; least probability, relative to the likeliest token, 0 = off
    repeat_penalty     above 0; divides the logits of recent tokens, 1 = off
    penalty_last_n     how many recent tokens the three penalties look at, 0 = none
    frequency_penalty  -2 to 2; subtracted from a recent token's logit for each occurrence
    presence_penalty   -2 to 2; subtracted once from each recent token's logit
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    penalty_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to compute.

    prompt      token ids, at least one
    max_tokens  at least 1; how many tokens may be sampled
    seed        0 to 2**32 - 2; the same request with the same seed gives the same bytes
    stop        texts that end the completion; the one found is not part of it
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of a completion: whole characters, and the tokens that finished them."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationResult:
    """A whole completion.

    finish_reason is "stop" at the model's end of turn or a stop text, "length" at max_tokens or
    the end of the context. cache_read_tokens counts the prompt tokens that were not computed
    anew, out of prompt_tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    cache_read_tokens: int = 0


class Generator(Protocol):
    """Computes completions. Any number of threads may call it at once."""

    def stream(self, request: GenerationRequest) -> Iterator[Delta | GenerationResult]:
        """Yield the completion piece by piece, then exactly one GenerationResult, last.

        Closing the iterator stops the computation.
        """

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Return the whole completion."""
