"""Memory of its own for each sequence, so that the bytes of a request do not depend on the others.

A context gives each of its sequences memory of the same length, and allocates all of it when it is
made. So the first context is small. When more or longer requests come, a larger context is made. It
replaces the one before it, which is closed after its last request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import pyllama
from adapter.generation.contexts import padded
from adapter.generation.failures import note
from adapter.generation.memory.anchors import rounded
from adapter.generation.memory.kv_cache import KVCache
from adapter.generation.memory.prefix_reuse import PrefixReuse
from adapter.generation.memory.strategy import MemoryStrategy, Room
from adapter.generation.sequence import ScheduledRequest

logger = logging.getLogger(__name__)

SHORTEST = 1024
"""Tokens of the shortest sequences, unless the model's context is shorter."""

GROWTH = 4
"""How much longer the sequences of the next larger context are, if there is memory for it."""

FEWEST = 4
"""Sequences of the first context."""

RETRY_SECONDS = 10.0
"""Seconds after a context could not be made until a larger one is tried again."""


class OwnMemory(MemoryStrategy):
    """Contexts of growing size, within a budget of tokens."""

    def __init__(
        self, make: Callable[[int, int], pyllama.Context], prefixes: PrefixReuse, room: Room
    ) -> None:
        self._lengths = lengths(room.longest)
        if room.anchored:
            self._lengths = sorted({rounded(length) for length in self._lengths})
        self._fewest = room.max_sequences if room.anchored else FEWEST
        longest = self._lengths[-1]
        n_cells = room.n_cells * longest // room.longest
        super().__init__(make, prefixes, replace(room, longest=longest, n_cells=n_cells))
        self._clock = 0
        self._retry_at = 0.0

    def tidy(self) -> None:
        """Close the contexts that admit no more requests and whose last one has ended."""
        for cache in [cache for cache in self._caches if cache.drains and not cache.taken]:
            self._close(cache)

    def _cache_for(self, sequence: ScheduledRequest, n_waiting: int) -> KVCache | None:
        """The KV cache for a request; None if there is none, or if it is better to wait.

        Another is made if the budget allows it, after closing unused ones.
        """
        self.tidy()
        cache = self._with_room(sequence) or self._open(sequence, n_waiting)
        if cache is None:
            return None
        self._clock += 1
        cache.last_used = self._clock
        return None if self.prefixes.must_wait(cache, sequence) else cache

    def _with_room(self, sequence: ScheduledRequest) -> KVCache | None:
        """The KV cache with room that has most of the prompt; among equals the shortest."""
        caches = [cache for cache in self._caches if cache.has_room(sequence)]
        if len(caches) < 2:
            return caches[0] if caches else None
        return max(caches, key=lambda cache: (cache.n_shared(sequence.hashes), -cache.length))

    def _open(self, sequence: ScheduledRequest, n_waiting: int) -> KVCache | None:
        long_enough = [cache for cache in self._caches if cache.length >= sequence.n_needed]
        length, count = self._shape(sequence.n_needed, n_waiting)
        if not count:
            self._drain_what_is_too_long(sequence, n_waiting)
            return None
        if long_enough and time.monotonic() < self._retry_at:
            return None
        self._make_room(length * count)
        try:
            cache = self._add_what_can_be_made(length, count)
        except (pyllama.ContextError, pyllama.NativeMemoryError):
            if not any(other in self._caches for other in long_enough):
                raise
            return None
        self._supersede(cache)
        return cache

    def _add_what_can_be_made(self, length: int, count: int) -> KVCache:
        """Add a context. If memory is shorter than the budget, it gets fewer sequences."""
        try:
            return self._add(length, count, length * count)
        except (pyllama.ContextError, pyllama.NativeMemoryError) as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            note(
                *(logger, logging.WARNING),
                "no context of %d sequences of %d tokens could be made: %s",
                *(count, length, error),
            )
            if count // 2 < self._room.width:
                raise
            return self._add_what_can_be_made(length, count // 2)

    def _shape(self, n_needed: int, n_waiting: int) -> tuple[int, int]:
        """Length and number of a new context's sequences; 0 of them if there is no room.

        Sequences are as long as the longest so far, so that the new context can replace the others.
        If that is too short, they are several times as long. They are shorter only if there can be
        more of them.
        """
        room = self._room.n_cells - sum(cache.n_cells for cache in self._caches if cache.taken)
        longest = max((cache.length for cache in self._caches), default=0)
        if longest < n_needed:
            longest = max(n_needed, GROWTH * longest)
        most = self._room.max_sequences
        if len(self.taken) + n_waiting <= self._fewest:
            most = min(most, self._fewest)
        most = max(most, self._room.width)
        needed = next(length for length in self._lengths if length >= n_needed)
        best = needed, min(most, self._count(needed, room))
        for length in self._lengths:
            if needed < length <= longest and self._count(length, room) >= best[1]:
                best = length, min(most, self._count(length, room))
        return best

    def _count(self, length: int, room: int) -> int:
        """How many sequences of a length there is room for, and for a longest one beside them.

        None where they would be fewer than a context has at the least.
        """
        beside = any(cache.length == self._room.longest for cache in self._caches)
        kept = (
            0 if beside or length == self._room.longest else self._room.width * self._room.longest
        )
        for count in (max(room - kept, 0) // length, room // length):
            if count >= self._room.width:
                return count
        return 0

    def _make_room(self, n_cells: int) -> None:
        """Close unused contexts, the least recently used first."""
        idle = [cache for cache in self._caches if not cache.taken]
        idle.sort(key=lambda cache: cache.last_used)
        left = self._room.n_cells - sum(cache.n_cells for cache in self._caches)
        while idle and left < n_cells:
            cache = idle.pop(0)
            left += cache.n_cells
            self._close(cache)

    def _supersede(self, cache: KVCache) -> None:
        """Retire shorter and smaller contexts: only sequences of one context are computed in one
        batch.
        """
        for other in self._caches:
            smaller = other.count < cache.count or other.length < cache.length
            if smaller and other.length <= cache.length and other.count <= cache.count:
                other.drains = True

    def _drain_what_is_too_long(self, sequence: ScheduledRequest, n_waiting: int) -> None:
        """Retire a full context if twice as many shorter sequences could run and requests wait for
        them.
        """
        for cache in self._caches:
            taken = [slot.sequence.n_needed for slot in cache.taken if slot.sequence]
            if cache.free or n_waiting < cache.count:
                continue
            needed = max(sequence.n_needed, *taken)
            length = next(length for length in self._lengths if length >= needed)
            count = min(self._room.max_sequences, self._count(length, self._room.n_cells))
            if length < cache.length and count >= 2 * cache.count:
                cache.drains = True

    def _close(self, cache: KVCache) -> None:
        """Free a context, and save what it holds of prompts."""
        try:
            self.prefixes.save_unused(cache)
        finally:
            self.drop(cache)


def lengths(longest: int) -> list[int]:
    """How long the sequences of contexts may be, so that a request of ``longest`` tokens fits."""
    found = [padded(longest)]
    while found[0] >= 2 * SHORTEST:
        found.insert(0, padded(-(-found[0] // 2)))
    return found
