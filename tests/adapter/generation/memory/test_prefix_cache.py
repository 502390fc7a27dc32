"""Saved beginnings of prompts, when there is no memory to take note of them."""

from __future__ import annotations

import pytest
from schedules import tokens

from adapter.generation.memory.blocks import block_hashes
from adapter.generation.memory.prefix_cache import PrefixCache


class Short(dict):
    """A dictionary for whose nth new value there is no memory, or none to keep it."""

    def __init__(self, nth, *, made):
        super().__init__()
        self.left, self.made = nth, made

    def setdefault(self, key, value):
        self.left -= 1
        if not self.left:
            if self.made:
                super().setdefault(key, value)
            raise MemoryError
        return super().setdefault(key, value)


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("rolls_back", [True, False])
@pytest.mark.parametrize("nth", range(1, 9))
def test_what_could_not_be_kept_whole_is_not_kept(nth, rolls_back, made):
    cache = PrefixCache(1000, rolls_back=rolls_back)
    hashes = block_hashes(tokens(1, 64))
    cache._covers = Short(nth, made=made)
    with pytest.raises(MemoryError):
        cache.add(hashes, b"state")
    assert (len(cache), cache.n_bytes) == (0, 0)
    assert cache.find(hashes) == (None, 0)
    assert not cache.holds(hashes)
    for _ in range(2):  # the second takes the first one's place
        cache.add(hashes, b"state")
        assert cache.find(hashes)[1] == len(hashes)
    cache.add(block_hashes(tokens(2, 64)), b"x" * 1000)
    assert cache.find(hashes) == (None, 0)
