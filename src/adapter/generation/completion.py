"""A completion that grows: from tokens to text, up to its end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import pyllama
from adapter.generation.request import (
    Delta,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    TokenLogprob,
)
from adapter.generation.stop import StopMatcher


class Completion:
    """The sampled tokens of one request, and the text that may be shown of them.

    Args:
        may_end: whether the empty text is a complete answer.
    """

    def __init__(
        self,
        vocab: pyllama.Vocab,
        request: GenerationRequest,
        max_tokens: int,
        *,
        may_end: bool = True,
    ) -> None:
        self._vocab = vocab
        self._request = request
        self._max_tokens = max_tokens
        self._detokenizer = pyllama.Detokenizer(vocab)
        self._stop = StopMatcher(request.stop, request.turn_stops, may_end=may_end)
        self._pieces: list[str] = []
        self._shown = 0  # tokens that an earlier delta included
        self._n_bytes = 0  # of the text shown so far
        self._logprobs: list[TokenLogprob] = []
        self._ends: list[int] = []  # where each of their tokens ends in the text, in bytes
        self._n_logprobs_shown = 0  # log-probabilities that an earlier delta included
        self._complete = True
        #: The tokens sampled so far.
        self.tokens: list[int] = []
        #: Why it ended; None while it grows.
        self.finish_reason: FinishReason | None = None

    def push(
        self,
        tokens: Sequence[int],
        may_end: Sequence[bool] | None = None,
        logprob: TokenLogprob | None = None,
    ) -> Delta | None:
        """The text that can be shown after more tokens were sampled, if there is any.

        Those after the one that ends the completion do not count.

        Args:
            may_end: for each token, whether the text including it is a complete answer; None for
                yes.
            logprob: that of a single token.
        """
        texts = []
        n_before = len(self.tokens)
        for index, token in enumerate(tokens):
            if self._vocab.is_eog(token):
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            if logprob is not None:
                special = token in self._request.preserved_tokens
                size = len(self._vocab.token_to_piece(token, special=special))
                self._ends.append(size + (self._ends[-1] if self._ends else 0))
                self._logprobs.append(logprob)
            ends = may_end is None or may_end[index]
            texts.append(self._stop.push(self._text(token), may_end=ends))
            if self._stop.stopped:
                self.finish_reason = "stop"
                break
            if len(self.tokens) >= self._max_tokens:
                self.finish_reason = "length"
                break
        self._request.taken.answer += len(self.tokens) - n_before
        text = "".join(texts)
        if self._stop.stopped:
            self._cut_logprobs(self._n_bytes + len(text.encode()))
        return self._delta(text) if text else None

    @property
    def hidden(self) -> bytes:
        """The end of its text that is not shown yet, since a stop text may begin there."""
        return self._stop.pending.encode() + self._detokenizer.held

    def finish(self, *, cache_read_tokens: int = 0) -> tuple[Delta | None, GenerationResult]:
        """The rest of the text, and the result."""
        assert self.finish_reason is not None
        rest = ""
        if not self._stop.stopped:
            rest = self._stop.push(self._detokenizer.flush()) + self._stop.flush()
        last = None
        if rest or self._shown < len(self.tokens) or self._n_logprobs_shown < len(self._logprobs):
            last = self._delta(rest, last=True)
        return last, GenerationResult(
            text="".join(self._pieces),
            token_ids=tuple(self.tokens),
            prompt_tokens=len(self._request.prompt),
            completion_tokens=len(self.tokens),
            finish_reason=self.finish_reason,
            cache_read_tokens=cache_read_tokens,
            logprobs=tuple(self._logprobs),
            logprobs_complete=self._complete,
        )

    def _text(self, token: int) -> str:
        if token not in self._request.preserved_tokens:
            return self._detokenizer.push(token)
        return self._detokenizer.flush() + self._vocab.token_to_piece(token).decode(
            "utf-8", "replace"
        )

    def _delta(self, text: str, *, last: bool = False) -> Delta:
        self._pieces.append(text)
        self._n_bytes += len(text.encode())
        n_logprobs = len(self._logprobs) if last else bisect_right(self._ends, self._n_bytes)
        delta = Delta(
            text,
            tuple(self.tokens[self._shown :]),
            tuple(self._logprobs[self._n_logprobs_shown : n_logprobs]),
            self._complete,
        )
        self._shown, self._n_logprobs_shown = len(self.tokens), n_logprobs
        return delta

    def _cut_logprobs(self, n_bytes: int) -> None:
        """Drop the log-probabilities of tokens that a stop text removed, completely or in part."""
        kept = bisect_right(self._ends, n_bytes)
        self._complete = not self._ends or n_bytes == (self._ends[kept - 1] if kept else 0)
        del self._logprobs[kept:], self._ends[kept:]


def token_logprob(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    """The log-probability of a token and of the likeliest ones: the log-softmax of the logits.

    Args:
        logits: float32 array of shape (n_vocab,).
        n_top: how many of the likeliest; at most n_vocab.
    """
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    if n_top == 0:
        return TokenLogprob(token, float(values[token]))
    # Ties go to the lower token, so that the order is always the same.
    (likely,) = np.nonzero(values >= np.partition(values, -n_top)[-n_top])
    top = likely[np.lexsort((likely, -values[likely]))][:n_top]
    return TokenLogprob(token, float(values[token]), top.astype(np.int32), values[top])
