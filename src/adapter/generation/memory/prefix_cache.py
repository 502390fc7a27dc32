"""Saved beginnings of prompts outside the context: states in RAM, within a budget of bytes."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass

from adapter.generation.memory.blocks import BlockHashes


@dataclass(frozen=True)
class SavedPrefix:
    """The state of a sequence that holds these blocks and nothing else."""

    hashes: BlockHashes
    state: bytes


class PrefixCache:
    """Saved prefixes. The least recently used are evicted for new ones. Thread-safe.

    It is a radix tree over blocks, stored flat: a block's hash stands for the whole path to it. So
    the longest saved beginning of a prompt is found by looking up its hashes.

    Args:
        max_bytes: the most that the states may take together; 0 keeps none.
        rolls_back: whether a state can be cut back to fewer blocks. Recurrent states cannot: they
            fit only prompts that begin with all of their blocks.
    """

    def __init__(self, max_bytes: int, *, rolls_back: bool) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._rolls_back = rolls_back
        self._lock = threading.Lock()
        self._saved: OrderedDict[bytes, SavedPrefix] = OrderedDict()  # by the last block's hash
        self._covers: dict[bytes, set[bytes]] = {}  # each block's hash → prefixes that hold it

    def __len__(self) -> int:
        return len(self._saved)

    def find(self, hashes: BlockHashes) -> tuple[SavedPrefix | None, int]:
        """The saved prefix with most of these blocks, from the first on, and how many those are."""
        with self._lock:
            # An owner of a block has all blocks before it.
            for count in range(bisect_left(hashes, 1, key=self._is_unknown), 0, -1):
                block = hashes[count - 1]
                if block in self._saved:
                    return self._saved[block], count
                if self._rolls_back:
                    return self._saved[next(iter(self._covers[block]))], count
        return None, 0

    def used(self, prefix: SavedPrefix) -> None:
        """Mark a prefix as just used."""
        with self._lock:
            if prefix.hashes[-1] in self._saved:
                self._saved.move_to_end(prefix.hashes[-1])

    def remove(self, prefix: SavedPrefix) -> None:
        """Remove a prefix."""
        with self._lock:
            self._drop(prefix.hashes[-1])

    def holds(self, hashes: BlockHashes) -> bool:
        """Whether saving these blocks would gain nothing."""
        with self._lock:
            known = self._covers if self._rolls_back else self._saved
            return not hashes or hashes[-1] in known

    def add(self, hashes: BlockHashes, state: bytes) -> None:
        """Keep a state, unless it alone exceeds the budget."""
        if not hashes or len(state) > self.max_bytes:
            return
        with self._lock:
            self._drop(hashes[-1])
            if self._rolls_back:
                for shorter in [key for key in hashes[:-1] if key in self._saved]:
                    self._drop(shorter)  # the new state replaces it
            self._saved[hashes[-1]] = SavedPrefix(hashes, state)
            self.n_bytes += len(state)
            try:
                for block in hashes:
                    self._covers.setdefault(block, set()).add(hashes[-1])
            except BaseException:
                self._drop(hashes[-1])  # a half-registered state would fail whoever finds it
                raise
            while self.n_bytes > self.max_bytes:
                self._drop(next(iter(self._saved)))

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._saved.clear()
            self._covers.clear()
            self.n_bytes = 0

    def _is_unknown(self, block: bytes) -> bool:
        return block not in self._covers

    def _drop(self, key: bytes) -> None:
        saved = self._saved.pop(key, None)
        if saved is None:
            return
        self.n_bytes -= len(saved.state)
        for block in saved.hashes:
            covering = self._covers.get(block)
            if covering is None:
                continue  # there was no memory to register it
            covering.discard(key)
            if not covering:
                del self._covers[block]
