"""The contexts of a model: how many sequences each has, and how long they are.

Where sequences have memory of their own, a context gives each of them memory of the same length,
and takes all of it when it is made. So the first context is small. A larger one is made when more
or longer requests come, and takes the place of the one before it, which ends with its last request.

Where sequences share one memory there is one context, whose cells go to whoever needs them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyllama
from adapter.generation.contexts import padded
from adapter.generation.failures import note
from adapter.generation.memory.slots import Slots
from adapter.generation.sequence import Sequence

logger = logging.getLogger(__name__)

SHORTEST = 1024
"""Tokens of the shortest sequences, but for models whose context is shorter."""

GROWTH = 4
"""How much longer the sequences of the next larger context are, where there is memory for it."""

FEWEST = 4
"""Sequences of the first context, while no more requests have come."""

RETRY_SECONDS = 10.0
"""How long after a context could not be made a larger one is tried again."""


@dataclass(eq=False)
class Lane:
    """A context, its sequences and its batch.

    drains says that it takes no more requests, and is closed with its last one.
    """

    context: pyllama.Context
    slots: Slots
    length: int
    n_cells: int
    last_used: int = 0
    drains: bool = False
    batch: pyllama.Batch = field(init=False)

    def __post_init__(self) -> None:
        self.batch = pyllama.Batch(self.context.n_batch)

    @property
    def n_promised(self) -> int:
        """Tokens that its requests may come to hold."""
        return sum(slot.sequence.n_needed for slot in self.slots.taken if slot.sequence)

    def has_room(self, sequence: Sequence) -> bool:
        """Whether a request can begin here."""
        if self.drains or self.length < sequence.n_needed or not self.slots.free:
            return False
        shared = self.n_cells < self.length * self.slots.count
        return not shared or self.n_promised + sequence.n_needed <= self.n_cells


class Lanes:
    """The contexts of a model, within a budget of tokens.

    Args:
        make: makes a context for a number of tokens and of sequences.
        longest: tokens that the longest requests have.
        n_cells: tokens that all contexts may hold together; a sequence of any length always fits.
        max_sequences: the most requests that have a sequence at once.
        unified: have one context, whose sequences share its memory.
        leave: saves what the sequences of a context hold, before it is closed for another.
    """

    def __init__(
        self,
        make: Callable[[int, int], pyllama.Context],
        *,
        longest: int,
        n_cells: int,
        max_sequences: int,
        unified: bool = False,
        leave: Callable[[Lane], object] = lambda _: None,
    ) -> None:
        self._unified = unified
        self._make = make
        self._leave = leave
        self._lengths = lengths(longest)
        self._longest = longest if unified else self._lengths[-1]
        self._n_cells = max(n_cells * self._longest // longest, self._longest)
        self._max_sequences = max_sequences
        self._lanes: list[Lane] = []
        self._clock = 0
        self._retry_at = 0.0

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes))

    @property
    def n_taken(self) -> int:
        """How many requests have a sequence."""
        return sum(len(lane.slots.taken) for lane in self._lanes)

    @property
    def full(self) -> bool:
        """Whether there is no room for any request, however short."""
        return self.n_taken >= self._max_sequences

    def lane_for(self, sequence: Sequence, n_waiting: int = 1) -> Lane | None:
        """A lane with a free sequence that is long enough, or None while there is none.

        Another is made where the budget allows it, after closing those that nobody uses.

        Args:
            n_waiting: requests that wait for a sequence, this one among them.

        Raises:
            pyllama.LlamaError: a context cannot be made, and there is no other to wait for.
        """
        if self.full:
            return None
        self.close_drained()
        lane = self._with_room(sequence) or self._open(sequence, n_waiting)
        if lane is not None:
            self._clock += 1
            lane.last_used = self._clock
        return lane

    def close_drained(self) -> None:
        """Close the lanes that took no more requests, and whose last one has ended."""
        for idle in [lane for lane in self._lanes if lane.drains and not lane.slots.taken]:
            self._close(idle)

    def drop(self, lane: Lane) -> None:
        """Close a lane whose context is not to be used any more."""
        if lane in self._lanes:
            self._lanes.remove(lane)
            lane.context.close()

    def close(self) -> None:
        """Free all contexts."""
        for lane in self:
            self.drop(lane)

    def _with_room(self, sequence: Sequence) -> Lane | None:
        """Of the lanes with room, the one that holds most of the prompt; then the shortest."""
        lanes = [lane for lane in self._lanes if lane.has_room(sequence)]
        if len(lanes) < 2:
            return lanes[0] if lanes else None
        return max(lanes, key=lambda lane: (lane.slots.n_shared(sequence.hashes), -lane.length))

    def _open(self, sequence: Sequence, n_waiting: int) -> Lane | None:
        if self._unified:
            if self._lanes:
                return None
            return self._add(self._longest, self._max_sequences, self._n_cells)
        long_enough = [lane for lane in self._lanes if lane.length >= sequence.n_needed]
        length, count = self._shape(sequence.n_needed, n_waiting)
        if not count:
            self._drain_what_is_too_long(sequence, n_waiting)
            return None
        if long_enough and time.monotonic() < self._retry_at:
            return None
        self._make_room(length * count)
        try:
            lane = self._add_what_can_be_made(length, count)
        except (pyllama.ContextError, pyllama.NativeMemoryError):
            if not any(other in self._lanes for other in long_enough):
                raise
            return None
        self._supersede(lane)
        return lane

    def _add_what_can_be_made(self, length: int, count: int) -> Lane:
        """Add a lane, of fewer sequences where memory is shorter than the budget says."""
        try:
            return self._add(length, count, length * count)
        except (pyllama.ContextError, pyllama.NativeMemoryError) as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            note(
                *(logger, logging.WARNING),
                "no context of %d sequences of %d tokens could be made: %s",
                *(count, length, error),
            )
            if count == 1:
                raise
            return self._add_what_can_be_made(length, count // 2)

    def _shape(self, n_needed: int, n_waiting: int) -> tuple[int, int]:
        """Length and number of a new lane's sequences; 0 of them where there is no room.

        Sequences are as long as the longest so far, so that the new lane can take the place of the
        others, or several times as long where that is too short. Shorter ones, if they can be more.
        """
        room = self._n_cells - sum(lane.n_cells for lane in self._lanes if lane.slots.taken)
        longest = max((lane.length for lane in self._lanes), default=0)
        if longest < n_needed:
            longest = max(n_needed, GROWTH * longest)
        most = self._max_sequences
        if self.n_taken + n_waiting <= FEWEST:
            most = min(most, FEWEST)
        needed = next(length for length in self._lengths if length >= n_needed)
        best = needed, min(most, self._count(needed, room))
        for length in self._lengths:
            if needed < length <= longest and self._count(length, room) >= best[1]:
                best = length, min(most, self._count(length, room))
        return best

    def _count(self, length: int, room: int) -> int:
        """How many sequences of a length there is room for, and for a longest one beside them."""
        beside = any(lane.length == self._longest for lane in self._lanes)
        left = room if beside or length == self._longest else room - self._longest
        return max(left, 0) // length or room // length

    def _make_room(self, n_cells: int) -> None:
        """Close lanes that nobody uses, those used longest ago first."""
        idle = [lane for lane in self._lanes if not lane.slots.taken]
        idle.sort(key=lambda lane: lane.last_used)
        left = self._n_cells - sum(lane.n_cells for lane in self._lanes)
        while idle and left < n_cells:
            lane = idle.pop(0)
            left += lane.n_cells
            self._close(lane)

    def _supersede(self, lane: Lane) -> None:
        """Have shorter and smaller lanes end: requests are computed together in one lane alone."""
        for other in self._lanes:
            smaller = other.slots.count < lane.slots.count or other.length < lane.length
            if smaller and other.length <= lane.length and other.slots.count <= lane.slots.count:
                other.drains = True

    def _drain_what_is_too_long(self, sequence: Sequence, n_waiting: int) -> None:
        """Have a full lane end where twice as many could run in shorter sequences, and wait."""
        for lane in self._lanes:
            taken = [slot.sequence.n_needed for slot in lane.slots.taken if slot.sequence]
            if lane.slots.free or n_waiting < lane.slots.count:
                continue
            needed = max(sequence.n_needed, *taken)
            length = next(length for length in self._lengths if length >= needed)
            count = min(self._max_sequences, self._count(length, self._n_cells))
            if length < lane.length and count >= 2 * lane.slots.count:
                lane.drains = True

    def _add(self, length: int, count: int, n_cells: int) -> Lane:
        lane = Lane(self._make(n_cells, count), Slots(count), length, n_cells)
        logger.info("a context of %d sequences of %d tokens, of %d in all", count, length, n_cells)
        self._lanes.append(lane)
        return lane

    def _close(self, lane: Lane) -> None:
        try:
            self._leave(lane)
        finally:
            self.drop(lane)


def lengths(longest: int) -> list[int]:
    """How long the sequences of contexts may be, so that a request of ``longest`` tokens fits."""
    found = [padded(longest)]
    while found[0] >= 2 * SHORTEST:
        found.insert(0, padded(-(-found[0] // 2)))
    return found
