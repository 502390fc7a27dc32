"""Contexts of several lengths: a request takes a sequence as long as it needs.

A context gives each of its sequences memory of the same length. One context for the longest
request would waste memory on all others, or hold few of them; so there are lanes, each a context
with sequences of one length, made when first needed.

Where sequences may share one memory there is one lane, whose cells go to whoever needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyllama
from adapter.generation.sequence import Sequence
from adapter.generation.slots import Slots

logger = logging.getLogger(__name__)

SHORTEST = 1024
"""Tokens of the shortest sequences."""


class _LengthWarning(logging.Filter):
    """Leaves out llama.cpp's warning that a memory is longer than what the model was trained with:
    the sequences that share it are not."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "n_ctx_train" not in record.getMessage()


@dataclass(eq=False)
class Lane:
    """A context, its sequences and its batch."""

    context: pyllama.Context
    slots: Slots
    length: int
    n_cells: int
    last_used: int = 0
    batch: pyllama.Batch = field(init=False)

    def __post_init__(self) -> None:
        self.batch = pyllama.Batch(self.context.n_batch)

    @property
    def n_promised(self) -> int:
        """Tokens that its requests may come to hold."""
        return sum(slot.sequence.n_needed for slot in self.slots.taken if slot.sequence)

    def has_room(self, sequence: Sequence) -> bool:
        """Whether a request can begin here."""
        if not self.slots.free:
            return False
        shared = self.n_cells < self.length * self.slots.count
        return not shared or self.n_promised + sequence.n_needed <= self.n_cells


class Lanes:
    """The lanes of a model, within a budget of tokens.

    :param make: makes a context for a number of tokens and of sequences.
    :param longest: tokens that the longest sequences hold.
    :param n_cells: tokens that all lanes may hold together; one sequence of any length always fits.
    :param max_sequences: the most sequences of one lane.
    :param unified: have one lane, whose sequences share its memory.
    """

    def __init__(
        self,
        make: Callable[[int, int], pyllama.Context],
        *,
        longest: int,
        n_cells: int,
        max_sequences: int,
        unified: bool = False,
    ) -> None:
        self._unified = unified
        self._make = make
        self._longest = longest
        self._n_cells = max(n_cells, longest)
        self._max_sequences = max_sequences
        self._lanes: dict[int, Lane] = {}
        self._clock = 0

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def lane_for(self, sequence: Sequence) -> Lane | None:
        """A lane with a free sequence that is long enough, or None while there is none.

        A lane is made where the budget allows it, after closing those that nobody uses.
        """
        length = self._length(sequence.n_needed)
        lane = self._lanes.get(length) or self._open(length)
        if lane is None or not lane.has_room(sequence):
            longer = [
                other
                for other in self._lanes.values()
                if other.length > length and other.has_room(sequence)
            ]
            lane = min(longer, key=lambda other: other.length, default=None)
        if lane is not None:
            self._clock += 1
            lane.last_used = self._clock
        return lane

    def drop(self, lane: Lane) -> None:
        """Close a lane whose context is not to be used any more."""
        if self._lanes.get(lane.length) is lane:
            self._close(lane)

    def close(self) -> None:
        """Free all contexts."""
        for lane in self:
            self._close(lane)

    def _length(self, needed: int) -> int:
        if self._unified:
            return self._longest
        length = SHORTEST
        while length < needed:
            length *= 2
        return min(length, self._longest)

    def _open(self, length: int) -> Lane | None:
        if self._unified:
            log, warning = logging.getLogger("pyllama.llama_cpp"), _LengthWarning()
            log.addFilter(warning)
            try:
                return self._add(length, self._max_sequences, self._n_cells)
            finally:
                log.removeFilter(warning)
        # Half of the budget for each lane, so that two lengths can be in use at once.
        count = min(self._max_sequences, max(1, self._n_cells // 2 // length))
        idle = [lane for lane in self._lanes.values() if not lane.slots.taken]
        idle.sort(key=lambda lane: lane.last_used)
        in_use = sum(lane.n_cells for lane in self._lanes.values())
        while idle and in_use + length * count > self._n_cells:
            lane = idle.pop(0)
            in_use -= lane.n_cells
            self._close(lane)
        count = min(count, (self._n_cells - in_use) // length)
        return None if count < 1 else self._add(length, count, length * count)

    def _add(self, length: int, count: int, n_cells: int) -> Lane:
        lane = Lane(self._make(n_cells, count), Slots(count), length, n_cells)
        logger.info("a lane of %d sequences of %d tokens, of %d in all", count, length, n_cells)
        self._lanes[length] = lane
        return lane

    def _close(self, lane: Lane) -> None:
        del self._lanes[lane.length]
        lane.context.close()
