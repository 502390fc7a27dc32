"""Blocks of prompts: their hashes, and how many of them prompts share."""

from __future__ import annotations

import random

from adapter.generation.memory.blocks import BLOCK, block_hashes


def test_hashes_go_on_from_those_that_are_known():
    draw = random.Random(1)
    prompt = [draw.randrange(1000) for _ in range(10 * BLOCK + 3)]
    whole = block_hashes(prompt)
    assert len(whole) == 10
    for n_known in range(11):
        assert block_hashes(prompt, whole[:n_known]) == whole
    assert block_hashes(tuple(prompt[: 4 * BLOCK + 1])) == whole[:4]
    assert block_hashes([], ()) == ()
