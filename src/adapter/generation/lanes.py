"""Contexts of several lengths: a request takes a sequence as long as it needs.

A context gives each of its sequences memory of the same length. One context for the longest
request would waste memory on all others, or hold few of them; so there are lanes, each a context
with sequences of one length, made when first needed.
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


@dataclass(eq=False)
class Lane:
    """A context, its sequences and its batches."""

    context: pyllama.Context
    slots: Slots
    length: int
    last_used: int = 0
    prompt_batch: pyllama.Batch = field(init=False)
    step_batch: pyllama.Batch = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_batch = pyllama.Batch(self.context.n_batch)
        self.step_batch = pyllama.Batch(self.slots.count)

    @property
    def n_cells(self) -> int:
        """Tokens that all its sequences hold together."""
        return self.length * self.slots.count


class Lanes:
    """The lanes of a model, within a budget of tokens.

    :param make: makes the context of a number of sequences of some length.
    :param longest: tokens that the longest sequences hold.
    :param n_cells: tokens that all lanes may hold together; one sequence of any length always fits.
    :param max_sequences: the most sequences of one lane.
    """

    def __init__(
        self,
        make: Callable[[int, int], pyllama.Context],
        *,
        longest: int,
        n_cells: int,
        max_sequences: int,
    ) -> None:
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
        if lane is None or not lane.slots.free:
            longer = [
                other
                for other in self._lanes.values()
                if other.length > length and other.slots.free
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
        length = SHORTEST
        while length < needed:
            length *= 2
        return min(length, self._longest)

    def _open(self, length: int) -> Lane | None:
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
        if count < 1:
            return None
        lane = Lane(self._make(length, count), Slots(count), length)
        logger.info("a lane of %d sequences of %d tokens", count, length)
        self._lanes[length] = lane
        return lane

    def _close(self, lane: Lane) -> None:
        del self._lanes[lane.length]
        lane.context.close()
