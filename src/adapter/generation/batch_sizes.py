"""How many sequences can be decoded in one batch without a bit of their logits changing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

import pyllama

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

PROBED = (2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 64)
"""Sizes that are tried: kernels change their ways at small numbers and at multiples of 4."""

N_TOKENS = 4  # of each sequence


def exact_batch_size(context: pyllama.Context, seq_ids: Sequence[int]) -> int:
    """The largest batch of the sequences for which the bytes stay, and with all smaller ones.

    Each sequence's next token is decoded alone, and in batches of growing size; what differs by a
    bit ends the search. It is no proof, so the sizes stay below what was tried.

    :param seq_ids: empty sequences of the context; they are empty again afterwards.
    """
    random = np.random.default_rng(0)
    prompts = random.integers(0, context.model.vocab.n_tokens, (len(seq_ids), N_TOKENS))
    alone = [
        _logits(context, [seq_id], prompts[index : index + 1])
        for index, seq_id in enumerate(seq_ids)
    ]
    exact = 1
    for size in (size for size in PROBED if size <= len(seq_ids)):
        together = _logits(context, seq_ids[:size], prompts[:size])
        if not np.array_equal(together, np.concatenate(alone[:size])):
            logger.info("batches of %d change the logits; taking up to %d", size, exact)
            break
        exact = size
    return exact


def groups(items: list[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of at most so many."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _logits(
    context: pyllama.Context, seq_ids: Sequence[int], prompts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The logits of each sequence's last token, decoded together after the others one by one."""
    last = N_TOKENS - 1
    batch = pyllama.Batch(len(seq_ids))
    for seq_id, prompt in zip(seq_ids, prompts, strict=True):
        context.memory.seq_rm(seq_id)
        context.decode(pyllama.Batch.from_tokens(prompt[:last], seq_id=seq_id, outputs="none"))
        batch.add(int(prompt[last]), last, (seq_id,), output=True)
    context.decode(batch)
    logits = context.all_logits()
    for seq_id in seq_ids:
        context.memory.seq_rm(seq_id)
    return logits
