"""The host's memory that a model takes at its peak, if it runs on the CPU alone.

Contexts are made when they are needed, and some of them rarely are. All are counted, since a
request without memory fails, and Linux may even end the process.
"""

from __future__ import annotations

from bisect import bisect_right

import pyllama
from adapter.generation.contexts import PADDING, padded
from adapter.generation.memory.own import FEWEST, SHORTEST

MAX_SEQUENCES = 16
"""Requests that are computed at once unless the user sets a number. A CPU gains little from more.
"""

MAX_KEPT_BYTES = 2**28
"""RAM for beginnings of prompts that are no longer in a context."""

CELL_BYTES = 64
"""Bytes that llama.cpp keeps for each token besides its keys and values."""

N_COMPUTING = 6
"""Contexts that may exist at once, each with compute buffers: a first, a larger and the largest one
for requests, one for trials of batches, one for scores, one for isolated requests.
"""

N_LOGITS = 256
"""Rows of logits that these contexts and the samplers may hold at once."""

LITTLE = 2**25
"""Bytes that everything else takes."""


class CpuMemory:
    """How the host's memory is divided.

    Attributes:
        use: what the model takes with one context, as the scheduler makes it.
        length: tokens that a request may have; None for the length of that context.
        width: the fewest sequences of a context for requests.
    """

    def __init__(self, use: pyllama.MemoryUse, length: int | None = None, width: int = 1) -> None:
        self._width = width
        self._length = padded(length or use.n_ctx)
        self._weights = use.host.model
        self._compute = use.host.compute
        self._per_token = use.host.context / use.n_ctx + CELL_BYTES
        self._rows = N_LOGITS * use.n_vocab * 4
        # A recurrent model's state of a sequence does not depend on its length.
        self._step = self._length if use.recurrent else min(SHORTEST, self._length)
        # Two contexts exist while a larger one replaces a smaller one.
        growth = max(FEWEST, width) * self._step
        if self._length > self._step:
            growth += MAX_SEQUENCES * self._step
        self._most = MAX_SEQUENCES * self._length + growth
        self._ordinary = min(self._most, MAX_SEQUENCES * self._step + width * self._length)
        self._probed = self._length if use.recurrent else PADDING

    def bytes_for(self, n_cells: int) -> int:
        """The bytes in all, if the sequences of requests hold this many tokens together."""
        # Besides those: scores, isolated requests, and what moves from one context to another.
        n_tried = min(n_cells // self._step, max(MAX_SEQUENCES, n_cells // self._length))
        n_tokens = n_cells + (2 + self._width) * self._length + n_tried * self._probed
        contexts = int(n_tokens * self._per_token) + N_COMPUTING * self._compute
        return self._weights + contexts + self.kept_bytes(n_cells) + self._rows + LITTLE

    def kept_bytes(self, n_cells: int) -> int:
        """RAM for saved beginnings of prompts. More than the contexts take would be of no use."""
        return min(MAX_KEPT_BYTES, int(2 * n_cells * self._per_token))

    def cells(self, room: int, margin: int) -> int:
        """How many tokens sequences should hold together, within a number of bytes.

        Enough for 16 sequences of the full length, if that leaves half of the memory to other
        models. Else as many tokens as leave half; or, within all of the memory but a margin, 16
        sequences of ordinary length and one of the full length. At least one of the full length,
        though it may not fit.
        """
        most = self._cells_within(room // 2, self._most)
        ordinary = self._cells_within(room - margin, self._ordinary)
        return max(most, ordinary, self._width * self._length)

    def cells_of(self, n_contexts: int) -> int:
        """How many tokens sequences must hold together so that `n` of the full length fit."""
        count = max(n_contexts, self._width)
        return count * self._length + min(max(FEWEST, self._width), count) * self._step

    def _cells_within(self, n_bytes: int, most: int) -> int:
        steps: list[int] = [*range(0, most, self._step), most]
        n_fitting = bisect_right(steps, n_bytes, key=self.bytes_for)
        return steps[max(0, n_fitting - 1)]


def longest_within(use: pyllama.MemoryUse, room: int, *, n_contexts: int, width: int = 1) -> int:
    """How many tokens requests may have so that `n` of them fit into a number of bytes; 0 if none
    do.
    """

    def needed(length: int) -> int:
        memory = CpuMemory(use, length, width)
        return memory.bytes_for(memory.cells_of(n_contexts))

    lengths = range(PADDING, use.n_ctx + 1, PADDING)
    return PADDING * bisect_right(lengths, room, key=needed)
