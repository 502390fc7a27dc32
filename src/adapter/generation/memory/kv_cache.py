"""A context's KV cache: its slots, their requests, and the blocks of prompts that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import pyllama
from adapter.generation.memory.anchors import is_anchor
from adapter.generation.memory.block_index import BlockIndex
from adapter.generation.memory.blocks import BLOCK, BlockHashes
from adapter.generation.sequence import ScheduledRequest

_blocks = attrgetter("blocks")


@dataclass(eq=False)
class Slot:
    """One sequence of a KV cache.

    ``blocks`` are at the beginning of its memory and were computed as blocks of a prompt. Another
    request may reuse them, but not what comes after them. An anchor never gets a request: see
    ``anchors.py``.

    Attributes:
        rest: tokens after the blocks, too few for another one, that may be reused as well: where
            they begin, and the tokens. None if there are none.
    """

    cache: KVCache
    seq_id: int
    blocks: BlockHashes = ()
    sequence: ScheduledRequest | None = None
    last_used: int = 0
    rest: tuple[int, tuple[int, ...]] | None = None
    is_anchor: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens in its memory that are in use."""
        n_reusable = len(self.blocks) * BLOCK
        return n_reusable if self.sequence is None else max(n_reusable, self.sequence.n_past)

    def keep(self, n_blocks: int) -> bool:
        """Remove all but the first blocks from its memory. Returns whether that was possible."""
        self.rest = None
        kept = self.cache.context.memory.seq_rm(self.seq_id, n_blocks * BLOCK)
        self.blocks = self.blocks[:n_blocks]
        return kept

    def keep_whole(self, tokens: Sequence[int]) -> int:
        """Remove what differs from a prompt, where the blocks are its beginning and something
        follows them. Returns how many tokens are left.

        Args:
            tokens: the prompt. Its last token is to be computed.
        """
        n_tokens = len(self.blocks) * BLOCK
        if self.rest is not None and self.rest[0] == n_tokens:
            for own, token in zip(self.rest[1], tokens[n_tokens:-1], strict=False):
                if own != token:
                    break
                n_tokens += 1
        self.rest = None
        self.cache.context.memory.seq_rm(self.seq_id, n_tokens)
        return n_tokens


@dataclass(eq=False)
class KVCache:
    """A context with its slots, and the batch in which they are computed.

    Attributes:
        length: tokens that one slot can hold.
        n_cells: tokens that all of them can hold together.
        drains: whether it admits no more requests, and is closed after its last one.
        anchored: how many sequences have one anchor among them, the last; 0 for no anchors.
    """

    context: pyllama.Context
    count: int
    length: int
    n_cells: int
    last_used: int = 0
    drains: bool = False
    anchored: int = 0
    batch: pyllama.Batch = field(init=False)
    slots: list[Slot] = field(init=False)
    _held: BlockIndex[Slot] = field(init=False, default_factory=BlockIndex)
    _clock: int = 0

    def __post_init__(self) -> None:
        self.batch = pyllama.Batch(self.context.n_batch)
        self.slots = [
            Slot(self, seq_id, is_anchor=self.anchored > 0 and is_anchor(seq_id, self.anchored))
            for seq_id in range(self.count)
        ]

    @property
    def taken(self) -> list[Slot]:
        """The slots with a request, in order of their sequence ids."""
        return [slot for slot in self.slots if slot.sequence is not None]

    @property
    def running(self) -> list[Slot]:
        """The slots whose request's prompt is in memory."""
        return [slot for slot in self.taken if slot.sequence and slot.sequence.state == "running"]

    @property
    def free(self) -> list[Slot]:
        """The slots that a request may get."""
        return [slot for slot in self.slots if slot.sequence is None and not slot.is_anchor]

    @property
    def n_promised(self) -> int:
        """The most tokens that its requests may come to hold."""
        return sum(slot.sequence.n_needed for slot in self.taken if slot.sequence)

    def has_room(self, sequence: ScheduledRequest) -> bool:
        """Whether a request can begin here."""
        if self.drains or self.length < sequence.n_needed or not self.free:
            return False
        shared = self.n_cells < self.length * self.count
        return not shared or self.n_promised + sequence.n_needed <= self.n_cells

    @property
    def held(self) -> BlockIndex[Slot]:
        """Which slots hold which blocks."""
        self._held.update(zip(self.slots, map(_blocks, self.slots), strict=True))
        return self._held

    def n_shared(self, hashes: BlockHashes) -> int:
        """The most blocks of a prompt that one of its slots holds."""
        return self.held.find(hashes)

    def nearest(self, hashes: BlockHashes) -> Slot:
        """The slot with the longest beginning of a prompt, preferably a free one."""
        held = self.held
        n_blocks = held.find(hashes)
        likeliest = held.owners(hashes[n_blocks - 1]) if n_blocks else self.slots
        return min(likeliest, key=lambda slot: (slot.sequence is not None, slot.seq_id))

    def to_overwrite(self, hashes: BlockHashes) -> Slot:
        """The free slot that shares most with a prompt.

        Among equals, one beside taken slots is preferred: llama.cpp computes sequences together if
        their numbers are consecutive, and needs another call after a gap. Then the one that holds
        least, and was least recently used.
        """
        taken = {slot.seq_id for slot in self.taken}
        free, held = self.free, self.held
        n_blocks = held.find(hashes, {*free})
        if n_blocks:
            likeliest = held.owners(hashes[n_blocks - 1])
            free = [slot for slot in free if slot in likeliest]
        return max(
            free,
            key=lambda slot: (
                len(taken & {slot.seq_id - 1, slot.seq_id + 1}),
                -len(slot.blocks),
                -slot.last_used,
            ),
        )

    def take(self, slot: Slot, sequence: ScheduledRequest) -> None:
        """Give a free slot to a request."""
        self._clock += 1
        slot.last_used, slot.sequence = self._clock, sequence

    def give_back(self, slot: Slot) -> None:
        """Make a slot free. What it holds stays."""
        self._clock += 1
        slot.sequence, slot.last_used = None, self._clock
