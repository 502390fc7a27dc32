"""What a model computes to the same bits in more than one way, found by trying it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.random import default_rng  # numpy imports it when it is asked for, which takes memory
from numpy.typing import NDArray

import pyllama
from adapter.generation.contexts import PADDING, padded
from adapter.generation.failures import note
from adapter.generation.memory.blocks import BLOCK, CHUNK, LEAST_LEFT

Item = TypeVar("Item")
Found = TypeVar("Found")

logger = logging.getLogger(__name__)

PROBED = (2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 64)
"""Batches that are tried: kernels change their ways at small numbers and at multiples of 4."""

N_TOKENS = 4
"""Tokens of each sequence when batches are tried."""

CUTS = ((CHUNK + 3 * BLOCK,), (BLOCK, 2 * BLOCK, CHUNK - BLOCK, LEAST_LEFT))
"""Calls in which the same prompt is computed when cuts are tried: they end at blocks, and none is
shorter than what is always left to compute."""

N_PROMPT = sum(CUTS[0])

RETRY_SECONDS = 10.0
"""How long after a trial that failed the next one is made."""


class Exactness:
    """What keeps the bytes of a model on the machine that it runs on.

    It is found out once, when it is first asked for. No trial is a proof, so answers stay below
    what was tried. Where a trial cannot be made, for want of memory perhaps, the answer is the one
    that holds for every model, and the trial is made later.

    Args:
        make: makes a context for a number of tokens and of sequences.
        reproducible: whether bytes matter; where they do not, everything is allowed.
        flash_attention: whether contexts use it. Nothing is tried then: a batch of one, and cuts at
            multiples of CHUNK, are what holds for every length.
    """

    def __init__(
        self,
        make: Callable[[int, int], pyllama.Context],
        *,
        reproducible: bool,
        flash_attention: bool = False,
    ) -> None:
        self._make = make
        self._tries = not flash_attention
        self._reproducible = reproducible
        self._sizes: dict[int, int] = {}
        self._cuts: bool | None = None
        self._not_before = 0.0

    def batch_size(self, count: int) -> int:
        """How many of a context's sequences one batch may hold, one token of each."""
        if not self._reproducible:
            return count
        if count not in self._sizes:
            found = self._found(PADDING * count, count, _batch_size)
            if found is None:
                return 1
            self._sizes[count] = found
        return self._sizes[count]

    @property
    def cuts_anywhere(self) -> bool:
        """Whether a prompt may be cut at any block, and not at multiples of CHUNK alone."""
        if not self._reproducible:
            return True
        if self._cuts is None:
            self._cuts = self._found(padded(2 * CHUNK), 1, exact_cuts)
        return bool(self._cuts)

    def _found(
        self, n_cells: int, count: int, trial: Callable[[pyllama.Context], Found]
    ) -> Found | None:
        """What a trial finds in a context of its own, or None while it cannot be made."""
        if not self._tries or time.monotonic() < self._not_before:
            return None
        try:
            with self._make(n_cells, count) as context:
                return trial(context)
        except pyllama.DecodeCancelled:
            raise
        except Exception as error:
            self._not_before = time.monotonic() + RETRY_SECONDS
            note(logger, logging.WARNING, "slower for a while: a trial failed: %s", error)
            return None


def _batch_size(context: pyllama.Context) -> int:
    return exact_batch_size(context, range(context.n_seq_max))


def exact_batch_size(context: pyllama.Context, seq_ids: Sequence[int]) -> int:
    """The largest batch of the sequences for which the bytes stay, and with all smaller ones.

    Each sequence's next token is decoded alone, and in batches of growing size; what differs by a
    bit ends the search.

    Args:
        seq_ids: empty sequences of the context; they are empty again afterwards.
    """
    random = default_rng(0)
    prompts = random.integers(0, context.model.vocab.n_tokens, (len(seq_ids), N_TOKENS))
    alone = [
        _next_logits(context, [seq_id], prompts[index : index + 1])
        for index, seq_id in enumerate(seq_ids)
    ]
    exact = 1
    for size in (size for size in PROBED if size <= len(seq_ids)):
        together = _next_logits(context, seq_ids[:size], prompts[:size])
        if not np.array_equal(together, np.concatenate(alone[:size])):
            logger.info("batches of %d change the logits; taking up to %d", size, exact)
            break
        exact = size
    return exact


def exact_cuts(context: pyllama.Context) -> bool:
    """Whether the logits of a prompt are the same at whichever blocks it is cut into calls.

    Args:
        context: an empty one of at least N_PROMPT tokens, in a call too; it is empty again
            afterwards.
    """
    random = default_rng(0)
    prompt = random.integers(0, context.model.vocab.n_tokens, N_PROMPT)
    found = [_logits_by_calls(context, prompt, sizes) for sizes in CUTS]
    exact = all(np.array_equal(found[0], other) for other in found[1:])
    if not exact:
        logger.info("prompts are cut at multiples of %d tokens: other cuts change them", CHUNK)
    return exact


def groups(items: list[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of at most so many."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _next_logits(
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


def _logits_by_calls(
    context: pyllama.Context, prompt: NDArray[np.int64], sizes: Sequence[int]
) -> NDArray[np.float32]:
    """The logits of the last token, the prompt computed in calls of so many tokens."""
    begin = 0
    for size in sizes:
        tokens = prompt[begin : begin + size]
        context.decode(pyllama.Batch.from_tokens(tokens, pos=begin, outputs="last"))
        begin += size
    logits = context.all_logits()
    context.memory.clear()
    return logits
