"""Loads and frees models, on the threads that work for a pool."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import pyllama
from adapter.errors import (
    ModelChangedError,
    ModelFileError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
    ResourceError,
    TransientError,
)
from adapter.generation.failures import insist
from adapter.generation.thread_start import start_thread
from adapter.models.hardware import Placement
from adapter.models.load_settings import LoadSettings
from adapter.models.machine_memory import machine
from adapter.models.parts import parts
from adapter.models.pool_requests import enter_pool_thread
from adapter.models.resident import ResidentModel
from adapter.models.slot import ModelSlot, Residency, Verdicts
from adapter.wording import reason_of

logger = logging.getLogger(__name__)

_loads: list[threading.Thread] = []
"""The threads that load a model, of all pools, in order. One loads at a time, so that each sees the
memory that the one before it took. There is no lock: a thread that ended in any way is not waited
for.
"""

_frees: dict[Free, threading.Thread] = {}
"""The jobs that free a model now, of all pools, with their threads."""

HANG_SECONDS = 120.0
"""Seconds to wait until a model is freed. Its device may hang."""

_LOOK = 0.2
"""Seconds after which a load that waits for another checks whether it is still needed."""

_PASSING = frozenset((errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS))
"""Errors of the system that are not the file's fault."""


class StoppedLoad(ModelNotLoadedError):
    """A load was stopped: nobody waits for it any more, or the process ends."""


class Pool(Protocol):
    """What jobs ask of the pool's thread: see pool_thread."""

    settings: LoadSettings
    slots: dict[Path, ModelSlot]

    def look(self) -> None:
        """Have it check its jobs."""

    def stops(self, slot: ModelSlot) -> bool:
        """Whether a load should stop."""

    def ask_for_room(self, name: str, placement: Placement, verdicts: Verdicts) -> None:
        """Ask whether there is room for a model, and make some."""


class Job:
    """A long task on a thread of its own. It notifies the pool's thread when it ends.

    Attributes:
        pool: the pool's thread.
        thread: its own.
        begun: when it was made, as time.monotonic() counts.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.begun = time.monotonic()
        self.thread = threading.Thread(target=self.run, name="model-pool-job", daemon=True)
        self._ended = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the process has as many threads as it may.
            MemoryError: there is no room for another.
        """
        start_thread(self.thread)

    @property
    def is_over(self) -> bool:
        """Whether it ended, in whatever way."""
        return self._ended or not self.thread.is_alive()

    def run(self) -> None:
        """Run the task, and notify the pool's thread."""
        enter_pool_thread()
        try:
            self.work()
        finally:
            self._ended = True
            self.pool.look()

    def work(self) -> None:
        """The task."""
        raise NotImplementedError


