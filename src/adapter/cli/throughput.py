"""Measures how fast a model computes, like llama-bench and llama-batched-bench."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import pyllama

_N_BATCH, _N_UBATCH = 2048, 512


@dataclass(frozen=True)
class Rate:
    """Tokens a second in one test.

    Attributes:
        test: by llama-bench's name: "pp512" for a prompt of 512 tokens, "tg128" for 128 tokens
            decoded one after the other; "tg128 x8" for 8 sequences at once, all their tokens
            together.
        mean: of the repetitions.
        stdev: of the repetitions; 0 for one.
    """

    test: str
    mean: float
    stdev: float


def measure(
    model: pyllama.Model,
    *,
    n_prompt: int,
    n_gen: int,
    n_parallel: int,
    repetitions: int,
    n_threads: int,
) -> Iterator[Rate]:
    """Yield the rates of a prompt, of decoding, and of decoding several sequences at once.

    Tokens are random. Each test runs once before it counts. A test of 0 tokens is left out.

    Raises:
        pyllama.LlamaError: the computation failed.
    """
    tokens = np.random.default_rng(0).integers(0, model.vocab.n_tokens, size=n_prompt)
    longest = max(n_prompt, n_gen, 1)
    with _context(model, longest, 1, n_threads) as context:
        if n_prompt:
            mean = _rates(context, lambda: _prompt(context, tokens), n_prompt, repetitions)
            yield Rate(f"pp{n_prompt}", *mean)
        if n_gen:
            mean = _rates(context, lambda: _decode(context, n_gen), n_gen, repetitions)
            yield Rate(f"tg{n_gen}", *mean)
    if n_gen and n_parallel > 1:
        with _context(model, n_gen, n_parallel, n_threads) as context:
            total = n_gen * n_parallel
            mean = _rates(
                context, lambda: _decode_together(context, n_gen, n_parallel), total, repetitions
            )
            yield Rate(f"tg{n_gen} x{n_parallel}", *mean)


def _context(model: pyllama.Model, length: int, n_parallel: int, n_threads: int) -> pyllama.Context:
    return pyllama.Context(
        model,
        n_ctx=length * n_parallel,
        n_batch=_N_BATCH,
        n_ubatch=_N_UBATCH,
        n_seq_max=n_parallel,
        n_threads=n_threads,
        n_threads_batch=n_threads,
    )


def _rates(
    context: pyllama.Context, compute: Callable[[], None], n_tokens: int, repetitions: int
) -> tuple[float, float]:
    compute()
    rates = []
    for _ in range(repetitions):
        context.memory.clear()
        context.synchronize()
        start = time.perf_counter()
        compute()
        context.synchronize()
        rates.append(n_tokens / (time.perf_counter() - start))
    return statistics.mean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0


def _prompt(context: pyllama.Context, tokens: NDArray[np.int64]) -> None:
    context.memory.clear()
    batch = pyllama.Batch(min(_N_BATCH, len(tokens)))
    for start in range(0, len(tokens), _N_BATCH):
        batch.clear()
        batch.add_tokens(tokens[start : start + _N_BATCH], pos=start)
        context.decode(batch)


def _decode(context: pyllama.Context, n_gen: int) -> None:
    context.memory.clear()
    n_vocab = context.model.vocab.n_tokens
    for position in range(n_gen):
        context.decode_token(position % n_vocab, position)
        context.synchronize()


def _decode_together(context: pyllama.Context, n_gen: int, n_parallel: int) -> None:
    context.memory.clear()
    n_vocab = context.model.vocab.n_tokens
    batch = pyllama.Batch(n_parallel)
    for position in range(n_gen):
        batch.clear()
        for sequence in range(n_parallel):
            batch.add((position + sequence) % n_vocab, position, [sequence], output=True)
        context.decode(batch)
        context.synchronize()
