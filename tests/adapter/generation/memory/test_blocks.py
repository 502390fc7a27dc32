"""Blocks of prompts: their hashes, and how many of them prompts share."""

from __future__ import annotations

import random

from adapter.generation.memory.blocks import BLOCK, block_hashes, n_shared, n_shared_each


def test_hashes_go_on_from_those_that_are_known():
    draw = random.Random(1)
    prompt = [draw.randrange(1000) for _ in range(10 * BLOCK + 3)]
    whole = block_hashes(prompt)
    assert len(whole) == 10
    for n_known in range(11):
        assert block_hashes(prompt, whole[:n_known]) == whole
    assert block_hashes(tuple(prompt[: 4 * BLOCK + 1])) == whole[:4]
    assert block_hashes([], ()) == ()


def test_what_several_prompts_share_is_what_each_of_them_shares():
    draw = random.Random(2)
    base = [draw.randrange(1000) for _ in range(12 * BLOCK)]
    other = block_hashes(base[: 9 * BLOCK])
    prompts = []
    for _ in range(300):
        same = draw.choice([0, 1, 4, 4, 4, 8, 9, 12])
        rest = [1000 + draw.randrange(1000) for _ in range(draw.choice([0, 0, 5, 24]))]
        prompts.append(block_hashes([*base[: same * BLOCK], *rest]))
    assert n_shared_each(prompts, other) == [n_shared(one, other) for one in prompts]
    assert set(n_shared_each(prompts, other)) == {0, 1, 4, 8, 9}
    assert n_shared_each([], other) == []


def test_any_prompts_are_compared_as_one_by_one():
    draw = random.Random(0)
    for _ in range(300):
        prompts = [
            block_hashes([draw.choice((1, 2)) for _ in range(draw.choice((0, 8, 16, 24, 40)))])
            for _ in range(12)
        ]
        other = draw.choice(prompts)
        assert n_shared_each(prompts, other) == [n_shared(one, other) for one in prompts]
        alike = [other[: draw.randint(0, len(other))] for _ in range(12)]
        assert n_shared_each(alike, other) == list(map(len, alike))
