"""What goes into a batch: answers that go on, texts that are forced, and prompts."""

from __future__ import annotations

import threading

import pytest
from schedules import scheduler_of, tokens
from synthetic import EOS, IM_END

import pyllama
from adapter.generation.batch_plan import LEAST_PIECE, choose_parts, fill
from adapter.generation.memory.blocks import CHUNK, DEVICE_CHUNK, longest_call
from adapter.generation.memory.kv_cache import Slot
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Constraint, Sampling
from adapter.generation.sequence import ScheduledRequest

NEAR_TIE = 0.02
"""Logits here have a standard deviation of 2, and are kept in 16 bits on the way."""

GREEDY = Sampling(temperature=0.0)
ENDLESS = Sampling(temperature=0.0, logit_bias=dict.fromkeys((EOS, IM_END), -100.0))
GRAMMARS = (Constraint("root ::= [a-z ]+"), Constraint('root ::= "answer: " [0-9]+ "!"'))


def request_of(prompt, *, max_tokens=12, sampling=GREEDY, **changes):
    return GenerationRequest(tuple(prompt), max_tokens, sampling, 1, **changes)


def prefilling(vocab, length, **changes):
    """A slot whose prompt of so many tokens is being computed."""
    request = request_of(tokens(0, length), max_tokens=100, **changes)
    sequence = ScheduledRequest(vocab, request, 100, threading.Event())
    sequence.state = "prefilling"
    sequence.begin()
    return Slot(None, 0, sequence=sequence)


def running(vocab, text):
    """A slot whose grammar forces a text; none for an answer that goes on by one token."""
    constraint = Constraint(f'root ::= "{text}" [a-z]') if text else None
    slot = prefilling(vocab, 10, constraint=constraint)
    sequence = slot.sequence
    if not text:
        sequence._writer._completion.push([5])
    sequence.state = "running"
    sequence.n_past = 10
    return slot


@pytest.mark.parametrize(
    ("lengths", "room", "chunk", "expected"),
    [
        ([100, 200], 512, 512, [100, 200]),
        ([400, 200], 512, 512, [400, 112]),
        ([500, 200], 512, 512, [500]),  # 12 are no piece worth while
        ([500, 12], 512, 512, [500, 12]),  # unless they are all of it
        ([2000], 512, 512, [512]),
        ([600], 512, 512, [512]),
        ([200, 200], 512, CHUNK, [64, 64]),  # a state has to be saved at a border
        ([90, 90, 90], 200, CHUNK, [90, 90]),
        ([], 512, 512, []),
    ],
)
def test_what_goes_into_a_batch(tiny, lengths, room, chunk, expected):
    slots = [prefilling(tiny.vocab, length) for length in lengths]
    parts = choose_parts([], slots, room=room, chunk=chunk)
    assert [part.n_tokens for part in parts] == expected
    assert sum(expected) <= room
    batch = pyllama.Batch(room)
    outputs = fill(batch, parts)
    assert len(batch) == sum(expected)
    whole = [part for part in parts if part.end == len(part.sequence.request.prompt)]
    assert list(outputs.values()) == whole
    assert all(size >= LEAST_PIECE or size in lengths for size in expected)


def test_forced_texts_take_turns_and_leave_room_for_others(tiny):
    """Ever more text may be forced, and there may be room for a few of those who have one."""
    forced = [running(tiny.vocab, "x" * 31) for _ in range(7)]
    single = [running(tiny.vocab, "") for _ in range(20)]
    prompt = prefilling(tiny.vocab, 90)
    size = forced[0].sequence.n_tokens - 10
    assert size > 20
    room = len(single) + longest_call(CHUNK) + 3 * size
    served = []
    for step in range(1, 8):
        parts = choose_parts([*forced, *single], [prompt], room=room, chunk=CHUNK)
        chosen = [part.slot for part in parts]
        assert all(slot in chosen for slot in [*single, prompt])
        served += [forced.index(slot) for slot in chosen if slot in forced]
        for part in parts:
            part.sequence.step = step
    assert all(7 // 3 <= served.count(index) <= 4 for index in range(7))
    parts = choose_parts([*forced, *single], [], room=room, chunk=CHUNK)
    assert sum(part.slot in forced for part in parts) > 3  # nobody else is there


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_batch_has_room_for_a_prompt_beside_all_answers(models, name):
    """A state has to be saved at a border: such a prompt is computed in whole calls alone."""
    scheduler = scheduler_of(
        models[name], shared_memory=True, reproducible=False, chunk=DEVICE_CHUNK
    )
    single = [running(models[name].vocab, "") for _ in range(63)]
    prompt = prefilling(models[name].vocab, 96)
    with scheduler._contexts.make(64 * 64, 64) as context:
        parts = choose_parts(
            single, [prompt], room=context.n_batch, chunk=scheduler._core.plan._chunk
        )
    assert len(parts) == 64
    scheduler.close()
