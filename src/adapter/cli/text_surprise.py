"""How likely a model finds a text, by the rules of llama-perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import pyllama
from adapter.generation.processor_load import free_threads
from adapter.wording import counted

if TYPE_CHECKING:
    from adapter.models.hardware import Placement

_N_BATCH = 512


@dataclass(frozen=True)
class Surprise:
    """The exponential of the mean negative log-likelihood of a token, and its standard error."""

    perplexity: float
    error: float
    n_tokens: int
    n_chunks: int


def measure(
    path: Path,
    placement: Placement,
    text: str,
    *,
    n_ctx: int,
    n_chunks: int | None,
    n_threads: int | None,
    report: Callable[[float], object],
) -> Surprise:
    """Compute a text in parts of n_ctx tokens, and score the second half of each.

    If the vocabulary begins texts with BOS, each part begins with it instead of its first token.

    Raises:
        ValueError: the text has fewer than two parts.
        pyllama.LlamaError: the computation failed.
    """
    with placement.load(path) as model:
        tokens = model.vocab.tokenize_array(text)
        if len(tokens) < 2 * n_ctx:
            raise ValueError(
                f"the text has {counted(len(tokens), 'token')}, and {2 * n_ctx} are needed at "
                "least: give a longer text or a smaller --context"
            )
        count = len(tokens) // n_ctx
        count = count if n_chunks is None else min(count, n_chunks)
        threads = n_threads or free_threads(placement.n_threads)
        losses = []
        with pyllama.Context(
            model,
            n_ctx=n_ctx,
            n_batch=min(_N_BATCH, n_ctx),
            n_threads=threads,
            n_threads_batch=threads,
        ) as context:
            for index in range(count):
                part = tokens[index * n_ctx : (index + 1) * n_ctx].copy()
                losses.append(_losses(context, part))
                report((index + 1) / count)
    return _summed(np.concatenate(losses), count)


def _losses(context: pyllama.Context, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """The negative log-likelihoods of a part's second half."""
    vocab, n_ctx = context.model.vocab, len(tokens)
    expected = tokens[n_ctx // 2 + 1 :].copy()
    if vocab.add_bos and vocab.bos is not None:
        tokens[0] = vocab.bos
    context.memory.clear()
    scored = np.zeros(n_ctx, dtype=bool)
    scored[n_ctx // 2 : n_ctx - 1] = True
    batch = pyllama.Batch(_N_BATCH)
    found: list[float] = []
    for start in range(0, n_ctx, min(_N_BATCH, n_ctx)):
        wanted = scored[start : start + _N_BATCH]
        batch.clear()
        batch.add_tokens(tokens[start : start + _N_BATCH], pos=start, outputs=wanted)
        context.decode(batch)
        if wanted.any():
            targets = expected[len(found) : len(found) + int(wanted.sum())]
            found += _negative_log_likelihoods(context.all_logits(), targets)
    return np.array(found)


def _negative_log_likelihoods(
    logits: NDArray[np.float32], targets: NDArray[np.int32]
) -> list[float]:
    found = []
    for row, target in zip(logits, targets, strict=True):  # a whole array in float64 is large
        values = row.astype(np.float64)
        peak = values.max()
        found.append(float(peak + math.log(np.exp(values - peak).sum()) - values[target]))
    return found


def _summed(losses: NDArray[np.float64], n_chunks: int) -> Surprise:
    mean = float(losses.mean())
    value = math.exp(mean)
    spread = max(0.0, float((losses**2).mean()) - mean**2)
    error = math.sqrt(spread / (len(losses) - 1)) * value if len(losses) > 1 else 0.0
    return Surprise(value, error, len(losses), n_chunks)
