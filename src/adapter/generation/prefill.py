"""Computes a prompt in calls that end at the same places each time, to keep its bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pyllama
from adapter.generation.memory.blocks import call_end


def prompt_steps(
    context: pyllama.Context, prompt: tuple[int, ...], begin: int = 0, *, chunk: int
) -> Iterator[int]:
    """Compute a prompt in sequence 0, one call in each step. The last one gives logits.

    Calls end at multiples of ``chunk``, counted from position 0, or at the end of the prompt.

    Args:
        begin: how many tokens are in memory already.

    Yields:
        how many tokens are in memory.
    """
    batch = pyllama.Batch(context.n_batch)
    while begin < len(prompt):
        end = call_end(len(prompt), begin, chunk)
        batch.clear()
        outputs = "last" if end == len(prompt) else "none"
        batch.add_tokens(prompt[begin:end], pos=begin, outputs=outputs)
        context.decode(batch)
        begin = end
        yield end
