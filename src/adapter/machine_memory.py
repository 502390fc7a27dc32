"""What the models of this process take of the machine's memory, in all pools together."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping

from adapter.hardware import margin
from adapter.resident_model import ResidentModel


class MachineMemory:
    """What all pools of this process hold of each memory, and what it may become.

    Weights mapped from a file do not count as memory in use for the operating system, so what is
    free is measured while no pool holds anything, and what they take is counted from there on.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may run within
        self._held: Counter[str] = Counter()
        self._limits: dict[str, int] = {}

    def hold(self, resident: ResidentModel, memory: Mapping[str, int]) -> Callable[[], object]:
        """Count a model, until the function returned is called or the model is collected."""
        with self._lock:
            self._held.update(memory)
        return weakref.finalize(resident, self._release, memory)

    def observe(self, free: Mapping[str, int]) -> None:
        """Take note of how much is free now."""
        with self._lock:
            limits = {memory: size - margin(size) for memory, size in free.items()}
            if +self._held:
                limits |= self._limits
            self._limits |= limits

    def read(self) -> tuple[Counter[str], dict[str, int]]:
        """What is held, and the limits."""
        with self._lock:
            return Counter(self._held), dict(self._limits)

    def _release(self, memory: Mapping[str, int]) -> None:
        with self._lock:
            self._held.subtract(memory)


machine = MachineMemory()
