"""A lease keeps a model in memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from adapter.models.loader import ModelLoader
from adapter.models.pool_requests import PoolRequest, this_thread
from adapter.models.resident import ResidentModel
from adapter.models.slot import Lessee, ModelSlot, Residency

T = TypeVar("T")


class Lease(AbstractContextManager[T], Generic[T]):
    """Keeps a model in memory for a block, and loads it if need be. It is used once.

    Args:
        loader: loads the model.
        name: the model, as it was asked for.
        path: its file.
        slot: which slot it must be in; None for the current one, after the end of an unload.
        give: what of the model the block gets.
    """

    def __init__(
        self,
        loader: ModelLoader,
        name: str,
        path: Path,
        slot: ModelSlot | None,
        give: Callable[[ResidentModel], T],
    ) -> None:
        self.loader = loader
        self.name = name
        self.path = path
        self.slot = slot
        #: The caller that holds it.
        self.thread = this_thread()
        #: What represents it in the set of leases.
        self.reference: weakref.ref[Lessee] = weakref.ref(self)
        self._give = give
        #: The model that it is on, while it is held.
        self.residency: Residency | None = None
        #: It was given back, or will never be taken.
        self.over = False

    def __enter__(self) -> T:
        try:
            return self._give(self._take())
        except BaseException:
            self._drop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._drop()

    def move_here(self) -> None:
        """Make the calling thread its holder: a generator may continue in another thread."""
        self.thread = this_thread()

    def _take(self) -> ResidentModel:
        if self.residency is not None or self.over:
            raise RuntimeError("a lease is taken once: call lease() again")
        self.loader.refuse_in_child(self.name)
        slot = self.slot or self.loader.slot(self.path)
        residency = None if slot is None else slot.residency
        if slot is not None and residency is not None and residency.usable:
            self.residency = residency
            residency.leases.add(self.reference)
            # Only now: freeing a model uses the opposite order. See slot.py.
            if slot.residency is residency and (not slot.closing or self._goes_on(residency)):
                return self._use(residency)
            residency.leases.discard(self.reference)
        self.loader.lease(PoolRequest(self.name, self), self.path, self.slot)
        assert self.residency is not None
        return self._use(self.residency)

    def take(self, residency: Residency, request: PoolRequest[Residency]) -> None:
        """Take it, in the pool's thread: the model is in memory."""
        self.residency = residency
        residency.leases.add(self.reference)
        # Checked last: a caller that stops waiting sets these before it gives the lease back. If it
        # is interrupted again, it may set only the second.
        if request.abandoned or self.over:
            residency.leases.discard(self.reference)

    def _goes_on(self, residency: Residency) -> bool:
        """Whether it belongs to a request that has a lease already, and may run to its end."""
        return any(
            lease is not self and lease.thread is self.thread for lease in residency.lessees()
        )

    def _use(self, residency: Residency) -> ResidentModel:
        self.slot = residency.slot
        residency.slot.last_used = self.loader.next_use()
        return residency.resident

    def _drop(self) -> None:
        # Perhaps in another thread: a generator may be closed anywhere.
        self.over = True  # first: a grant at this moment checks it last
        residency = self.residency
        if residency is not None:
            residency.leases.discard(self.reference)
            self.loader.tell_of_a_lease_that_ended()
            self.residency = None
