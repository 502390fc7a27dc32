"""Writes the answer of one request: the sampled tokens, and the text that its grammar forces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

import pyllama
from adapter.generation.completion import Completion, token_logprob
from adapter.generation.request import (
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    TokenLogprob,
)
from adapter.generation.sampling import sampler_chain

SHORTEST_RUN, LONGEST_RUN = 2, 32
"""The fewest forced tokens to write at once. Computing fewer saves no time, and a call of its own
for them delays the other requests.
"""


class AnswerWriter:
    """Samples an answer token by token, and writes what its grammar forces without sampling.

    It may be made in another thread than that which uses it.

    If every continuation that the grammar allows begins with the same text, the tokens of that text
    are written as the tokenizer gives them. The last one is left out, since it may become part of a
    longer token. Nothing is forced if log-probabilities are requested, which need the logits of
    each token. What is forced depends only on the text so far, so the bytes do not depend on what
    else runs.

    Args:
        max_tokens: 1 or more; how many tokens the answer may have.

    Raises:
        pyllama.LlamaError: a grammar that this model cannot follow.
    """

    def __init__(self, vocab: pyllama.Vocab, request: GenerationRequest, max_tokens: int) -> None:
        self._vocab = vocab
        self._request = request
        self._chain = sampler_chain(
            vocab,
            request.sampling,
            request.seed,
            request.constraint,
            prompt=request.prompt,
            reasoning_budget=request.reasoning_budget,
            complete_within=max_tokens if request.completes else None,
            end_repetitions=request.ends_repetitions,
        )
        self._ends = vocab.eos is not None or vocab.eot is not None
        self._max_tokens = max_tokens
        self._completion = Completion(vocab, request, max_tokens, may_end=self._may_end())
        self._stopped_here = False  # at max_tokens, where more might have followed
        # What is forced before the first token: each with whether the answer may end after it.
        self._beginning = list(self._follow(self._forced()[:max_tokens]))
        self._opening: list[Delta] = []
        self._is_bounded = True  # or may be

    def begin(self) -> None:
        """Write what is forced at the beginning of the answer.

        It is shown with the first sampled token. Nothing is computed before that.
        """
        self._opening = self._write(self._beginning)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the answer so far."""
        return self._completion.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it is being written."""
        return self._completion.finish_reason

    @property
    def chain(self) -> pyllama.SamplerChain:
        """The sampler chain of the answer."""
        return self._chain

    def run(self, seq_id: int, pos: int) -> pyllama.Run:
        """How the answer may continue by itself, up to the next decision."""
        request = self._request
        return pyllama.Run(
            self._chain,
            seq_id,
            pos,
            self._max_tokens - len(self.tokens),
            stops=request.stop + request.turn_stops,
            text=self._completion.hidden,
            forcing=self._forcing,
            tells_ends=self._asks_for_ends,
        )

    def write(self, drawn: pyllama.Drawn, context: pyllama.Context, index: int) -> list[Delta]:
        """Write tokens that the chain sampled, and what is forced after them; return their text.

        Args:
            drawn: what ``run()`` gave, or one token.
            index: the output that the first was sampled from; with log-probabilities it is alone.
        """
        deltas, self._opening = self._opening, []
        logprob = None
        if self._request.logprobs is not None:
            (token,) = drawn.tokens
            logprob = token_logprob(context.logits(index), token, self._request.logprobs)
        self._is_bounded = drawn.bounded
        may_end = drawn.may_end
        if not self._asks_for_ends:
            may_end = [True] * len(drawn.tokens)
        elif not may_end:
            may_end = [self._may_end()]
        text = self._push(drawn.tokens, may_end, logprob)
        if text is not None:
            deltas.append(text)
        if self.finish_reason is None and (drawn.at_stop or not drawn.may_end):
            deltas += self._write(self._follow(self._forced()))
        return deltas

    def finish(self, *, cache_read_tokens: int = 0) -> tuple[list[Delta], GenerationResult]:
        """The rest of the text, and the result."""
        rest, result = self._completion.finish(cache_read_tokens=cache_read_tokens)
        deltas = [*self._opening, *([] if rest is None else [rest])]
        return deltas, replace(result, shortened=self._shortened(), repeated=self._repeated())

    def close(self) -> None:
        """Free the samplers."""
        self._chain.close()

    def _push(
        self, tokens: list[int], may_end: list[bool], logprob: TokenLogprob | None = None
    ) -> Delta | None:
        delta = self._completion.push(tokens, may_end, logprob)
        if self._completion.finish_reason == "length" and self._ending() != "goes on":
            self._completion.finish_reason = "stop"
            self._stopped_here = self._ending() == "may end"
        return delta

    def _ending(self) -> str:
        grammar = self._chain.grammar
        return "goes on" if grammar is None or not self._request.completes else grammar.ending

    def _shortened(self) -> tuple[frozenset[str], ...]:
        grammar = self._chain.grammar
        told = self._is_bounded or self._stopped_here
        if grammar is None or not self._request.completes or not told:
            return ()
        return tuple(grammar.shortened(here=self._stopped_here))

    def _repeated(self) -> tuple[frozenset[str], ...]:
        grammar = self._chain.grammar
        if grammar is None or not self._request.ends_repetitions or not self._is_bounded:
            return ()
        return tuple(grammar.repeated())

    def _write(self, forced: Iterable[tuple[int, bool]]) -> list[Delta]:
        deltas = []
        for token, may_end in forced:
            delta = self._push([token], [may_end])
            if delta is not None:
                deltas.append(delta)
            if self.finish_reason is not None:
                break
        return deltas

    def _follow(self, tokens: Iterable[int]) -> Iterator[tuple[int, bool]]:
        """Have the samplers follow tokens, and tell after each whether the answer may end there."""
        for token in tokens:
            self._chain.accept(token)
            yield token, self._may_end()

    def _forced(self) -> list[int]:
        grammar = self._chain.grammar
        if grammar is None or self._forcing is None:
            return []
        return grammar.forced_tokens(self._forcing)

    def _may_end(self) -> bool:
        """Whether the grammar lets the answer end here. True if nothing depends on it."""
        grammar = self._chain.grammar
        return not self._asks_for_ends or grammar is None or grammar.complete

    @property
    def _asks_for_ends(self) -> bool:
        """Whether a grammar decides where the answer may end, and stops depend on it.

        In a vocabulary without a token that ends an answer, no grammar knows when one may end.
        """
        bound = self._chain.grammar is not None
        return bound and bool(self._request.turn_stops) and self._ends

    @cached_property
    def _forcing(self) -> pyllama.Forcing | None:
        """Which forced texts are written; None with log-probabilities, which need each token's
        logits.
        """
        if self._request.logprobs is not None:
            return None
        never = tuple(self._request.sampling.logit_bias)
        return pyllama.Forcing(SHORTEST_RUN, LONGEST_RUN, never)
