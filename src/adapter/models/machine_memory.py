"""What the models of this process take of the machine's memory, in all pools together."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping

from adapter.models.hardware import margin
from adapter.models.resident import ResidentModel


class MachineMemory:
    """What all pools of this process hold of each memory, and what it may become.

    Weights mapped from a file do not count as memory in use for the operating system, so what is
    free of a memory is measured while no pool holds any of it, and what they take is counted from
    there on.
    """

    def __init__(self) -> None:
        # No lock, and no sum that is kept: an exception at any point leaves this whole.
        self._held: dict[int, Mapping[str, int]] = {}
        self._limits: Mapping[str, int] = {}

    def hold(self, resident: ResidentModel, memory: Mapping[str, int]) -> None:
        """Count a model, until it is released or collected."""
        weakref.finalize(resident, self._held.pop, id(resident), None)
        self._held[id(resident)] = memory

    def release(self, resident: ResidentModel) -> None:
        """Count a model no more. Releasing it again does nothing."""
        self._held.pop(id(resident), None)

    def observe(self, free: Mapping[str, int]) -> None:
        """Take note of how much is free now."""
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