class Load(Job):
    """One load of a model.

    Attributes:
        slot: of the model.
        name: the model, as it was asked for.
        residency: the model, once it is loaded.
        error: why it could not be loaded.
    """

    def __init__(self, pool: Pool, slot: ModelSlot, name: str) -> None:
        super().__init__(pool)
        self.slot = slot
        self.residency: Residency | None = None
        self.error: BaseException | None = None
        self._settings = pool.settings
        self._name = name
        self._raised: BaseException | None = None
        self._watcher: Callable[[float], None] = lambda _fraction: None

    def work(self) -> None:
        _loads.append(self.thread)
        try:
            loads = _loads.copy()
            for earlier in loads[: loads.index(self.thread)]:
                self._wait_until(partial(_has_ended, earlier), earlier)
                with suppress(ValueError):  # it has removed itself, unless it failed
                    _loads.remove(earlier)
            self._load()
        except BaseException as error:
            self.error, self._raised = self._raised or error, None
        finally:
            _loads.remove(self.thread)

    def _wait_until(self, over: Callable[[], bool], thread: threading.Thread) -> None:
        """Wait for another thread's job, unless this load should stop."""
        while not over():
            if self.pool.stops(self.slot):
                raise StoppedLoad(self._name, "its load was stopped")
            thread.join(_LOOK)

    def _load(self) -> None:
        settings, slot, resident = self._settings, self.slot, None
        try:
            with (
                translated_load(self._name, slot.path),
                settings.watch(self._name) as watcher,
            ):
                self._watcher = watcher
                placement = self._place()
                before = _stamps(slot.path)
                resident = ResidentModel(
                    slot.path,
                    placement,
                    self._reporter(),
                    slot.metrics,
                    reproducible=settings.reproducible,
                    prefix_folder=settings.prefix_folder,
                    chat_template=settings.templates.source_for(slot.path),
                )
                after = _stamps(slot.path)
            if slot.fingerprint not in (None, resident.fingerprint):
                raise ModelChangedError(self._name, slot.path)
            if after != before:  # the fingerprint may belong to other weights
                reason = "the file was changed or replaced while it was read; load it again"
                raise ModelFileError(self._name, slot.path, reason)
            resident.start()
            self.residency = Residency(slot, resident, placement)
        except BaseException:
            if resident is not None:
                insist(resident.close)  # its threads keep it otherwise
                machine.release(resident)
            raise
        logger.info("loaded %s from %s", self._name, slot.path)

    def _reporter(self) -> Callable[[float], bool]:
        """The model's progress callback. The model keeps it, so it refers weakly to this load."""
        method = weakref.WeakMethod(self._report)

        def report(fraction: float) -> bool:
            found = method()
            return found is None or found(fraction)

        return report

    def _report(self, fraction: float) -> bool:
        try:
            self._watcher(fraction)
        except BaseException as error:
            self._raised = error  # it is raised unchanged, even if it is an OSError
            raise
        return not self.pool.stops(self.slot)

    def _place(self) -> Placement:
        """Decide where the model runs, and have others evicted until there is room."""
        placement = self.slot.placement
        if placement is not None and any(each.backend == "RPC" for each in placement.devices):
            placement = None  # servers come and go, and their devices with them
        planned = placement is None
        while True:
            if self.pool.stops(self.slot):
                raise StoppedLoad(self._name, "its load was stopped")
            if placement is None:
                placement = self._plan()
                machine.observe(placement.free)
            if self._has_room(placement):
                return placement
            if planned and not placement.fits:
                placement = None  # more of it may fit now

    def _plan(self) -> Placement:
        slots = self.pool.slots.copy().values()
        room = self._settings.budget.room([each for slot in slots for each in slot.residencies])
        before = self.slot.placement
        if before is None:
            return self._settings.plan(self.slot.path, room=room)
        # Handles have already reported how long a request may be.
        return self._settings.plan(self.slot.path, context_length=before.context_length, room=room)

    def _has_room(self, placement: Placement) -> bool:
        """Whether there is room. False if it was only made now. Raises PoolFullError."""
        while True:
            verdicts: Verdicts = SimpleQueue()
            self.pool.ask_for_room(self._name, placement, verdicts)
            verdict = verdicts.get()
            if not isinstance(verdict, BaseException):
                return verdict
            frees = {free: thread for free, thread in _frees.copy().items() if not free.hangs}
            if not isinstance(verdict, PoolFullError) or not frees:
                try:
                    raise verdict
                finally:
                    del verdict  # it refers to this frame
            for free, thread in frees.items():  # of other pools: there is more room after that
                self._wait_until(partial(_is_over, free, thread), thread)
                if _has_ended(thread):
                    _frees.pop(free, None)  # it has removed itself, unless it lacked memory


class Free(Job):
    """The freeing of a model."""

    def __init__(self, pool: Pool, residency: Residency) -> None:
        super().__init__(pool)
        self._residency = residency

    @property
    def hangs(self) -> bool:
        """Whether it takes so long that it should not be waited for."""
        return time.monotonic() - self.begun > HANG_SECONDS

    def work(self) -> None:
        _frees[self] = threading.current_thread()
        try:
            self._residency.free()
        except MemoryError:
            logger.warning("%s is freed a little later: there is no memory", self._residency.name)
        finally:
            _frees.pop(self, None)


def _has_ended(thread: threading.Thread) -> bool:
    return not thread.is_alive()


def _is_over(free: Free, thread: threading.Thread) -> bool:
    return free.hangs or not thread.is_alive()


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    """Sizes and times that show whether a model's files are still the same."""
    stats = [part.stat() for part in parts(path)]
    return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]


@contextmanager
def translated_load(name: str, path: Path) -> Iterator[None]:
    """Raise pyllama's errors in a block as this package's own."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelNotFoundError(name, path) from error
    except pyllama.ModelLoadCancelled as error:
        raise StoppedLoad(name, "its load was stopped") from error
    except pyllama.ChatProcessError as error:
        raise TransientError(f"model {name!r} cannot be loaded at the moment: {error}") from error
    except (pyllama.ModelLoadError, pyllama.ChatTemplateError, OSError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        reason = reason.removeprefix(f"{path}: ")
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise TransientError(
                f"model {name!r} cannot be loaded at the moment: {reason}"
            ) from error
        raise ModelFileError(name, path, reason) from error
    except (pyllama.MemoryFitError, pyllama.BackendError) as error:
        raise ResourceError(f"model {name!r} cannot be loaded: {error}") from error
    except pyllama.ClosedError as error:
        raise ModelNotLoadedError(name, str(error)) from error
    except pyllama.NativeMemoryError as error:
        raise TransientError(f"no memory for model {name!r} at the moment: {error}") from error


def _forget_threads() -> None:
    _loads.clear()
    _frees.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
    os.register_at_fork(after_in_child=_forget_threads)
