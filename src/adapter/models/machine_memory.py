"""The memory of this machine that the models of all pools in this process take."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping

from adapter.models.hardware import margin
from adapter.models.resident import ResidentModel


class MachineMemory:
    """What all pools of this process hold of each memory, and the most that they may hold.

    The operating system does not count weights mapped from a file as used. So the free memory is
    measured while no pool holds any of it, and what the pools take is counted from then on.
    """

    def __init__(self) -> None:
        # No lock and no stored sum: an exception at any point leaves this consistent.
        self._held: dict[int, Mapping[str, int]] = {}
        self._limits: Mapping[str, int] = {}

    def hold(self, resident: ResidentModel, memory: Mapping[str, int]) -> None:
        """Count a model until it is released or collected."""
        weakref.finalize(resident, self._held.pop, id(resident), None)
        self._held[id(resident)] = memory

    def release(self, resident: ResidentModel) -> None:
        """Stop counting a model. Releasing it again does nothing."""
        self._held.pop(id(resident), None)

    def observe(self, free: Mapping[str, int]) -> None:
        """Record how much is free now."""
        limits = {memory: size - margin(size) for memory, size in free.items()}
        held, known = self.read()
        limits |= {memory: size for memory, size in known.items() if held[memory]}
        self._limits = {**known, **limits}

    def read(self) -> tuple[Counter[str], dict[str, int]]:
        """What is held, and the limits."""
        held: Counter[str] = Counter()
        for memory in self._held.copy().values():
            held.update(memory)
        return held, dict(self._limits)


machine = MachineMemory()
