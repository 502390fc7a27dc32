"""Settings of the contexts of a pool's models: those of the user, and those that matter."""

from __future__ import annotations

from dataclasses import fields

import pyllama
from adapter.errors import InvalidParameterError
from adapter.generation.memory.blocks import CHUNK, DEVICE_CHUNK, longest_call

OF_THE_POOL = {
    "n_ctx": "ModelPool(context_length=…) and ModelPool(max_contexts=…) say it",
    "n_seq_max": "ModelPool(max_contexts=…) says it",
    "kv_unified": "the scheduler decides it by the device",
    "n_outputs_max": "the scheduler knows it",
    "n_rs_seq": "the scheduler saves states itself",
    "attention_type": "models that generate attend to what came before",
    "pooling_type": "LlamaCppEmbedder(pooling=…) says it",
    "embeddings": "LlamaCppEmbedder computes them",
    "no_perf": "ModelPool.metrics() measures",
}
"""Settings of contexts that the pool decides, with the pool's own setting for each."""

MAX_ANSWERS = 64
"""Answers that a GPU computes at once, in two to four times the time of one. A call holds a token
of each besides those of prompts.
"""

BATCH_WIDTHS = (None, 4, 8, 12, 16)
"""Widths of batches that are padded: kernels compute four rows at a time."""

LEAST_BATCH = longest_call(CHUNK) + MAX_ANSWERS


def checked(context: pyllama.ContextParams | None) -> pyllama.ContextParams:
    """Check the user's settings for the contexts of a pool.

    Raises:
        InvalidParameterError: they set what the pool decides, or allow only calls that are too
            short.
    """
    if context is None:
        return pyllama.ContextParams()
    if not isinstance(context, pyllama.ContextParams):
        raise InvalidParameterError("context", context, "a pyllama.ContextParams, or None")
    for name, value in changed(context).items():
        if name in OF_THE_POOL:
            allowed = f"left out for a pool: {OF_THE_POOL[name]}"
            raise InvalidParameterError(f"context.{name}", value, allowed)
    if context.n_batch is not None and context.n_batch < LEAST_BATCH:
        allowed = f"at least {LEAST_BATCH} for a pool, or None"
        raise InvalidParameterError("context.n_batch", context.n_batch, allowed)
    return context


def changed(context: pyllama.ContextParams) -> dict[str, object]:
    """The fields that differ from their defaults."""
    return {
        each.name: getattr(context, each.name)
        for each in fields(context)
        if getattr(context, each.name) != each.default
    }


def decisive(context: pyllama.ContextParams) -> tuple[str, ...]:
    """The settings that affect the bytes of answers, except threads. Empty if all are defaults."""
    found = {name: value for name, value in changed(context).items() if name != "n_threads"}
    return (f"context={sorted(found.items())}",) if found else ()


def chunk_of(context: pyllama.ContextParams, *, on_device: bool, reproducible: bool) -> int:
    """Tokens of a prompt that are computed in one call.

    If bytes are kept, the number is fixed, since they depend on it. Otherwise n_batch may set how
    many tokens the longest call has, including one token of each answer.
    """
    if context.n_batch is None or reproducible:
        return DEVICE_CHUNK if on_device and not reproducible else CHUNK
    room = context.n_batch - MAX_ANSWERS
    return max(CHUNK, room * 2 // 3 // CHUNK * CHUNK)
