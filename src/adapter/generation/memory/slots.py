"""The sequences of a context: who has which, and which beginnings of prompts they still hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapter.generation.memory.blocks import BLOCK, BlockHashes, n_shared
from adapter.generation.sequence import Sequence


@dataclass(eq=False)
class Slot:
    """One sequence of a context.

    held are the blocks at the beginning of its memory, computed as blocks of a prompt: those that
    another request may build on. What comes after them is of use to nobody else.
    """

    seq_id: int
    held: BlockHashes = ()
    sequence: Sequence | None = None
    last_used: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens in its memory that are of use."""
        n_held = len(self.held) * BLOCK
        return n_held if self.sequence is None else max(n_held, self.sequence.n_past)


@dataclass
class Slots:
    """All sequences of a context."""

    count: int
    slots: list[Slot] = field(init=False)
    _clock: int = 0

    def __post_init__(self) -> None:
        self.slots = [Slot(seq_id) for seq_id in range(self.count)]

    @property
    def taken(self) -> list[Slot]:
        """Those with a request, in order of their sequence ids."""
        return [slot for slot in self.slots if slot.sequence is not None]

    @property
    def running(self) -> list[Slot]:
        """Those whose request's prompt is in memory."""
        return [slot for slot in self.taken if slot.sequence and slot.sequence.state == "running"]

    @property
    def free(self) -> list[Slot]:
        """Those without."""
        return [slot for slot in self.slots if slot.sequence is None]

    def n_shared(self, hashes: BlockHashes) -> int:
        """How many blocks of a prompt the slot holds that holds most of them."""
        return n_shared(self.nearest(hashes).held, hashes)

    def nearest(self, hashes: BlockHashes) -> Slot:
        """The slot, taken or free, that holds the longest beginning of a prompt; free first."""
        return max(
            self.slots, key=lambda slot: (n_shared(slot.held, hashes), slot.sequence is None)
        )

    def to_overwrite(self, hashes: BlockHashes) -> Slot:
        """The free slot for a prompt: the one that shares most with it.

        Of several, one beside slots that are taken: llama.cpp computes sequences together whose
        numbers follow each other, and those behind a gap in a call of their own. Then the one that
        holds least, and was used longest ago.
        """
        taken = {slot.seq_id for slot in self.taken}
        return max(
            self.free,
            key=lambda slot: (
                n_shared(slot.held, hashes),
                len(taken & {slot.seq_id - 1, slot.seq_id + 1}),
                -len(slot.held),
                -slot.last_used,
            ),
        )

    def take(self, slot: Slot, sequence: Sequence) -> None:
        """Give a free slot to a request."""
        self._clock += 1
        slot.sequence, slot.last_used = sequence, self._clock

    def give_back(self, slot: Slot) -> None:
        """Make a slot free; what it holds stays."""
        self._clock += 1
        slot.sequence, slot.last_used = None, self._clock
