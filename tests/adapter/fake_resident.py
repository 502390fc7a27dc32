"""A model in memory that computes nothing: what a pool does with it is the same."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import ClassVar

import pytest

from adapter.models import loading as model_loading
from adapter.models import machine_memory, memory_budget
from adapter.models import slot as model_slot
from adapter.models.hardware import HOST, Placement
from adapter.models.machine_memory import MachineMemory
from adapter.models.pool import ModelPool

BYTES = 1000
"""What each takes of the host's memory."""


class FakeResident:
    """Stands for a ResidentModel. ``made`` holds all of them."""

    made: ClassVar[list[FakeResident]] = []
    has_template = calls_tools = False
    template_variables = frozenset()
    fingerprint = "0" * 64
    computation = ()

    def __init__(self, path, placement, report, metrics, **settings):
        self.closed = self.failed = False
        self.model = SimpleNamespace(
            n_ctx_train=64, vocab=SimpleNamespace(n_tokens=100), lost=False
        )
        self.template = SimpleNamespace(capabilities={})
        self.generators = {}
        for fraction in (0.0, 0.5, 1.0):
            if not report(fraction):
                raise model_loading.StoppedLoad(path.stem, "its load was stopped")
        FakeResident.made.append(self)

    @property
    def usable(self):
        return not self.closed and not self.failed

    def start(self):
        pass

    def close(self):
        self.closed = True


class FakeHardware:
    """Places every model on the CPU."""

    def plan(self, path, **settings):
        return Placement(
            devices=(),
            n_gpu_layers=0,
            context_length=64,
            n_contexts=1,
            n_cells=64,
            n_sequences=16,
            kept_bytes=0,
            n_threads=1,
            memory={HOST: BYTES},
            free={HOST: 100 * BYTES},
            fits=True,
            reasons=(),
        )


@pytest.fixture
def machine(monkeypatch):
    """The memory of a machine that other tests do not use."""
    made = MachineMemory()
    for module in (machine_memory, model_slot, memory_budget, model_loading):
        if hasattr(module, "machine"):
            monkeypatch.setattr(module, "machine", made)
    return made


@pytest.fixture
def pool_of_fakes(monkeypatch, machine, tmp_path):
    """Return a function that makes pools of "one", "two" and "three", which compute nothing."""
    monkeypatch.setattr(model_loading, "ResidentModel", FakeResident)
    monkeypatch.setattr(FakeResident, "made", [])
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.gguf").touch()
    return lambda **settings: ModelPool(tmp_path, hardware=FakeHardware(), **settings)


def wait_until(true, seconds=10):
    """Wait until something is true, and say whether it is."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.001)
    return true()
