from __future__ import annotations

import gc
from dataclasses import replace
from shutil import copyfile

import pytest
from fake_device import GIB

from adapter.errors import PoolFullError
from adapter.models import loading as model_loading
from adapter.models import machine_memory, memory_budget
from adapter.models import slot as model_slot
from adapter.models.hardware import HOST, HardwareManager
from adapter.models.machine_memory import MachineMemory
from adapter.models.pool import ModelPool


class Resident:
    """Stands for a model in memory: only that it is there matters."""


@pytest.fixture
def machine(monkeypatch):
    """A machine whose memory other tests do not use."""
    made = MachineMemory()
    for module in (machine_memory, model_slot, memory_budget, model_loading):
        if hasattr(module, "machine"):
            monkeypatch.setattr(module, "machine", made)
    return made


def test_what_is_free_is_measured_while_nothing_is_held(machine):
    machine.observe({HOST: 16 * GIB})
    assert machine.read() == ({}, {HOST: 15 * GIB})
    resident = Resident()
    machine.hold(resident, {HOST: 4 * GIB})
    machine.observe({HOST: 2 * GIB, "CUDA0": 8 * GIB})
    assert machine.read() == ({HOST: 4 * GIB}, {HOST: 15 * GIB, "CUDA0": 7 * GIB})
    machine.release(resident)
    machine.release(resident)
    machine.observe({HOST: 2 * GIB})
    held, limits = machine.read()
    assert held[HOST] == 0
    # What was not measured again keeps its limit.
    assert limits == {HOST: 2 * GIB - GIB // 4, "CUDA0": 7 * GIB}


def test_what_is_free_of_a_memory_is_measured_while_others_are_held(machine):
    machine.observe({HOST: 16 * GIB, "RPC0": 0})
    resident = Resident()
    machine.hold(resident, {HOST: 4 * GIB, "RPC0": 0})
    machine.observe({HOST: 2 * GIB, "RPC0": 8 * GIB})
    assert machine.read()[1] == {HOST: 15 * GIB, "RPC0": 7 * GIB}


def test_a_model_that_nobody_freed_is_no_longer_counted_once_it_is_collected(machine):
    resident = Resident()
    machine.hold(resident, {HOST: GIB})
    del resident
    gc.collect()
    assert machine.read()[0][HOST] == 0


class Numbers(HardwareManager):
    """Plans for the CPU, with made up numbers for the memory."""

    def __init__(self, memory, free):
        super().__init__(devices=())
        self.numbers = {"memory": memory, "free": free, "fits": True}

    def plan(self, path, **options):
        return replace(super().plan(path, **options), **self.numbers)


@pytest.fixture
def pool_of(machine, write_tiny_model, tmp_path):
    """Makes pools of models that take 6 GiB each, where 10 are free."""
    for name in ("one", "two"):
        copyfile(write_tiny_model(chat_template=None), tmp_path / f"{name}.gguf")
    pools = []

    def make(memory=None, free=None, **options):
        numbers = Numbers(memory or {HOST: 6 * GIB}, free or {HOST: 10 * GIB})
        pools.append(ModelPool(tmp_path, context_length=64, hardware=numbers, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def in_memory(pool):
    return [info.name for info in pool.models() if info.loaded]


def test_a_pool_holds_what_the_machine_has(pool_of):
    pool = pool_of()
    pool.load_model("one")
    pool.load_model("two")
    assert in_memory(pool) == ["two"]


def test_a_pool_without_a_budget_holds_everything(pool_of):
    pool = pool_of(memory_budget=None)
    pool.load_model("one")
    pool.load_model("two")
    assert in_memory(pool) == ["one", "two"]


def test_each_memory_has_its_own_limit(pool_of):
    pool = pool_of(memory={HOST: GIB, "CUDA0": 6 * GIB}, free={HOST: 64 * GIB, "CUDA0": 10 * GIB})
    with pool.load_model("one").lease(), pytest.raises(PoolFullError) as caught:
        pool.load_model("two")
    assert "CUDA0" in caught.value.memory
    assert (caught.value.needed, caught.value.held, caught.value.limit) == (
        6 * GIB,
        6 * GIB,
        10 * GIB - GIB,
    )


def test_pools_share_the_machine_and_do_not_evict_each_others_models(pool_of):
    first, second = pool_of(), pool_of()
    first.load_model("one")
    with pytest.raises(PoolFullError, match="other pools hold models"):
        second.load_model("two")
    assert in_memory(first) == ["one"]
    first.unload_model("one")
    second.load_model("two")
    assert in_memory(second) == ["two"]


def test_where_memory_is_short_already_others_make_room_before_a_model_is_cut_down(pool_of):
    pool = pool_of(memory={HOST: GIB})
    pool.load_model("one")
    tight = Numbers({HOST: GIB}, {HOST: 10 * GIB})
    tight.numbers["fits"] = False
    pool._loader.settings.plan = tight.plan
    pool.load_model("two")
    assert in_memory(pool) == ["two"]
