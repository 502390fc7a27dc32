"""Computing a prompt: in calls that end at the same places each time, so that its bytes stay."""

from __future__ import annotations

from collections.abc import Iterator

import pyllama
from adapter.generation.blocks import call_end


def compute_call(
    context: pyllama.Context,
    batch: pyllama.Batch,
    prompt: tuple[int, ...],
    begin: int,
    *,
    chunk: int,
    seq_id: int = 0,
) -> int:
    """Compute the next tokens of a prompt, and return how many are there then.

    The call ends at a multiple of ``chunk``, counted from position 0, or with the prompt, whose
    last token gives logits.

    :param batch: filled anew.
    :param begin: how many there are already.
    """
    end = call_end(len(prompt), begin, chunk)
    batch.clear()
    batch.add_tokens(
        prompt[begin:end],
        pos=begin,
        seq_id=seq_id,
        outputs="last" if end == len(prompt) else "none",
    )
    context.decode(batch)
    return end


def prompt_steps(
    context: pyllama.Context, prompt: tuple[int, ...], begin: int = 0, *, chunk: int
) -> Iterator[int]:
    """Compute a prompt in sequence 0, one call in each step.

    Yields how many tokens are there.

    :param begin: how many there are already.
    """
    batch = pyllama.Batch(context.n_batch)
    while begin < len(prompt):
        begin = compute_call(context, batch, prompt, begin, chunk=chunk)
        yield begin
