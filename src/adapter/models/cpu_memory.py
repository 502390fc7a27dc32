"""What a model takes of the host's memory at its peak, where it runs on the CPU alone.

Contexts are made when they are needed, and some of them seldom are. All are counted: a request for
which there is no memory any more fails, and on Linux the system may end the process for it.
"""

from __future__ import annotations

from bisect import bisect_right

import pyllama
from adapter.generation.contexts import PADDING, padded
from adapter.generation.memory.own import FEWEST, SHORTEST

MAX_SEQUENCES = 16
"""Requests computed at once where the user names no number: a CPU gains little from more."""

MAX_KEPT_BYTES = 2**28
"""RAM for the beginnings of prompts that have no place in a context any more."""

CELL_BYTES = 64
"""What llama.cpp keeps of each token beside its keys and values."""

N_COMPUTING = 6
"""Contexts that may be there at once, each with buffers to compute with: a first, a larger and the
largest one for requests, one that tries batches out, one for scores, one of isolated requests."""

N_LOGITS = 256
"""Rows of logits that these contexts and the samplers may hold at once."""

LITTLE = 2**25
"""Bytes that everything else takes."""


class CpuMemory:
    """How the host's memory is divided.

    use     what the model takes with one context, as the scheduler makes it
    length  tokens that a request may have; None for those of that context
    """

    def __init__(self, use: pyllama.MemoryUse, length: int | None = None) -> None:
        self._length = padded(length or use.n_ctx)
        self._weights = use.host.model
        self._compute = use.host.compute
        self._per_token = use.host.context / use.n_ctx + CELL_BYTES
        self._rows = N_LOGITS * use.n_vocab * 4
        # What a recurrent model keeps of a sequence does not depend on its length.
        self._step = self._length if use.recurrent else min(SHORTEST, self._length)
        # While a larger context takes the place of a smaller one, both are there.
        growth = FEWEST * self._step
        if self._length > self._step:
            growth += MAX_SEQUENCES * self._step
        self._most = MAX_SEQUENCES * self._length + growth
        self._ordinary = min(self._most, MAX_SEQUENCES * self._step + self._length)
        self._probed = self._length if use.recurrent else PADDING

    def bytes_for(self, n_cells: int) -> int:
        """What it all takes, if the sequences of requests may hold so many tokens together."""
        # Beside those: scores, isolated requests, and what moves from one context to another.
        n_tried = min(n_cells // self._step, max(MAX_SEQUENCES, n_cells // self._length))
        n_tokens = n_cells + 3 * self._length + n_tried * self._probed
        contexts = int(n_tokens * self._per_token) + N_COMPUTING * self._compute
        return self._weights + contexts + self.kept_bytes(n_cells) + self._rows + LITTLE

    def kept_bytes(self, n_cells: int) -> int:
        """RAM for saved beginnings of prompts, which are never worth more than the contexts."""
        return min(MAX_KEPT_BYTES, int(2 * n_cells * self._per_token))

    def cells(self, room: int, margin: int) -> int:
        """How many tokens sequences are to hold together, where so many bytes can be had.

        16 of the full length, if that leaves half of the memory to other models. Else as many as do
        so, or, within all of it but a margin, 16 of ordinary length and one of the full. One of the
        full length at the least, though it may not fit.
        """
        most = self._cells_within(room // 2, self._most)
        ordinary = self._cells_within(room - margin, self._ordinary)
        return max(most, ordinary, self._length)

    def cells_of(self, n_contexts: int) -> int:
        """How many tokens sequences are to hold together so that so many of the full length fit."""
        return n_contexts * self._length + min(FEWEST, n_contexts) * self._step

    def _cells_within(self, n_bytes: int, most: int) -> int:
        steps: list[int] = [*range(0, most, self._step), most]
        n_fitting = bisect_right(steps, n_bytes, key=self.bytes_for)
        return steps[max(0, n_fitting - 1)]


def longest_within(use: pyllama.MemoryUse, room: int, *, n_contexts: int) -> int:
    """How many tokens requests may have so that so many fit into so many bytes; 0 if none do."""

    def needed(length: int) -> int:
        memory = CpuMemory(use, length)
        return memory.bytes_for(memory.cells_of(n_contexts))

    lengths = range(PADDING, use.n_ctx + 1, PADDING)
    return PADDING * bisect_right(lengths, room, key=needed)
