"""A pool's record of one model: whether it is in memory, and who uses it.

Only the pool's own thread changes it, except for the leases, which any thread takes and drops.
Ctrl-C can end a user's thread between any two operations. So leases are not guarded by a lock, and
not counted. Each change is one operation on a set, and two rules keep both sides right:

- A caller that takes a lease adds it first, and then checks whether the model can still be used.
- Freeing a model takes it out first, and then checks whether there is a lease.

So at least one of the two sees the other. The set refers to leases weakly. A lease that was dropped
without being given back does not count.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, TypeAlias

from adapter.generation.metrics import Metrics
from adapter.models.hardware import Placement
from adapter.models.machine_memory import machine
from adapter.models.pool_requests import PoolRequest
from adapter.models.resident import ResidentModel

logger = logging.getLogger(__name__)

Verdicts: TypeAlias = "SimpleQueue[bool | BaseException]"
"""Whether there is room for a model (False: ask again), or the error if there is none."""


class Lessee(Protocol):
    """What a slot uses of a Lease."""

    thread: object


class Freeing(Protocol):
    """A job that frees a model: see loading.Free."""

    thread: Thread

    @property
    def hangs(self) -> bool: ...
    @property
    def is_over(self) -> bool: ...


class Residency:
    """A model that was loaded, until it is freed.

    Attributes:
        name: the name that it was first asked for by.
        placement: where it runs.
        slot: the slot of its file.
        leases: weak references to the leases on it.
        replaced: it cannot be used any more, and the next request loads the model again.
        freeing: the job that frees it.
        freed: the queues of those that wait until it is freed.
    """

    def __init__(self, slot: ModelSlot, resident: ResidentModel, placement: Placement) -> None:
        self.name = slot.name
        self._resident: ResidentModel | None = resident
        self.placement = placement
        self.slot = slot
        self.leases: set[weakref.ref[Lessee]] = set()
        self.replaced = False
        self.freeing: Freeing | None = None
        self.freed: list[Verdicts] = []
        machine.hold(resident, placement.memory)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that it takes of each memory."""
        return dict(self.placement.memory)

    @property
    def resident(self) -> ResidentModel:
        """The model. The caller must hold a lease on it."""
        assert self._resident is not None
        return self._resident

    @property
    def usable(self) -> bool:
        """Whether it can answer: it was not freed, and nothing that it needs has failed."""
        resident = self._resident
        return resident is not None and resident.usable

    def lessees(self) -> list[Lessee]:
        """The leases that are held."""
        leases = []
        for reference in self.leases.copy():
            lease = reference()
            if lease is None:
                self.leases.discard(reference)
            else:
                leases.append(lease)
        return leases

    @property
    def hangs(self) -> bool:
        """Whether its freeing takes so long that it should not be waited for."""
        return self.freeing is not None and self.freeing.hangs

    @property
    def kept_because(self) -> str:
        """Why it cannot be freed to make room; empty if it can, or will be."""
        if self.hangs:
            return (
                "not freed yet: a computation in it hangs, or the disk of prefix_folder does. Its "
                "memory counts as taken until it is freed"
            )
        if self.lessees():
            return "replaced, but still in use" if self.replaced else "in use"
        if self.slot.residency is not self:
            return ""
        if self.slot.closing:
            return "being unloaded"
        return "pinned" if self.slot.pinned else ""

    def free(self) -> None:
        """Free the memory. Until this is done it counts as taken.

        Raises:
            MemoryError: try again.
        """
        resident = self._resident
        if resident is None:
            return
        try:
            resident.close()
        except MemoryError:
            raise
        except Exception:
            logger.exception("freeing %s failed", self.name)
        machine.release(resident)
        self._resident = None

    @property
    def is_freed(self) -> bool:
        """Whether it was freed."""
        return self._resident is None


@dataclass(eq=False)
class ModelSlot:
    """The state of one model file, from the first request for it until it is unloaded.

    Attributes:
        name: the name that it was first asked for by.
        residency: the model in memory that requests use.
        retired: earlier ones, until leases on them have ended and they are freed.
        placement: where it ran last, and will run again.
        fingerprint: of what was loaded first.
        pinned: it is not evicted.
        last_used: orders uses of the pool's models.
        metrics: of its scheduler, over all the times that the model is in memory.
        closing: it is being unloaded, or was.
        waiters: requests for the model that is being loaded, or will be.
        unloaders: requests that wait until it is unloaded.
        successors: requests for the model that came while it was being unloaded.
    """

    name: str
    path: Path
    residency: Residency | None = None
    retired: list[Residency] = field(default_factory=list)
    placement: Placement | None = None
    fingerprint: str | None = None
    pinned: bool = False
    last_used: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    closing: bool = False
    waiters: list[PoolRequest[Residency]] = field(default_factory=list)
    unloaders: list[PoolRequest[Residency]] = field(default_factory=list)
    successors: list[PoolRequest[Residency]] = field(default_factory=list)

    def placed(self) -> Placement:
        """Where it runs, or ran last. It must have been loaded once."""
        assert self.placement is not None
        return self.placement

    @property
    def residencies(self) -> list[Residency]:
        """All of its models in memory."""
        current = self.residency
        return [*self.retired] if current is None else [current, *self.retired]

    def lessees(self) -> list[Lessee]:
        """The leases on any of them."""
        return [lease for residency in self.residencies for lease in residency.lessees()]

    def put(self, residency: Residency) -> None:
        """Record a model that was loaded."""
        self.placement = residency.placement
        self.fingerprint = residency.resident.fingerprint
        self.residency = residency

    def retire(self) -> Residency | None:
        """Take the model out to be freed. Returns None if it is in use, or there is none."""
        residency = self.residency
        if residency is None:
            return None
        self._take_out(residency)
        if residency.lessees():
            self.residency = residency
            self.retired.remove(residency)
            return None
        return residency

    def mend(self) -> None:
        """Finish what an exception interrupted."""
        if self.residency in self.retired:
            self.retire()

    def _take_out(self, residency: Residency) -> None:
        # In this order it is never missing from both places.
        if residency not in self.retired:
            self.retired.append(residency)
        self.residency = None

    def replace_if_unusable(self) -> None:
        """Take out a failed model. New requests get another one; the others run to their end."""
        residency = self.residency
        if residency is not None and not residency.usable:
            residency.replaced = True
            self._take_out(residency)
