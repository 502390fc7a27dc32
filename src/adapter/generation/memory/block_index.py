"""An index of prompts by their blocks. A few look-ups find who has most of a prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

from adapter.generation.memory.blocks import BlockHashes, n_shared

Owner = TypeVar("Owner")


class BlockIndex(Generic[Owner]):
    """Which owner has which beginning of a prompt.

    A block's hash stands for all blocks before it too, so an owner of a block has those as well.
    """

    def __init__(self) -> None:
        self._owners: dict[bytes, dict[Owner, None]] = {}
        self._blocks: dict[Owner, BlockHashes] = {}

    def __iter__(self) -> Iterator[Owner]:
        return iter(list(self._blocks))

    def blocks(self, owner: Owner) -> BlockHashes:
        """What an owner has."""
        return self._blocks.get(owner, ())

    @property
    def n_blocks(self) -> int:
        """How many different blocks there are."""
        return len(self._owners)

    def update(self, owned: Iterable[tuple[Owner, BlockHashes]]) -> None:
        """Record what owners have now, of whom few have changed."""
        known = self._blocks
        for owner, blocks in owned:
            if known.get(owner, ()) is not blocks:
                self.put(owner, blocks)

    def put(self, owner: Owner, blocks: BlockHashes) -> None:
        """Record what an owner has now; nothing to forget the owner.

        After an error half way, the owner may be known to have less than it has, never more.
        """
        before = self._blocks.get(owner, ())
        n_same = n_shared(before, blocks)
        for block in before[n_same:]:
            owners = self._owners.get(block, {})
            owners.pop(owner, None)
            if not owners:
                self._owners.pop(block, None)
        if blocks:
            self._blocks[owner] = blocks
        else:
            self._blocks.pop(owner, None)
        for block in blocks[n_same:]:
            known = self._owners.get(block)
            if known is None:
                self._owners[block] = {owner: None}
            else:
                known[owner] = None

    def find(self, wanted: BlockHashes, among: set[Owner] | None = None) -> int:
        """How many of these blocks, from the first on, an owner has.

        Args:
            among: the owners that count; None for all.
        """
        low, high = 0, len(wanted)
        while low < high:
            middle = (low + high + 1) // 2
            owners = self._owners.get(wanted[middle - 1])
            if owners is not None and (among is None or not among.isdisjoint(owners)):
                low = middle
            else:
                high = middle - 1
        return low

    def owners(self, block: bytes) -> Collection[Owner]:
        """The owners of a block."""
        return self._owners.get(block, {}).keys()
