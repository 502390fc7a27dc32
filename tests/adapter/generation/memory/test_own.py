"""How many sequences a model has, and how long they are: all that is reserved is used."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import synthetic
from schedules import scheduler_of, tokens

import pyllama
from adapter import ModelPool
from adapter.generation.memory.blocks import BLOCK
from adapter.generation.memory.own import FEWEST, GROWTH, SHORTEST, OwnMemory, lengths
from adapter.generation.memory.strategy import Room
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling


@dataclass(eq=False)
class Request:
    """What a memory asks of a sequence."""

    n_needed: int
    hashes: tuple[bytes, ...] = ()


class NoPrefixes:
    """Stands for a memory's beginnings of prompts, of which there are none."""

    def __init__(self):
        self.caches = []

    def must_wait(self, cache, sequence):
        return False

    def save_unused(self, cache):
        pass

    def forget_unless_reused(self, slot):
        pass


@dataclass(eq=False)
class Machine:
    """Its memory: contexts take of it what they were made with."""

    most: int
    in_use: int = 0
    made: list[tuple[int, int]] = field(default_factory=list)

    def make(self, n_cells, count):
        if n_cells > self.most - self.in_use:
            raise pyllama.ContextError("no memory")
        self.in_use += n_cells
        self.made.append((n_cells, count))
        return Context(self, n_cells)


@dataclass(eq=False)
class Context:
    machine: Machine
    n_cells: int
    n_batch: int = 96

    def close(self):
        self.machine.in_use -= self.n_cells


def memory_of(n_cells, *, longest=4096, max_sequences=16, most=None):
    machine = Machine(n_cells if most is None else most)
    room = Room(longest, n_cells, max_sequences)
    return OwnMemory(machine.make, NoPrefixes(), room), machine


def admit(memory, requests):
    """Give requests slots in their order, as long as there is room; return the slots."""
    taken = []
    for n_done, request in enumerate(requests):
        slot = memory.place(request, len(requests) - n_done)
        if slot is None:
            break
        taken.append(slot)
    return taken


def end(memory, slots):
    for slot in slots:
        memory.release(slot)


def test_sequences_are_as_long_as_the_longest_request_or_half_or_a_quarter():
    assert lengths(4096) == [1024, 2048, 4096]
    assert lengths(1024) == [1024]
    assert lengths(64) == [256]
    assert lengths(5000)[-1] == 5120


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("longest", [100, 1000, 4096, 32768])
def test_as_many_of_the_full_length_run_as_memory_is_reserved_for(count, longest):
    memory, _ = memory_of(count * longest, longest=longest, most=10**9)
    assert len(admit(memory, [Request(longest)] * 20)) == count


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_of_shorter_ones_run_as_many_more(count):
    memory, _ = memory_of(count * 4096)
    n_running = len(admit(memory, [Request(500)] * 20))
    assert n_running >= min(16, count * 4 - 4, 20) or count == 1
    assert n_running >= min(16, 4 * count) - 4
    assert n_running > count


def test_the_first_context_is_small_and_grows_with_what_comes():
    memory, machine = memory_of(16 * 4096 + (16 + FEWEST) * SHORTEST)
    admit(memory, [Request(500)])
    assert machine.made == [(FEWEST * SHORTEST, FEWEST)]
    admit(memory, [Request(500)] * 10)
    assert machine.made[1:] == [(16 * SHORTEST, 16)]
    admit(memory, [Request(1500)])
    assert machine.made[2:] == [(16 * GROWTH * SHORTEST, 16)]
    first, second, last = memory
    assert first.drains
    assert second.drains
    end(memory, first.taken)
    admit(memory, [Request(100)])
    assert list(memory) == [second, last]  # what is empty is closed


def test_the_larger_context_takes_all_that_come():
    memory, _ = memory_of(16 * 4096 + 16 * 1024)
    old = admit(memory, [Request(500)] * 5)
    (slot,) = admit(memory, [Request(4000)])
    assert all(other.cache is slot.cache for other in admit(memory, [Request(100)] * 5))
    assert old[0].cache.drains
    end(memory, old)


def test_many_short_ones_get_short_sequences_again_after_long_ones():
    memory, _ = memory_of(4 * 4096)
    end(memory, admit(memory, [Request(4000)] * 4))
    running = admit(memory, [Request(100)] * 30)
    assert len(running) == 4
    assert admit(memory, [Request(100)] * 26) == []  # it is left to end
    end(memory, running[:1])
    assert admit(memory, [Request(100)] * 26) == []
    end(memory, running[1:])
    assert len(admit(memory, [Request(100)] * 26)) >= 8


