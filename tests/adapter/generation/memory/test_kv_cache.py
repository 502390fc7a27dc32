"""Which slot a prompt gets."""

from __future__ import annotations

import threading

import pytest

from adapter.generation.memory.blocks import block_hashes
from adapter.generation.memory.kv_cache import KVCache
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.sequence import ScheduledRequest

PROMPT = tuple(range(5, 45))


@pytest.fixture
def sequence(tiny):
    request = GenerationRequest(PROMPT, 10, Sampling(), 0)
    return ScheduledRequest(tiny.vocab, request, 10, threading.Event())


class Context:
    n_batch = 96


def cache_of(count):
    return KVCache(Context(), count, 1024, 1024 * count)


def take(cache, *seq_ids, sequence):
    for seq_id in seq_ids:
        cache.take(cache.slots[seq_id], sequence)


@pytest.mark.parametrize(
    ("taken", "allowed"), [((0, 2), {1}), ((3,), {2, 4}), ((0, 1), {2}), ((1, 5, 7), {6})]
)
def test_a_slot_beside_those_that_run(sequence, taken, allowed):
    """Sequences whose numbers follow each other are computed together."""
    cache = cache_of(8)
    take(cache, *taken, sequence=sequence)
    assert cache.to_overwrite(sequence.hashes).seq_id in allowed


def test_a_slot_that_holds_more_of_the_prompt_comes_first(sequence):
    cache = cache_of(8)
    take(cache, 0, 2, sequence=sequence)
    cache.slots[6].blocks = block_hashes(PROMPT[:16])
    assert cache.to_overwrite(sequence.hashes).seq_id == 6


def test_of_slots_alike_the_one_that_holds_least_and_then_the_oldest(sequence):
    cache = cache_of(4)
    for slot in cache.slots:
        slot.blocks = block_hashes(range(100, 116 + 8 * (slot.seq_id % 2)))
        cache.give_back(slot)
    assert cache.to_overwrite(sequence.hashes).seq_id == 0
    cache.give_back(cache.slots[0])
    assert cache.to_overwrite(sequence.hashes).seq_id == 2


def test_the_nearest_is_free_if_it_can_be(sequence):
    cache = cache_of(4)
    for seq_id in (1, 2):
        cache.slots[seq_id].blocks = block_hashes(PROMPT[:24])
    take(cache, 1, sequence=sequence)
    assert cache.nearest(sequence.hashes).seq_id == 2
