"""Generation with a context of its own for each request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pyllama
from adapter.errors import (
    BackendError,
    ContextTooLongError,
    InferenceError,
    LlamaCppError,
    TokenizationError,
)
from adapter.generation.context_pool import ContextPool
from adapter.generation.request import Delta, GenerationRequest, GenerationResult, Sampling
from adapter.generation.stop import StopMatcher


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

    def stream(self, request: GenerationRequest) -> Iterator[Delta | GenerationResult]:
        """Yield the completion piece by piece, then exactly one GenerationResult, last.

        Closing the iterator stops the computation and gives the context back.
        """
        if len(request.prompt) >= self._context_length:
            raise ContextTooLongError(len(request.prompt), self._context_length)
        return self._stream(request)

    def _stream(self, request: GenerationRequest) -> Iterator[Delta | GenerationResult]:
        detokenizer = pyllama.Detokenizer(self._vocab)
        stop = StopMatcher(request.stop)
        tokens: list[int] = []
        pieces: list[str] = []
        shown = 0  # tokens that an earlier delta covered
        finish: Literal["stop", "length"] = "length"
        room = self._context_length - len(request.prompt)

        with (
            _translated(),
            self._pool.lease() as context,
            sampler_chain(self._vocab, request.sampling, request.seed) as chain,
        ):
            _prefill(context, request.prompt)  # which refuses tokens that the model does not know
            for token in request.prompt[-max(1, request.sampling.penalty_last_n) :]:
                chain.accept(token)
            while len(tokens) < min(request.max_tokens, room):
                if tokens:
                    context.decode_token(tokens[-1], len(request.prompt) + len(tokens) - 1)
                token = chain.sample(context)
                if self._vocab.is_eog(token):
                    finish = "stop"
                    break
                tokens.append(token)
                text = stop.push(detokenizer.push(token))
                if text:
                    pieces.append(text)
                    yield Delta(text, tuple(tokens[shown:]))
                    shown = len(tokens)
                if stop.stopped:
                    finish = "stop"
                    break

        rest = "" if stop.stopped else stop.push(detokenizer.flush()) + stop.flush()
        if rest or shown < len(tokens):
            pieces.append(rest)
            yield Delta(rest, tuple(tokens[shown:]))
        yield GenerationResult(
            text="".join(pieces),
            token_ids=tuple(tokens),
            prompt_tokens=len(request.prompt),
            completion_tokens=len(tokens),
            finish_reason=finish,
        )


def sampler_chain(vocab: pyllama.Vocab, sampling: Sampling, seed: int) -> pyllama.SamplerChain:
    """The samplers of a request, in llama.cpp's own order."""
    penalties = pyllama.Sampler.penalties(
        vocab,
        last_n=sampling.penalty_last_n,
        repeat=sampling.repeat_penalty,
        freq=sampling.frequency_penalty,
        present=sampling.presence_penalty,
    )
    if sampling.temperature == 0:
        return pyllama.SamplerChain([penalties, pyllama.Sampler.greedy()])
    return pyllama.SamplerChain(
        [
            penalties,
            pyllama.Sampler.top_k(sampling.top_k),
            pyllama.Sampler.top_p(sampling.top_p),
            pyllama.Sampler.min_p(sampling.min_p),
            pyllama.Sampler.temp(sampling.temperature),
            pyllama.Sampler.dist(seed),
        ]
    )


def _prefill(context: pyllama.Context, prompt: tuple[int, ...]) -> None:
    """Compute the prompt, in blocks counted from position 0; the last token gives logits."""
    batch = pyllama.Batch(context.n_batch)
    for begin in range(0, len(prompt), context.n_batch):
        block = prompt[begin : begin + context.n_batch]
        is_last = begin + len(block) == len(prompt)
        batch.clear()
        batch.add_tokens(block, pos=begin, outputs="last" if is_last else "none")
        context.decode(batch)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what pyllama raises as this package's own errors."""
    try:
        yield
    except LlamaCppError:
        raise
    except pyllama.TokenizationError as error:
        raise TokenizationError(str(error)) from error
    except (pyllama.ContextError, pyllama.BackendError, pyllama.NativeMemoryError) as error:
        raise BackendError(str(error)) from error
    except pyllama.LlamaError as error:
        raise InferenceError(str(error)) from error
