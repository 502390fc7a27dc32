"""Generation with a context of its own for each request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pyllama
from adapter.errors import ContextTooLongError, RequestTimeoutError
from adapter.generation.answer_writer import AnswerWriter
from adapter.generation.context_pool import ContextPool
from adapter.generation.failures import translated
from adapter.generation.prefill import prompt_steps
from adapter.generation.request import Delta, GenerationRequest, GenerationResult
from adapter.generation.scoring import (
    Score,
    Scorer,
    ScoringRequest,
    ScoringResult,
    longest_continuation,
)
from adapter.generation.token_count import TokenCount


class IsolatedGenerator:
    """Computes each request alone, in a context from a pool. It satisfies ``Generator``.

    The prompt is computed in blocks of fixed size counted from position 0, so that the same
    request with the same seed gives the same bytes, whatever ran before or runs beside it.

    Raises ContextTooLongError before any work when the prompt leaves no room for a token.
    """

    def __init__(self, model: pyllama.Model, pool: ContextPool, *, context_length: int) -> None:
        self._vocab = model.vocab
        self._pool = pool
        self._context_length = context_length

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Return the whole completion."""
        *_, result = self.stream(request)
        assert isinstance(result, GenerationResult)
        return result

    def stream(
        self, request: GenerationRequest, cancelled: threading.Event | None = None
    ) -> Iterator[Delta | GenerationResult]:
        """Yield the completion piece by piece, then exactly one GenerationResult, last.

        Closing the iterator stops the computation and gives the context back. Once ``cancelled``
        is set it does so before the next block of the prompt or the next token, without a result.
        """
        if len(request.prompt) >= self._context_length:
            raise ContextTooLongError(len(request.prompt), self._context_length)
        return self._stream(request, cancelled or threading.Event())

    def score(
        self, request: ScoringRequest, cancelled: threading.Event | None = None
    ) -> ScoringResult | None:
        """Return the score of each continuation, or None once ``cancelled`` is set."""
        prompt = request.prompt
        if len(prompt) + longest_continuation(request) > self._context_length:
            raise ContextTooLongError(
                len(prompt) + longest_continuation(request), self._context_length
            )
        cancelled = cancelled or threading.Event()
        scores: list[Score] = []
        with translated(), self._pool.lease() as context:
            begun = request.taken
            if not _prefill(context, prompt, lambda _: cancelled.is_set(), begun, self._pool.chunk):
                return None
            room = self._context_length - len(prompt)
            for group in Scorer(context).score(request, room=room):
                scores += group
                if cancelled.is_set():
                    return None
        return ScoringResult.of(request, scores)

    def _stream(
        self, request: GenerationRequest, cancelled: threading.Event
    ) -> Iterator[Delta | GenerationResult]:
        prompt, timeout = request.prompt, request.timeout
        begin = time.monotonic()

        def stopped(n_tokens: int) -> bool:
            if timeout is not None and time.monotonic() - begin > timeout:
                raise RequestTimeoutError(timeout, n_tokens)
            return cancelled.is_set()

        max_tokens = min(request.max_tokens, self._context_length - len(prompt))
        with (
            translated(),
            closing(AnswerWriter(self._vocab, request, max_tokens)) as writer,
            self._pool.lease() as context,
        ):
            begun = (*prompt, *writer.tokens)
            if not _prefill(context, begun, stopped, request.taken, self._pool.chunk):
                return
            request.taken.prompt = len(prompt)  # what is forced after it is the answer's
            batch = pyllama.Batch(context.n_batch)
            while writer.finish_reason is None:
                n_past = len(prompt) + len(writer.tokens)
                yield from writer.sample(context)
                if stopped(len(writer.tokens)):
                    return
                if writer.finish_reason is None:
                    new = writer.tokens[n_past - len(prompt) :]
                    batch.clear()
                    batch.add_tokens(new, pos=n_past, outputs="last")
                    context.decode(batch)
            deltas, result = writer.finish()
        yield from deltas
        yield result


def _prefill(
    context: pyllama.Context,
    prompt: tuple[int, ...],
    stopped: Callable[[int], bool],
    taken: TokenCount,
    chunk: int,
) -> bool:
    """Compute the prompt; return whether it is all there: False once it is to stop."""
    blocks = prompt_steps(context, prompt, chunk=chunk)
    while not stopped(0):
        done = next(blocks, None)
        if done is None:
            return True
        taken.prompt = done
    return False
