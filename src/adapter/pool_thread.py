"""The thread of a pool, which alone decides what is loaded and freed.

It takes messages from an inbox, one after the other, and waits for nothing else. What takes long, a
load or the freeing of a model, runs on a thread of its own, which sends a message when it is done.
Threads of the user's only wait for answers; see pool_requests.

Who waits for whom: a load waits for the load before it, in the whole process, and for models to be
freed; whoever unloads waits for leases and for a load of that model to stop. A load never waits for
a lease: where no room can be made it fails. So nobody waits in a circle, except a thread that would
wait for its own lease, or for a load that calls it back; both are refused.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from adapter.errors import BackendError, ModelInUseError, ModelNotLoadedError
from adapter.hardware import Placement
from adapter.model_loading import Load, StoppedLoad, free
from adapter.model_slot import ModelSlot, Residency, Verdicts
from adapter.pool_requests import Request, enter_pool_thread, fail_all

if TYPE_CHECKING:
    from adapter.model_loader import ModelLoader

logger = logging.getLogger(__name__)

_LEASES_LOOKED_AT = 0.2
"""Seconds after which it looks for leases that ended without a word."""

_EXIT = 10.0
"""Seconds that the end of the process waits for a load to stop."""


class Message(NamedTuple):
    """Something to do, and whom to tell when that fails."""

    work: Callable[[], object]
    fail: Callable[[BaseException], object]


class PoolThread:
    """Keeps the state of a pool's models.

    inbox          what it is asked to do. The end of its owner comes as the dead reference
    slots          the models that are known, by file; others may read it
    jobs           the threads that work for it
    awaits_leases  whether anything waits for a lease to end
    stopping       the process ends: nothing is loaded any more
    ended          it looks into its inbox no more: everything is freed, for good
    """

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Message | weakref.ref[ModelLoader] | None] = SimpleQueue()
        self.slots: dict[Path, ModelSlot] = {}
        self.awaits_leases = False
        self.ended = False
        self.stopping = False
        self._owner: weakref.ref[ModelLoader] | None = None
        self._closed = False
        self._closers: list[Request] = []
        self._loading: ModelSlot | None = None
        self.jobs: set[threading.Thread] = set()

    def start(self, owner: ModelLoader) -> None:
        """Begin. It ends once it was closed, or its owner collected, and all is freed."""
        self._owner = weakref.ref(owner, self.inbox.put)
        threading.Thread(target=self._run, name="model-pool", daemon=True).start()

    # What the user's threads ask for

    def lease(self, request: Request, path: Path, slot: ModelSlot | None) -> None:
        """Grant a lease on a model once it is there: that of a slot, or the one of its file."""
        known = self.slots.get(path)
        if self._closed:
            request.fail(_closed_error(request.name))
        elif slot is not None and (known is not slot or slot.closing):
            remedy = f"it was unloaded; call load_model({request.name!r}) again"
            request.fail(ModelNotLoadedError(request.name, remedy))
        elif known is not None and known.closing:
            if not _is_refused(request, known):
                known.successors.append(request)
        else:
            if known is None:
                known = self.slots[path] = ModelSlot(request.name, path)
            known.replace_if_unusable()
            if known.residency is not None:
                request.grant(known.residency)
            elif self.stopping:
                request.fail(ModelNotLoadedError(request.name, "the process is ending"))
            else:
                known.waiters.append(request)

    def unload(self, request: Request, slot: ModelSlot) -> None:
        """Free a model once its leases have ended."""
        if self.slots.get(slot.path) is not slot:
            request.answer()
        elif not _is_refused(request, slot):
            slot.unloaders.append(request)
            slot.closing = True

    def close(self, request: Request) -> None:
        """Free all models once their leases have ended, and end."""
        if any(_is_refused(request, slot) for slot in self.slots.values()):
            return
        self._close()
        if self.slots:
            self._closers.append(request)
        else:
            request.answer()

    # What a load asks for

    def ask_for_room(
        self, loader: ModelLoader, name: str, placement: Placement, verdicts: Verdicts
    ) -> None:
        """Have make_room() called."""
        ask = partial(self.make_room, loader, name, placement, verdicts)
        self.inbox.put(Message(ask, verdicts.put))

    def make_room(
        self, loader: ModelLoader, name: str, placement: Placement, verdicts: Verdicts
    ) -> None:
        """Say whether there is room for a model, once one that is in the way was freed, or fail."""
        while True:
            own = [each for other in self.slots.values() for each in other.residencies]
            kept = [each for each in own if each.kept_because]
            error = loader.budget.shortage(name, placement, own, kept)
            if error is not None:
                verdicts.put(error)
                return
            crowded = not placement.fits and not loader.budget.is_unlimited
            if not crowded and not loader.budget.shortage(name, placement, own, own):
                verdicts.put(True)
                return
            others = [each for each in own if each not in kept]
            freeing = [each for each in others if each.slot.residency is not each]
            if freeing:
                freeing[0].freed.append(verdicts)
                return
            if not others:
                verdicts.put(True)
                return
            victim = min(others, key=lambda each: each.slot.last_used)
            if victim.slot.retire() is victim:
                logger.info("evicting %s to make room for %s", victim.name, name)

    # The thread

    def _run(self) -> None:
        enter_pool_thread()
        _running.add(self)
        while not (self._closed and not self.slots):
            self._handle(self._next())
        self.ended = True  # from here on whoever sends a message reads it, too
        with suppress(Empty):
            while True:
                self._handle(self.inbox.get_nowait())
        _running.discard(self)

    def _next(self) -> Message | weakref.ref[ModelLoader] | None:
        try:
            return self.inbox.get(timeout=_LEASES_LOOKED_AT if self.awaits_leases else None)
        except Empty:
            return None

    def _handle(self, message: Message | weakref.ref[ModelLoader] | None) -> None:
        try:
            try:
                if isinstance(message, weakref.ref):
                    self._close()
                elif message is not None:
                    message.work()
            except Exception as error:  # a lack of memory
                logger.exception("a thread of a model pool failed, and goes on")
                if isinstance(message, Message):
                    message.fail(error)
            self._tend()
        except Exception:
            self.awaits_leases = True  # so that it tries again
            with suppress(Exception):
                logger.exception("a thread of a model pool failed, and goes on")

    def _close(self) -> None:
        self._closed = True
        for slot in self.slots.values():
            slot.closing = True

    def _tend(self) -> None:
        """Do what can be done by now."""
        for slot in list(self.slots.values()):
            self._tend_slot(slot)
        self._begin_a_load()
        self.awaits_leases = any(slot.closing or slot.retired for slot in self.slots.values())
        if self._closed and not self.slots:
            _answer_all(self._closers)

    def _tend_slot(self, slot: ModelSlot) -> None:
        loading = self._loading is slot
        if slot.closing and not self._closed and (loading or slot.residency is not None):
            self._withdraw(slot)
        slot.replace_if_unusable()
        slot.waiters = [each for each in slot.waiters if not each.abandoned]
        if slot.closing:
            slot.retire()
            fail_all(slot.waiters, self._unloaded_error(slot))
        for residency in slot.retired:
            if not residency.freeing and not residency.lessees():
                self._free(residency)
                residency.freeing = True
        if slot.closing and not loading and not slot.residencies:
            del self.slots[slot.path]
            _answer_all(slot.unloaders)
            self._welcome_successors(slot)

    def _withdraw(self, slot: ModelSlot) -> None:
        """Keep a model if nobody waits any more for its unloading."""
        if slot.unloaders and all(each.abandoned for each in slot.unloaders):
            slot.unloaders.clear()
            slot.closing = False
            self._welcome_successors(slot)

    def _welcome_successors(self, slot: ModelSlot) -> None:
        while slot.successors:
            self.lease(slot.successors[0], slot.path, None)
            del slot.successors[0]

    def _unloaded_error(self, slot: ModelSlot) -> ModelNotLoadedError:
        if self._closed:
            return _closed_error(slot.name)
        return ModelNotLoadedError(slot.name, "it was unloaded while it was being loaded")

    # The threads that work for it

    def _begin_a_load(self) -> None:
        for slot in list(self.slots.values()):
            if self._loading is None and slot.waiters and not self.stopping:
                request = slot.waiters[0]
                assert request.loader is not None
                self._loading = slot
                try:
                    self._start(Load(self, request.loader, slot, request.name).run)
                except Exception as error:  # the process has as many threads as it may
                    self._loading = None
                    fail_all(slot.waiters, BackendError(f"no thread to load a model on: {error}"))

    def stops(self, slot: ModelSlot) -> bool:
        """Whether a load is to stop: nobody waits for it any more, or the model is unloaded."""
        waiters = slot.waiters.copy()
        return self.stopping or slot.closing or all(each.abandoned for each in waiters)

    def loaded(
        self, slot: ModelSlot, residency: Residency | None, error: BaseException | None
    ) -> None:
        """Take note of what a load came to."""
        self._loading = None
        if residency is not None:
            slot.put(residency)
            while slot.waiters and not slot.closing:
                slot.waiters[0].grant(residency)
                del slot.waiters[0]
        elif error is not None and not isinstance(error, StoppedLoad):
            fail_all(slot.waiters, error)
        # Who has asked for a model since its load was stopped has it loaded again.

    def _free(self, residency: Residency) -> None:
        work = partial(free, residency, partial(self.send, partial(self._freed, residency)))
        try:
            self._start(work)
        except RuntimeError:  # as above
            work()

    def _freed(self, residency: Residency) -> None:
        if residency in residency.slot.retired:
            residency.slot.retired.remove(residency)
        while residency.freed:
            residency.freed.pop().put(False)

    def send(self, work: Callable[[], object]) -> None:
        """Have something done that cannot be given up: it is tried until it works."""

        def again(_error: BaseException) -> None:
            time.sleep(_LEASES_LOOKED_AT)
            self.send(work)

        self.inbox.put(Message(work, again))

    def _start(self, work: Callable[[], None]) -> None:
        job = threading.Thread(target=_job, args=(work,), name="model-pool-job", daemon=True)
        self.jobs = {job, *(each for each in self.jobs if each.is_alive())}
        job.start()


_running: set[PoolThread] = set()


@atexit.register
def _stop_loads() -> None:
    """Stop what is being loaded: at the end of the process no thread may be in the middle of it.

    Who waits for it is not told: only daemon threads are left, which end here, too.
    """
    threads = list(_running)
    for thread in threads:
        thread.stopping = True
    end = time.monotonic() + _EXIT
    for thread in threads:
        for job in thread.jobs:
            if job.is_alive():
                job.join(max(0.0, end - time.monotonic()))


def _job(work: Callable[[], None]) -> None:
    enter_pool_thread()
    work()


def _is_refused(request: Request, slot: ModelSlot) -> bool:
    """Refuse a request that would wait for a lease of the thread that makes it."""
    own = any(lease.thread is request.thread for lease in slot.lessees())
    if own:
        request.fail(ModelInUseError(slot.name))
    return own


def _answer_all(requests: list[Request]) -> None:
    while requests:
        requests.pop().answer()


def _closed_error(name: str) -> ModelNotLoadedError:
    return ModelNotLoadedError(name, "its pool is closed; make a new ModelPool")
