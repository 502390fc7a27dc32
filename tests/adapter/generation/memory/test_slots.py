"""Which slot a prompt gets."""

from __future__ import annotations

import threading

import pytest

from adapter.generation.memory.blocks import block_hashes
from adapter.generation.memory.slots import Slots
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.sequence import Sequence

PROMPT = tuple(range(5, 45))


@pytest.fixture
def sequence(tiny):
    request = GenerationRequest(PROMPT, 10, Sampling(), 0)
    return Sequence(tiny.vocab, request, 10, threading.Event())


def take(slots, *seq_ids, sequence):
    for seq_id in seq_ids:
        slots.take(slots.slots[seq_id], sequence)


@pytest.mark.parametrize(
    ("taken", "allowed"), [((0, 2), {1}), ((3,), {2, 4}), ((0, 1), {2}), ((1, 5, 7), {6})]
)
def test_a_slot_beside_those_that_run(sequence, taken, allowed):
    """Sequences whose numbers follow each other are computed together."""
    slots = Slots(8)
    take(slots, *taken, sequence=sequence)
    assert slots.to_overwrite(sequence.hashes).seq_id in allowed


def test_a_slot_that_holds_more_of_the_prompt_comes_first(sequence):
    slots = Slots(8)
    take(slots, 0, 2, sequence=sequence)
    slots.slots[6].held = block_hashes(PROMPT[:16])
    assert slots.to_overwrite(sequence.hashes).seq_id == 6


def test_of_slots_alike_the_one_that_holds_least_and_then_the_oldest(sequence):
    slots = Slots(4)
    for slot in slots.slots:
        slot.held = block_hashes(range(100, 116 + 8 * (slot.seq_id % 2)))
        slots.give_back(slot)
    assert slots.to_overwrite(sequence.hashes).seq_id == 0
    slots.give_back(slots.slots[0])
    assert slots.to_overwrite(sequence.hashes).seq_id == 2


def test_the_nearest_is_free_if_it_can_be(sequence):
    slots = Slots(4)
    for seq_id in (1, 2):
        slots.slots[seq_id].held = block_hashes(PROMPT[:24])
    take(slots, 1, sequence=sequence)
    assert slots.nearest(sequence.hashes).seq_id == 2