def test_a_few_short_ones_do_not_end_a_long_context():
    memory, machine = memory_of(4 * 4096)
    end(memory, admit(memory, [Request(4000)] * 4))
    running = admit(memory, [Request(100)] * 6)
    end(memory, running)
    assert len(admit(memory, [Request(100)] * 2)) == 2
    assert len(machine.made) == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_the_budget_holds_and_everybody_gets_a_sequence(seed):
    chosen = random.Random(seed)
    longest = chosen.choice([256, 1000, 4096, 10_000])
    n_cells = int(longest * chosen.choice([1, 1.25, 2, 3.5, 8, 20]))
    memory, machine = memory_of(n_cells, longest=longest, most=10**9)
    budget = max(n_cells, longest) * lengths(longest)[-1] // longest
    waiting = [Request(chosen.randrange(1, longest + 1)) for _ in range(300)]
    running = []
    while waiting or running:
        came = admit(memory, waiting[: chosen.randrange(1, 40)])
        waiting = waiting[len(came) :]
        running += came
        assert machine.in_use == sum(cache.n_cells for cache in memory) <= budget
        assert all(slot.cache.length >= slot.sequence.n_needed for slot in running)
        assert len(running) <= 16
        assert came or running  # else all would wait for ever
        chosen.shuffle(running)
        n_ending = chosen.randrange(1, len(running) + 1) if running else 0
        end(memory, running[:n_ending])
        running = running[n_ending:]


def test_where_memory_is_shorter_than_planned_there_are_fewer_sequences(caplog):
    memory, machine = memory_of(16 * 4096, most=5 * 4096)
    assert len(admit(memory, [Request(4000)] * 16)) == 4
    assert "16 sequences of 4096 tokens" in caplog.text
    assert machine.in_use == 4 * 4096
    assert admit(memory, [Request(4000)]) == []


def test_where_there_is_no_memory_for_one_sequence_it_is_an_error_and_works_later():
    memory, machine = memory_of(16 * 4096, most=100)
    with pytest.raises(pyllama.ContextError):
        memory.place(Request(10), 1)
    machine.most = 10**6
    assert len(admit(memory, [Request(10)])) == 1


# With a model


@pytest.fixture(scope="module")
def model(write_tiny_model):
    with pyllama.Model(write_tiny_model(n_ctx_train=4096)) as made:
        yield made


def request_of(prompt, max_tokens=8):
    never_ends = Sampling(logit_bias=dict.fromkeys((synthetic.EOS, synthetic.IM_END), -100.0))
    return GenerationRequest(tuple(prompt), max_tokens, never_ends, 1)


def test_prompts_of_three_lengths_in_turn_are_computed_once(model):
    scheduler = scheduler_of(model, context_length=4096, n_cells=4 * 4096)
    prompts = [tokens(length, length) for length in (700, 1500, 2500)]
    for _ in range(3):
        found = [scheduler.generate(request_of(prompt, 100)) for prompt in prompts]
    for prompt, result in zip(prompts, found, strict=True):
        assert len(prompt) - result.cache_read_tokens < 2 * BLOCK
    scheduler.close()


def test_a_conversation_that_outgrows_its_sequence_keeps_what_was_computed(model):
    scheduler = scheduler_of(model, context_length=4096, n_cells=2 * 4096)
    prompt = tokens(0, 900)
    scheduler.generate(request_of(prompt, 50))
    result = scheduler.generate(request_of(prompt + tokens(1, 1000), 50))
    assert result.cache_read_tokens == 896
    scheduler.close()


def test_a_conversation_that_outgrows_its_sequence_keeps_its_answers_where_bytes_may_change(model):
    scheduler = scheduler_of(model, context_length=4096, n_cells=2 * 4096, reproducible=False)
    prompt = tokens(0, 800)
    turns = []
    for turn in range(3):
        result = scheduler.generate(request_of(prompt, 100))
        turns.append((len(prompt), result.cache_read_tokens))
        prompt = prompt + result.token_ids + tokens(turn + 1, 500)
    for (before, _), (_, cached) in pairwise(turns):
        assert before + 100 - 2 * BLOCK <= cached <= before + 100
    assert [cache.length for cache in scheduler._core.memory][-1] > SHORTEST
    scheduler.close()


