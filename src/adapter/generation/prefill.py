"""Computing a prompt: in calls that end at the same places each time, so that its bytes stay."""

from __future__ import annotations

from collections.abc import Iterator

import pyllama


def prompt_steps(
    context: pyllama.Context, prompt: tuple[int, ...], begin: int = 0
) -> Iterator[int]:
    """Compute a prompt in sequence 0, one call in each step.

    Calls end at the multiples of the context's batch, counted from position 0. Yields how many
    tokens are there; the last one gives logits.

    :param begin: how many there are already.
    """
    chunk = context.n_batch
    batch = pyllama.Batch(chunk)
    while begin < len(prompt):
        end = min(begin - begin % chunk + chunk, len(prompt))
        batch.clear()
        batch.add_tokens(
            prompt[begin:end], pos=begin, outputs="last" if end == len(prompt) else "none"
        )
        context.decode(batch)
        yield end
        begin = end
