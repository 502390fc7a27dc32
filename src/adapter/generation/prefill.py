"""Computing a prompt: in blocks counted from position 0, so that its bytes are the same always."""

from __future__ import annotations

from collections.abc import Iterator

import pyllama
from adapter.generation.blocks import BLOCK


def prompt_steps(
    context: pyllama.Context, prompt: tuple[int, ...], begin: int = 0
) -> Iterator[int]:
    """Compute a prompt in sequence 0 from a border of blocks on, one block in each step.

    Yields how many tokens are there; the last one gives logits.
    """
    batch = pyllama.Batch(context.n_batch)
    for start in range(begin, len(prompt), BLOCK):
        block = prompt[start : start + BLOCK]
        is_last = start + len(block) == len(prompt)
        batch.clear()
        batch.add_tokens(block, pos=start, outputs="last" if is_last else "none")
        context.decode(batch)
        yield start + len(block)