@pytest.mark.parametrize("architecture", ["llama", "mamba", "jamba", "gemma2"])
def test_what_moves_to_another_context_keeps_its_bytes(write_tiny_model, architecture):
    shared = tokens(0, 900)
    requests = [
        request_of(shared + tokens(1, 20), 30),
        request_of(shared + tokens(2, 700), 30),
        request_of(shared + tokens(3, 1900), 30),
        request_of(shared + tokens(4, 20), 30),
    ]
    with pyllama.Model(write_tiny_model(architecture=architecture, n_ctx_train=4096)) as model:
        options = {"context_length": 4096, "n_cells": 5 * 4096}
        together = scheduler_of(model, **options)
        # The first one runs on while those that need more come.
        stream = together.stream(request_of(shared + tokens(5, 20), 100))
        next(stream)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(together.generate, requests))
        stream.close()
        together.close()
        assert sum(result.cache_read_tokens for result in found) >= 3 * 800
        for request, result in zip(requests, found, strict=True):
            alone = scheduler_of(model, **options)
            expected = alone.generate(request)
            alone.close()
            assert replace(result, cache_read_tokens=0) == expected


@pytest.mark.parametrize("second", [100, 1500])
def test_a_request_that_waits_for_a_prompt_reuses_it_in_any_context(model, second):
    """The second may need a longer sequence than the one whose prompt it waits for."""
    scheduler = scheduler_of(model, context_length=4096, n_cells=16 * 4096)
    shared = tokens(5, 800)
    found = {}

    def run(name, request):
        *_, found[name] = scheduler.stream(request)

    threads = [
        threading.Thread(target=run, args=("a", request_of(shared + tokens(6, 16), 100))),
        threading.Thread(target=run, args=("b", request_of(shared + tokens(7, 16), second))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Whichever came first computed it.
    assert sorted(each.cache_read_tokens for each in found.values()) == [0, 800]
    assert scheduler.metrics.snapshot().prompt_tokens == 816 + 16
    scheduler.close()


@pytest.mark.parametrize("options", [{}, {"context_length": 1024}, {"context_length": 2048}])
def test_a_pool_without_settings_runs_16_requests_at_once(write_tiny_model, options):
    path = write_tiny_model(n_ctx_train=4096)
    with ModelPool(path.parent, n_gpu_layers=0, **options) as pool, ExitStack() as streams:
        generator = pool.load_model(path.stem).generators["batched"]
        opened = [
            generator.stream(request_of(tokens(seed, 20), options.get("context_length", 4096) - 30))
            for seed in range(20)
        ]
        for stream in opened:
            streams.callback(stream.close)
        with ThreadPoolExecutor(20) as threads:
            begun = [threads.submit(next, stream) for stream in opened]
            while sum(each.done() for each in begun) < 16:
                time.sleep(0.01)
            snapshot = pool.metrics()[path.stem]
            for stream, each in zip(opened, begun, strict=True):
                if each.done():
                    stream.close()
        assert (snapshot.running, snapshot.waiting) == (16, 4)


def test_a_request_does_not_wait_for_a_prompt_that_it_cannot_reuse(model):
    """A long prompt's sequence does not fit a short one, and the long context has no other."""
    scheduler = scheduler_of(model, context_length=4096, n_cells=4096 + 4 * 1024)
    shared = tokens(5, 400)
    short = request_of(shared + tokens(7, 16), 100)
    scheduler.generate(request_of(tokens(8, 10)))  # there is a short context
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(scheduler.generate, request_of(shared + tokens(6, 3500), 8))
        while not scheduler.metrics.snapshot().running:
            pass
        assert scheduler.generate(short).completion_tokens == 100
        assert long.result().completion_tokens == 8
    scheduler.close()


def test_a_context_that_was_replaced_ends_with_its_last_request(model):
    scheduler = scheduler_of(model, context_length=4096, n_cells=16 * 4096, max_sequences=16)
    try:
        long = request_of(tokens(77, 20), max_tokens=600)
        with ThreadPoolExecutor() as threads:
            first = threads.submit(scheduler.generate, long)
            while not scheduler._core.memory.taken:
                time.sleep(0.001)
            rest = [
                threads.submit(scheduler.generate, request_of(tokens(seed, 1500), max_tokens=4))
                for seed in range(6)
            ]
            for done in (first, *rest):
                done.result()
        deadline = time.monotonic() + 10
        while any(cache.drains for cache in scheduler._core.memory) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(cache.drains for cache in scheduler._core.memory)
    finally:
        scheduler.close()
