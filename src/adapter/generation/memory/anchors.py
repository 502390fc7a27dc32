"""Anchors: sequences without a request, which set how many cells attention reads on a GPU.

In a batch of sequences with memory of their own, attention reads the same number of cells of each:
as many as the fullest one holds, rounded up to 256. A GPU's kernels cut their sums by that number,
so the bits of a request would depend on how long others are. From LEAST cells on, multiples of STEP
give the same bits. So each window has an anchor, which holds as many tokens as make such a number.
"""

from __future__ import annotations

import numpy as np

import pyllama

LEAST = 1024
"""The fewest cells that attention reads. Softmax has as many threads, and fewer cells than 512 are
multiplied by another kernel.
"""

STEP = 512
"""Cells that a block of threads reads at once when it sums values."""


def is_anchor(seq_id: int, width: int) -> bool:
    """Whether a sequence is the anchor of its window, where every window has one.

    Each run of `width` sequences contains exactly one anchor, wherever it begins.
    """
    return seq_id % width == width - 1


def rounded(n_cells: int) -> int:
    """The fewest cells from a number on whose sums have the same bits."""
    return max(LEAST, -(-n_cells // STEP) * STEP)


def extend(context: pyllama.Context, seq_id: int, n_cells: int) -> int:
    """Have an anchor hold one token less than a number of cells. Returns where its next one goes.

    Raises:
        pyllama.LlamaError: the anchor's tokens cannot be computed.
    """
    end = n_cells - 1
    context.memory.seq_rm(seq_id, end)
    n_tokens = context.memory.seq_pos_max(seq_id) + 1
    while n_tokens < end:
        size = min(context.n_batch, end - n_tokens)
        tokens = np.zeros(size, np.int32)
        batch = pyllama.Batch.from_tokens(tokens, pos=n_tokens, seq_id=seq_id, outputs="none")
        context.decode(batch)
        n_tokens += size
    return end
