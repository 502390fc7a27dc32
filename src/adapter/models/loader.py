"""What the pool and its handles ask of the pool's thread.

The pool and every handle and lease refer to this object, and the thread refers to it weakly. When
the last of them is dropped, the thread is notified, frees the models, and ends.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from adapter.errors import ModelInUseError, ModelNotLoadedError
from adapter.models.load_settings import LoadSettings
from adapter.models.pool_requests import PoolRequest, in_pool_thread
from adapter.models.pool_thread import Message, PoolThread
from adapter.models.slot import ModelSlot, Residency

_uses = itertools.count(1)


class ModelLoader:
    """Has the models of one pool loaded, leased and freed. Thread-safe."""

    def __init__(self, settings: LoadSettings) -> None:
        self.settings = settings
        self._process = os.getpid()
        self._thread = PoolThread(settings)
        self._thread.start(self)

    def slots(self) -> list[ModelSlot]:
        """Every model that was asked for: in memory, evicted, or being loaded or unloaded."""
        return list(self._thread.slots.copy().values())

    def slot(self, path: Path) -> ModelSlot | None:
        """The slot of a file; None if the model was never asked for."""
        return self._thread.slots.get(path)

    def lease(self, request: PoolRequest[Residency], path: Path, slot: ModelSlot | None) -> None:
        """Have the thread grant a lease on the model of a file or a slot once it is in memory."""
        if in_pool_thread():
            raise ModelInUseError(request.name, _IN_CALLBACK)
        self._ask(request, partial(self._thread.lease, request, path, slot))

    def unload(self, slot: ModelSlot) -> None:
        """Free a model once its leases have ended. In a progress callback this does not wait."""
        request: PoolRequest[object] = PoolRequest(slot.name)
        self._ask(request, partial(self._thread.unload, request, slot))

    def close(self) -> None:
        """Free all models for good once their leases have ended. In a progress callback it does not
        wait.
        """
        if os.getpid() == self._process:  # a child of fork() may drop what belongs to its parent
            request: PoolRequest[object] = PoolRequest("")
            self._ask(request, partial(self._thread.close, request))

    def next_use(self) -> int:
        """A number that orders uses of models."""
        return next(_uses)

    def tell_of_a_lease_that_ended(self) -> None:
        """Wake the thread if it waits for leases. Without this it would notice a little later."""
        if self._thread.looks_by_itself:
            with suppress(MemoryError):
                self._thread.look()

    def refuse_in_child(self, name: str) -> None:
        """Raise ModelNotLoadedError in a child of fork(), which lacks the pool's threads."""
        if os.getpid() != self._process:
            raise ModelNotLoadedError(
                name,
                "this process was forked from the one that made the pool, and fork() does not copy "
                "threads; start processes with multiprocessing's 'spawn' or 'forkserver' method",
            )

    def _ask(self, request: PoolRequest[Any], message: Callable[[], None]) -> None:
        """Send the thread a request, and wait for its answer."""
        self.refuse_in_child(request.name)
        try:
            self._thread.inbox.put(Message(message, request.fail))
            if self._thread.ended:  # set before the thread empties its inbox for the last time
                message()
            if not in_pool_thread():
                request.wait(self._thread.keep_going)
        except BaseException:  # Ctrl-C
            request.abandoned = True
            self._thread.look()
            raise


_IN_CALLBACK = (
    "a progress callback cannot have a model loaded; do it before or after the load, or in a "
    "thread that the callback does not wait for"
)
