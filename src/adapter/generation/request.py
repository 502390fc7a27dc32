"""The values that go into a generator, and those that come out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapter.generation.sampling import Constraint, ReasoningBudget, Sampling
from adapter.generation.token_count import TokenCount

FinishReason = Literal["stop", "length"]

Execution = Literal["batched", "isolated"]
"""Together with other requests, or one at a time in a context of its own."""


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to compute.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: how many tokens may be sampled, at least 1.
        seed: 0 to 2**32 - 2. The same request with the same seed gives the same bytes.
        stop: texts that end the completion. The one found is not part of it.
        turn_stops: texts that end it as well, unless a grammar does not allow an end there.
        constraint: a grammar to follow.
        completes: whether an answer that follows a grammar is completed within max_tokens, by
            ending its texts and lists in time, instead of being cut off.
        ends_repetitions: whether a text in such an answer ends when it repeats itself.
        preserved_tokens: special tokens whose text is part of the completion. That of others is
            not.
        logprobs: how many of the likeliest tokens to report beside each sampled one, with the
            log-probabilities of all; None for no log-probabilities.
        timeout: seconds that it may take, counted from its arrival; None for no limit.
        reasoning_budget: where the model's reasoning ends at the latest.
        streamed: whether each piece of text is given at once. Otherwise all pieces come as one at
            the end, and no thread is woken for each.
        taken: counts the tokens that it has taken while it is computed.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()
    turn_stops: tuple[str, ...] = ()
    constraint: Constraint | None = None
    completes: bool = False
    ends_repetitions: bool = False
    preserved_tokens: frozenset[int] = frozenset()
    logprobs: int | None = None
    reasoning_budget: ReasoningBudget | None = None
    timeout: float | None = None
    streamed: bool = True
    taken: TokenCount = field(default_factory=TokenCount, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class TokenLogprob:
    """A sampled token's log-probability, by the model's logits before any sampler.

    Attributes:
        top_tokens: int32 array of the likeliest tokens, likeliest first.
        top_logprobs: float64 array of their log-probabilities.
    """

    token: int
    logprob: float
    top_tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    top_logprobs: NDArray[np.float64] = field(default_factory=lambda: np.empty(0, np.float64))

    @property
    def top(self) -> Iterator[tuple[int, float]]:
        """The likeliest tokens with their log-probabilities."""
        return zip(self.top_tokens.tolist(), self.top_logprobs.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenLogprob):
            return NotImplemented
        return (
            (self.token, self.logprob) == (other.token, other.logprob)
            and np.array_equal(self.top_tokens, other.top_tokens)
            and np.array_equal(self.top_logprobs, other.top_logprobs)
        )

    def __hash__(self) -> int:
        return hash((self.token, self.logprob))


@dataclass(frozen=True)
class Delta:
    """A piece of a completion: whole characters, and the tokens that finished them.

    Attributes:
        logprobs: those of the tokens whose text has been shown completely, if they were requested.
        logprobs_complete: False if a stop text begins within a token, which has no log-probability
            then.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    logprobs_complete: bool = True


def joined(deltas: Sequence[Delta]) -> Delta:
    """Join consecutive pieces, at least one."""
    return Delta(
        "".join(delta.text for delta in deltas),
        tuple(chain.from_iterable(delta.token_ids for delta in deltas)),
        tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
        deltas[-1].logprobs_complete,
    )


@dataclass(frozen=True)
class GenerationResult:
    """A complete completion.

    Attributes:
        token_ids: all that were sampled, including those of a stop text.
        prompt_tokens: tokens of the prompt.
        finish_reason: "stop" at the model's end of turn, a stop text or the end of a grammar that
            was to be completed; "length" at max_tokens or the end of the context.
        cache_read_tokens: the tokens among prompt_tokens that were cached.
        logprobs: those of the text's tokens.
        shortened: for each place where max_tokens shortened the answer, the rules of the grammar
            there.
        repeated: the same for each place where a text was ended because it repeated itself.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    cache_read_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    logprobs_complete: bool = True
    shortened: tuple[frozenset[str], ...] = ()
    repeated: tuple[frozenset[str], ...] = ()
