"""One KV cache whose cells all requests share.

A GPU is fastest with it: one call computes one batch for all requests, and the common beginning of
prompts is in memory once.
"""

from __future__ import annotations

from adapter.generation.memory.blocks import BLOCK
from adapter.generation.memory.kv_cache import KVCache, Slot
from adapter.generation.memory.strategy import MemoryStrategy
from adapter.generation.sequence import ScheduledRequest

MAX_IDLE = 8192
"""Tokens that are kept free in a shared memory for later requests."""


class SharedMemory(MemoryStrategy):
    """One context for all requests."""

    def restore(self, slot: Slot, sequence: ScheduledRequest) -> None:
        """Restore what is cached of a prompt, and make room for the rest."""
        super().restore(slot, sequence)
        self._evict(slot.cache)

    def release(self, slot: Slot) -> Exception | None:
        """Make a slot free, and keep in memory only its prompt, or all of an answer that is kept.

        Each removal goes over all cells, so what the next request removes anyway is left.
        """
        super().release(slot)
        if not slot.cache.context.usable or (self.prefixes.rolls_back and slot.rest is not None):
            return None
        try:
            try:
                slot.keep(len(slot.blocks) if self.prefixes.rolls_back else 0)
            except Exception:
                slot.keep(0)
        except Exception as error:  # its cells are lost to the others
            return error
        return None

    def _cache_for(self, sequence: ScheduledRequest, n_waiting: int) -> KVCache | None:
        if not self._caches:
            count = max(self._room.max_sequences, self._room.width)
            self._add(self._room.longest, count, self._room.n_cells)
        (cache,) = self._caches
        return cache if cache.has_room(sequence) else None

    def _evict(self, cache: KVCache) -> None:
        """Clear free slots, except the most recently used ones.

        What the requests may need must be free, and attention reads all that is in memory.
        """
        free = cache.free
        left = cache.n_cells - cache.n_promised
        if cache.held.n_blocks * BLOCK <= MAX_IDLE and sum(map(_n_kept, free)) <= left:
            return
        blocks: set[bytes] = set()
        for slot in sorted(free, key=lambda slot: -slot.last_used):
            left -= _n_kept(slot)
            blocks.update(slot.blocks)
            if left < 0 or len(blocks) * BLOCK > MAX_IDLE:
                self.prefixes.evict(slot)


def _n_kept(slot: Slot) -> int:
    """Tokens that a free slot holds."""
    return len(slot.blocks) * BLOCK + (len(slot.rest[1]) if slot.rest else 0)
