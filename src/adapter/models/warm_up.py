"""Computes once what requests will compute, so that the first ones do not wait for a GPU's kernels.

Most backends compile a kernel for the device when they first meet the shape that needs it. With
Vulkan that may take a second for each, unless the driver has kept what it compiled before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np

import pyllama
from adapter.generation.contexts import PADDING, Contexts
from adapter.generation.memory.blocks import LEAST_LEFT, longest_call

logger = logging.getLogger(__name__)

Progress = Callable[[float], bool | None]

LOADED = 0.9
"""The fraction of the progress at which the weights are loaded, if a warm-up follows."""

COUNT = 64
"""Sequences of the context. Most requests of a step are as many, or fewer."""

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, COUNT)
"""Sequences that are decoded at once: kernels differ up to 8, and at powers of 2 from there on."""


COMPILED = ("CUDA", "ROCm", "RPC")
"""Backends whose kernels are machine code already, or not here. On an H100 a warm-up takes longer
than what the first request gains by it.
"""


def warms_up(devices: tuple[pyllama.Device, ...]) -> bool:
    """Whether there are GPUs whose kernels are compiled when they are first needed."""
    return any(
        device.type in ("gpu", "igpu") and device.backend not in COMPILED for device in devices
    )


def while_loading(progress: Progress) -> Progress:
    """The progress of the weights, if a warm-up follows them."""
    return lambda fraction: progress(LOADED * fraction)


def warm_up(model: pyllama.Model, contexts: Contexts, chunk: int, progress: Progress) -> None:
    """Compute a prompt of each size, and a token of each number of sequences.

    A failure is logged: the first request would meet it, too.

    Args:
        contexts: make the contexts of requests.
        chunk: tokens of a prompt that are computed at once.
        progress: is given fractions from LOADED to 1. If it returns False, the load is to stop.

    Raises:
        pyllama.ModelLoadCancelled: `progress` returned False.
    """
    sizes = list(_sizes(chunk))
    try:
        with contexts.make(COUNT * PADDING, COUNT) as context:
            for n_done, (n_sequences, n_tokens) in enumerate(sizes):
                _stop_if(progress(LOADED + (1 - LOADED) * n_done / len(sizes)))
                _compute(context, n_sequences, n_tokens)
    except (pyllama.LlamaError, MemoryError) as error:
        if isinstance(error, pyllama.ModelLoadCancelled):
            raise
        logger.info("the first request of %s may wait for kernels: %s", model.desc, error)
    _stop_if(progress(1.0))


def _sizes(chunk: int) -> Iterator[tuple[int, int]]:
    """Numbers of sequences, and of tokens of each."""
    n_tokens = min(longest_call(chunk), PADDING)
    while n_tokens > LEAST_LEFT:
        yield 1, n_tokens
        n_tokens //= 2
    for n_sequences in WIDTHS:
        yield n_sequences, 1


def _compute(context: pyllama.Context, n_sequences: int, n_tokens: int) -> None:
    batch = pyllama.Batch(n_sequences * n_tokens)
    for seq_id in range(n_sequences):
        batch.add_tokens(np.zeros(n_tokens, np.int32), seq_id=seq_id)
    context.decode(batch)
    context.synchronize()
    context.memory.clear(data=False)


def _stop_if(answer: bool | None) -> None:
    if answer is False:
        raise pyllama.ModelLoadCancelled("the load was stopped while the device was warmed up")
