"""Loading a model and freeing it, on the threads that work for a pool."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pyllama
from adapter.errors import (
    BackendError,
    ModelChangedError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
)
from adapter.hardware import Placement
from adapter.machine_memory import machine
from adapter.model_file import parts
from adapter.model_slot import ModelSlot, Residency, Verdicts
from adapter.resident_model import ResidentModel

if TYPE_CHECKING:
    from adapter.model_loader import ModelLoader
    from adapter.pool_thread import PoolThread

logger = logging.getLogger(__name__)

# One load at a time, in all pools: each sees the memory that the one before it took. Only threads
# that work for a pool hold it, which Ctrl-C does not interrupt.
_one_load = threading.Lock()

_frees: set[threading.Thread] = set()
"""Those that free a model just now, of all pools."""


class StoppedLoad(ModelNotLoadedError):
    """A load was stopped: nobody waited for it any more, or the process ends."""


class Load:
    """One load of a model.

    thread  decides what is evicted for it, and is told what it came to
    loader  the pool's settings
    slot    of the model
    name    the model, as it was asked for
    """

    def __init__(self, thread: PoolThread, loader: ModelLoader, slot: ModelSlot, name: str) -> None:
        self._thread = thread
        self._loader = loader
        self._slot = slot
        self._name = name
        self._raised: BaseException | None = None

    def run(self) -> None:
        """Load it, and tell the pool's thread."""
        residency: Residency | None = None
        error: BaseException | None = None
        try:
            with _one_load:
                residency = self._load()
        except BaseException as caught:
            error = self._raised or caught
        self._thread.send(partial(self._thread.loaded, self._slot, residency, error))
        del error, self._raised  # they refer to this frame, which refers to them

    def _load(self) -> Residency:
        slot = self._slot
        with _translated(self._name, slot.path):
            placement = self._place()
            before = _stamps(slot.path)
            resident = ResidentModel(
                slot.path,
                placement,
                self._reporter(),
                slot.metrics,
                reproducible=self._loader.reproducible,
                prefix_folder=self._loader.prefix_folder,
            )
        try:
            if slot.fingerprint not in (None, resident.fingerprint):
                raise ModelChangedError(self._name, slot.path)
            if _stamps(slot.path) != before:  # the fingerprint may not be that of the weights
                reason = "the file was changed or replaced while it was read; load it again"
                raise ModelLoadError(self._name, slot.path, reason)
            residency = Residency(slot, resident, placement)
        except BaseException:
            resident.close()
            raise
        logger.info("loaded %s from %s", self._name, slot.path)
        return residency

    def _reporter(self) -> Callable[[float], bool]:
        """What the model calls, and refers to for as long as it lives: this load, but weakly."""
        method = weakref.WeakMethod(self._report)

        def report(fraction: float) -> bool:
            found = method()
            return found is None or found(fraction)

        return report

    def _report(self, fraction: float) -> bool:
        progress = self._loader.progress
        if progress is not None:
            try:
                progress(self._name, fraction)
            except BaseException as error:
                self._raised = error  # to be raised as it is, an OSError, too
                raise
        return not self._thread.stops(self._slot)

    def _place(self) -> Placement:
        """Decide where the model goes, with others evicted until there is room."""
        placement = None if self._slot.placed_anew else self._slot.placement
        planned = placement is None
        while True:
            if self._thread.stops(self._slot):
                raise StoppedLoad(self._name, "its load was stopped")
            if placement is None:
                placement = self._plan()
                machine.observe(placement.free)
            if self._has_room(placement):
                return placement
            if planned and not placement.fits:
                placement = None  # more of it may fit now

    def _plan(self) -> Placement:
        before, room = self._slot.placement, self._loader.budget.room()
        if before is None:
            return self._loader.plan(self._slot.path, room=room)
        # Handles have told how long a request may be.
        return self._loader.plan(self._slot.path, context_length=before.context_length, room=room)

    def _has_room(self, placement: Placement) -> bool:
        """Whether there is room; False when that was made just now. Raises PoolFullError."""
        while True:
            verdicts: Verdicts = SimpleQueue()
            self._thread.ask_for_room(self._loader, self._name, placement, verdicts)
            verdict = verdicts.get()
            if not isinstance(verdict, BaseException):
                return verdict
            frees = [each for each in _frees.copy() if each.is_alive()]
            if not isinstance(verdict, PoolFullError) or not frees:
                try:
                    raise verdict
                finally:
                    del verdict  # it refers to this frame
            for each in frees:  # of other pools: there is more room then
                each.join()


def free(residency: Residency, told: Callable[[], object]) -> None:
    """Free a model, and tell the pool's thread."""
    thread = threading.current_thread()
    _frees.add(thread)
    try:
        residency.free()
    except Exception:
        logger.exception("freeing %s failed", residency.name)
    finally:
        _frees.discard(thread)
        told()


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    """What tells whether a model's files are still the same."""
    stats = [part.stat() for part in parts(path)]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


@contextmanager
def _translated(name: str, path: Path) -> Iterator[None]:
    """Raise what pyllama raises as this package's own errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelNotFoundError(name, path) from error
    except pyllama.ModelLoadCancelled as error:
        raise StoppedLoad(name, "its load was stopped") from error
    except (pyllama.ModelLoadError, pyllama.ChatTemplateError, OSError) as error:
        raise ModelLoadError(name, path, str(error)) from error
    except (pyllama.NativeMemoryError, pyllama.MemoryFitError, pyllama.BackendError) as error:
        raise BackendError(f"no memory for model {name!r}: {error}") from error


def _renew_lock() -> None:
    global _one_load
    _one_load = threading.Lock()
    _frees.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
    os.register_at_fork(after_in_child=_renew_lock)
