"""Writes the answer of one request: the sampled tokens, and the text that its grammar forces."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

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
        )
        self._ends = any(token is not None for token in (vocab.eos, vocab.eot))
        self._max_tokens = max_tokens
        self._completion = Completion(vocab, request, max_tokens, may_end=self._may_end())
        self._stopped_here = False  # at max_tokens, where more might have followed
        # Shown with the first sampled token. Nothing is computed before that.
        self._opening = self._write_forced()

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
            pauses_where_forced=request.logprobs is None,
            tells_ends=self._asks_for_ends,
        )

    def write(self, drawn: pyllama.Drawn, context: pyllama.Context, index: int) -> list[Delta]:
        """Write tokens that the chain sampled, and what is forced after them; return their text.

        Args:
            drawn: what ``run()`` gave, or one token.
            index: the output that the first was sampled from; with log-probabilities it is alone.
        """
        deltas, self._opening = self._opening, []
        for token, told in zip_longest(drawn.tokens, drawn.may_end):
            logprob = None
            if self._request.logprobs is not None:
                logprob = token_logprob(context.logits(index), token, self._request.logprobs)
            may_end = self._may_end() if told is None else told or not self._asks_for_ends
            sampled = self._push(token, logprob, may_end=may_end)
            if sampled is not None:
                deltas.append(sampled)
            if self.finish_reason is not None:
                return deltas
        return [*deltas, *self._write_forced()]

    def finish(self, *, cache_read_tokens: int = 0) -> tuple[list[Delta], GenerationResult]:
        """The rest of the text, and the result."""
        rest, result = self._completion.finish(cache_read_tokens=cache_read_tokens)
        deltas = [*self._opening, *([] if rest is None else [rest])]
        return deltas, replace(result, shortened=self._shortened())

    def close(self) -> None:
        """Free the samplers."""
        self._chain.close()

    def _push(
        self, token: int, logprob: TokenLogprob | None = None, *, may_end: bool
    ) -> Delta | None:
        delta = self._completion.push(token, logprob, may_end=may_end)
        if self._completion.finish_reason == "length" and self._ending() != "goes on":
            self._completion.finish_reason = "stop"
            self._stopped_here = self._ending() == "may end"
        return delta

    def _ending(self) -> str:
        grammar = self._chain.grammar
        return "goes on" if grammar is None or not self._request.completes else grammar.ending

    def _shortened(self) -> tuple[frozenset[str], ...]:
        grammar = self._chain.grammar
        if grammar is None or not self._request.completes:
            return ()
        return tuple(grammar.shortened(here=self._stopped_here))

    def _write_forced(self) -> list[Delta]:
        deltas = []
        for token in self._forced_tokens():
            if self.finish_reason is not None:
                break
            self._chain.accept(token)
            delta = self._push(token, may_end=self._may_end())
            if delta is not None:
                deltas.append(delta)
        return deltas

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

    def _forced_tokens(self) -> list[int]:
        grammar = self._chain.grammar
        if grammar is None or self._request.logprobs is not None or self.finish_reason is not None:
            return []
        text = grammar.forced_text()
        tokens = self._vocab.tokenize(text, add_special=False) if text else []
        forced = tokens[:-1][:LONGEST_RUN]
        if len(forced) < SHORTEST_RUN:
            return []
        # Some tokenizers add a space in front, and a text may contain the name of a control token.
        spelled = b"".join(map(self._vocab.token_to_piece, forced))
        if not text.encode().startswith(spelled):
            return []
        if self._vocab.tokenize(text, add_special=False, parse_special=True) != tokens:
            return []
        if self._request.sampling.logit_bias.keys() & set(forced):
            return []
        return forced if grammar.fits(forced) else []
