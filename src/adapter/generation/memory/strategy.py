"""What a scheduler needs of a memory: room for requests, and what is cached of their prompts."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyllama
from adapter.generation.memory.anchors import extend, rounded
from adapter.generation.memory.blocks import BLOCK
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.memory.prefix_files import Reading
from adapter.generation.memory.prefix_reuse import PrefixReuse
from adapter.generation.sequence import ScheduledRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """How much memory there may be.

    Attributes:
        longest: tokens that the longest requests have.
        n_cells: the most tokens that all KV caches hold together. A request of any length always
            fits.
        max_sequences: the most requests that have a slot at once.
        width: sequences that each context has at the least.
        anchored: whether every window of so many sequences has an anchor; see ``anchors.py``.
    """

    longest: int
    n_cells: int
    max_sequences: int
    width: int = 1
    anchored: bool = False


class MemoryStrategy(ABC):
    """The KV caches of a model's requests. For the scheduler's thread alone.

    Args:
        make: makes a context for a number of tokens and of sequences.
        prefixes: finds, restores and saves beginnings of prompts.
    """

    def __init__(
        self, make: Callable[[int, int], pyllama.Context], prefixes: PrefixReuse, room: Room
    ) -> None:
        self._make = make
        longest = rounded(room.longest) if room.anchored else room.longest
        n_cells = max(room.n_cells, room.width * longest)
        self._room = replace(room, longest=longest, n_cells=n_cells)
        self._caches = prefixes.caches
        #: The beginnings of prompts that are in memory.
        self.prefixes = prefixes

    def __iter__(self) -> Iterator[KVCache]:
        return iter(list(self._caches))

    @property
    def slots(self) -> list[Slot]:
        """All slots."""
        return [slot for cache in self._caches for slot in cache.slots]

    @property
    def taken(self) -> list[Slot]:
        """The slots that have a request."""
        return [slot for cache in self._caches for slot in cache.taken]

    @property
    def full(self) -> bool:
        """Whether there is no room for any request, however short."""
        return len(self.taken) >= self._room.max_sequences

    def in_progress(self, sequence: ScheduledRequest) -> ScheduledRequest | Reading | None:
        """What a request should wait for, since it will give more of its prompt than is cached now.

        That is a request whose prompt is being computed, or a file that is being read.
        """
        return self.prefixes.in_progress(sequence)

    def place(self, sequence: ScheduledRequest, n_waiting: int = 1) -> Slot | None:
        """Give a request a slot that is long enough; None if there is no room.

        The contents of the slot stay until ``restore``.

        Args:
            n_waiting: requests that wait for a slot, including this one.

        Raises:
            pyllama.LlamaError: a context cannot be made, and there is no other to wait for.
        """
        cache = None if self.full else self._cache_for(sequence, n_waiting)
        if cache is None:
            return None
        slot = cache.to_overwrite(sequence.hashes)
        cache.take(slot, sequence)
        return slot

    def restore(self, slot: Slot, sequence: ScheduledRequest) -> None:
        """Restore as much of a request's prompt as is cached."""
        sequence.n_past = self.prefixes.restore(slot, sequence)
        self.prefixes.track(slot, sequence)

    def end_of(self, slot: Slot) -> int:
        """Where a slot's memory ends, with room for one more token that is not to stay.

        What a free slot holds beside beginnings of prompts is removed.
        """
        if slot.sequence is not None:
            return slot.sequence.n_past
        n_blocks = len(slot.blocks) if self.prefixes.rolls_back else 0
        slot.keep(min(n_blocks, (slot.cache.length - 1) // BLOCK))
        return len(slot.blocks) * BLOCK

    def end_of_anchor(self, slot: Slot, longest: int) -> int:
        """Where an anchor's memory ends, after it was made as long as a batch needs it.

        Args:
            longest: tokens that the others of its window hold at the most after the batch.

        Raises:
            pyllama.LlamaError: its tokens cannot be computed.
        """
        return extend(slot.cache.context, slot.seq_id, rounded(longest))

    def roll_back(self, slot: Slot, sequence: ScheduledRequest) -> bool:
        """Leave in memory what the request had before a failed batch. Returns whether that was
        possible.
        """
        memory = slot.cache.context.memory
        return self.prefixes.rolls_back and memory.seq_rm(slot.seq_id, sequence.n_past)

    def release(self, slot: Slot) -> Exception | None:
        """Make a slot free whose request has ended. Its prompt stays cached for others.

        Returns:
            An error that left its memory unusable. Its KV cache must be dropped then.
        """
        self.prefixes.forget_unless_reused(slot)
        slot.cache.give_back(slot)
        return None

    def tidy(self) -> None:  # noqa: B027 - few have anything to free
        """Free what is not needed any more, after a step."""

    def drop(self, cache: KVCache) -> None:
        """Free a context that must not be used any more."""
        if cache in self._caches:
            self._caches.remove(cache)
            cache.context.close()

    def close(self) -> None:
        """Free all contexts."""
        for cache in self:
            self.drop(cache)

    @abstractmethod
    def _cache_for(self, sequence: ScheduledRequest, n_waiting: int) -> KVCache | None:
        """A KV cache with room for a request; None while there is none."""

    def _add(self, length: int, count: int, n_cells: int) -> KVCache:
        anchored = self._room.width if self._room.anchored else 0
        cache = KVCache(self._make(n_cells, count), count, length, n_cells, anchored=anchored)
        logger.info("a context of %d sequences of %d tokens, of %d in all", count, length, n_cells)
        self._caches.append(cache)
        return cache
