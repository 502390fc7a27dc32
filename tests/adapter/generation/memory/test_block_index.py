"""Who has most of a prompt, by an index of blocks."""

from __future__ import annotations

import random

import pytest

from adapter.generation.memory.block_index import BlockIndex
from adapter.generation.memory.blocks import block_hashes, n_shared


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_a_comparison_of_all_finds(seed):
    draw = random.Random(seed)
    index: BlockIndex[int] = BlockIndex()
    held = dict.fromkeys(range(12), ())
    for _ in range(100):
        for owner in draw.sample(range(12), 3):
            length = draw.choice((0, 8, 16, 24, 40))
            held[owner] = block_hashes([draw.choice((1, 2)) for _ in range(length)])
        index.update(held.items())
        assert index.n_blocks == len({block for blocks in held.values() for block in blocks})
        wanted = draw.choice([*held.values(), block_hashes([1] * 40)])
        for among in (None, set(), set(draw.sample(range(12), 4))):
            counted = held if among is None else among
            shared = [n_shared(held[owner], wanted) for owner in counted]
            n_blocks = index.find(wanted, among)
            assert n_blocks == max(shared, default=0)
            if n_blocks:
                most = {owner for owner in counted if n_shared(held[owner], wanted) == n_blocks}
                assert most <= {*index.owners(wanted[n_blocks - 1])}
