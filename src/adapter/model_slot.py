"""What a pool knows of one model: whether it is in memory, and who uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from adapter.generation.metrics import Metrics
from adapter.hardware import Placement
from adapter.loaded_model import LoadedModel
from adapter.machine_memory import machine
from adapter.resident_model import ResidentModel


@dataclass(eq=False)
class ModelSlot:
    """The state of one model file. The pool's lock is held while it is read or changed.

    name       the name that it was asked for by first
    handles    what load_model() returned, by name: aliases have handles of their own
    resident   the model, while it is in memory
    placement  where it ran first, and runs again whenever it is reloaded
    loading    done when the load in progress is; None without one
    leases     how many each thread holds, by its identity
    last_used  counts uses of the pool's models
    metrics    what its scheduler does, whenever the model is in memory
    closing    it is being unloaded, or was
    """

    name: str
    path: Path
    handles: dict[str, LoadedModel] = field(default_factory=dict)
    resident: ResidentModel | None = None
    placement: Placement | None = None
    fingerprint: str | None = None
    loading: Future[None] | None = None
    leases: Counter[int] = field(default_factory=Counter)
    pinned: bool = False
    last_used: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    closing: bool = False
    _uncount: Callable[[], object] | None = None

    def put(self, resident: ResidentModel, placement: Placement) -> None:
        """Take note of a model that was loaded."""
        self.resident, self.placement = resident, placement
        self.fingerprint = resident.fingerprint
        self._uncount = machine.hold(resident, placement.memory)

    def take(self) -> Callable[[], None]:
        """Take the model out. The function returned frees it, and need not hold the lock."""
        resident, self.resident = self.resident, None
        uncount, self._uncount = self._uncount, None

        def free() -> None:
            if resident is not None and uncount is not None:
                uncount()  # first: a load elsewhere need not fail for what is being freed
                resident.close()

        return free

    @property
    def is_lost(self) -> bool:
        """Whether a server went away that has a part of it, and nobody uses what is left."""
        return self.resident is not None and self.resident.model.lost and not self.leases

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes that it takes of each memory now."""
        return self.placement.memory if self.resident and self.placement else {}

    @property
    def kept_because(self) -> str:
        """Why it cannot be evicted; empty where it can."""
        if self.leases or self.loading:
            return "in use"
        if self.closing:
            return "being unloaded"
        return "pinned" if self.pinned else ""
