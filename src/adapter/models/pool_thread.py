"""The thread of a pool, which alone decides what is loaded and freed.

It handles the messages of an inbox one after the other, and waits for nothing else. Long tasks,
such as loading or freeing a model, run on threads of their own, which send a message when they are
done. The user's threads only wait for answers; see pool_requests.

Who waits for whom: a load waits for the load before it, in the whole process, and for models to be
freed. Unloading waits for leases, and for a load of that model to stop. A load never waits for a
lease: if no room can be made, it fails. So nobody waits in a circle, except a thread that would
wait for its own lease, or for a load that calls it back. Both are refused.
"""

from __future__ import annotations

import atexit
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from adapter.errors import ModelInUseError, ModelNotLoadedError, ResourceError
from adapter.generation.thread_start import not_started, start_thread
from adapter.models.hardware import Placement
from adapter.models.load_settings import LoadSettings
from adapter.models.loading import Free, Load, StoppedLoad
from adapter.models.pool_requests import PoolRequest, enter_pool_thread, fail_all
from adapter.models.slot import ModelSlot, Residency, Verdicts

logger = logging.getLogger(__name__)

_LOOK = 0.2
"""Seconds after which it checks for leases and jobs that ended without notice."""

_COLLECT = 3.0
"""Seconds that it waits for a lease before it collects garbage, and between collections."""

_EXIT = 10.0
"""Seconds that the end of the process waits for a load to stop."""


class Message(NamedTuple):
    """A message: what to do, and whom to notify if that fails."""

    work: Callable[[], object]
    fail: Callable[[BaseException], object]


class PoolThread:
    """Keeps the state of a pool's models.

    Attributes:
        settings: how they are loaded.
        inbox: its messages. A dead reference means that the owner was dropped.
        slots: the known models, by file. Other threads may read it.
        looks_by_itself: whether it waits for a lease or a job whose end may send no message.
        stopping: the process ends, and nothing is loaded any more.
        ended: it does not read its inbox any more. Everything was freed, for good.
    """

    def __init__(self, settings: LoadSettings) -> None:
        self.settings = settings
        self.inbox: SimpleQueue[Message | weakref.ref[Any] | None] = SimpleQueue()
        self.slots: dict[Path, ModelSlot] = {}
        self.looks_by_itself = False
        self.ended = False
        self.stopping = False
        self._owner: weakref.ref[Any] | None = None
        self._thread: threading.Thread | None = None
        self._claims: list[threading.Thread] = []  # one of them is the pool's
        self._closed = False
        self._closers: list[PoolRequest[Any]] = []
        self._gone: list[ModelSlot] = []
        self._load: Load | None = None
        self._message: Message | weakref.ref[Any] | None = None
        self._collected: float | None = None  # garbage was collected, or a wait began

    def start(self, owner: object) -> None:
        """Start. It ends once it was closed or its owner collected, and everything is freed."""
        self._owner = weakref.ref(owner, self.inbox.put)
        self.keep_going()

    def keep_going(self) -> None:
        """Start a thread, or another if the first one ended for want of memory.

        Raises:
            TransientError: no thread can be started.
            ModelNotLoadedError: none can be, because the main thread has ended.
        """
        if self.ended or (self._thread is not None and self._thread.is_alive()):
            return
        try:
            start_thread(threading.Thread(target=self._run, name="model-pool", daemon=True))
        except (RuntimeError, MemoryError) as error:  # the process has as many threads as it may
            raise not_started(error, "for a model pool") from error

    # Requests of the user's threads

    def lease(self, request: PoolRequest[Residency], path: Path, slot: ModelSlot | None) -> None:
        """Grant a lease on the model of a slot or a file once it is in memory."""
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

    def unload(self, request: PoolRequest[Any], slot: ModelSlot) -> None:
        """Free a model once its leases have ended."""
        if self.slots.get(slot.path) is not slot:
            request.answer()
        elif not _is_refused(request, slot):
            slot.unloaders.append(request)
            slot.closing = True

    def close(self, request: PoolRequest[Any]) -> None:
        """Free all models once their leases have ended, and end."""
        if any(_is_refused(request, slot) for slot in self.slots.values()):
            return
        self._close()
        if self.slots:
            self._closers.append(request)
        else:
            request.answer()

    # Requests of a load

    def look(self) -> None:
        """Have it check its jobs."""
        self.inbox.put(None)

    def ask_for_room(self, name: str, placement: Placement, verdicts: Verdicts) -> None:
        """Have make_room() called."""
        ask = partial(self.make_room, name, placement, verdicts)
        self.inbox.put(Message(ask, verdicts.put))

    def make_room(self, name: str, placement: Placement, verdicts: Verdicts) -> None:
        """Answer whether there is room for a model, after evicting one if need be; or fail."""
        budget = self.settings.budget
        while True:
            own = [each for other in self.slots.values() for each in other.residencies]
            kept = [each for each in own if each.kept_because]
            error = budget.shortage(name, placement, own, kept)
            if error is not None:
                verdicts.put(error)
                return
            crowded = not placement.fits and not budget.is_unlimited
            if not crowded and not budget.shortage(name, placement, own, own):
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
        if not self._claim():
            return
        while not self.ended:
            self._try_to_work()

    def _try_to_work(self) -> None:
        try:
            self._work()
        except BaseException:  # memory is short, perhaps for long: the loop continues where it was
            time.sleep(_LOOK)

    def _claim(self) -> bool:
        """Whether this thread is the pool's: two user threads may have started one each."""
        mine = threading.current_thread()
        self._claims.append(mine)
        if next(each for each in self._claims if each.is_alive()) is not mine:
            return False
        self._thread, self._claims = mine, [mine]
        return True

    def _work(self) -> None:
        """Handle messages. What fails for want of memory is repeated, so that everybody gets an
        answer.
        """
        enter_pool_thread()
        _running.add(self)
        while not self._closed or self.slots or self._gone or self._closers:
            self._look()
        _running.discard(self)
        self.ended = True  # from here on the sender reads it too
        while not self.inbox.empty():
            self._look()

    def _look(self) -> None:
        """Handle the next message, or the one that failed, and do what has become possible."""
        try:
            if self._message is None:
                self._message = self._next()
            if self._message is not None:
                self._handle(self._message)
                self._message = None
            self._tend()
        except BaseException:
            self.looks_by_itself = True
            time.sleep(_LOOK)
            logger.exception("the thread of a model pool failed, and goes on")

    def _next(self) -> Message | weakref.ref[Any] | None:
        try:
            return self.inbox.get(timeout=_LOOK if self.looks_by_itself else None)
        except Empty:
            return None

    def _handle(self, message: Message | weakref.ref[Any]) -> None:
        if isinstance(message, weakref.ref):
            self._close()
            return
        try:
            message.work()
        except BaseException as error:
            message.fail(error)

    def _close(self) -> None:
        self._closed = True
        for slot in self.slots.values():
            slot.closing = True

    def _tend(self) -> None:
        """Do what has become possible."""
        if self._load is not None and self._load.is_over:
            self._end_load(self._load)
        for slot in list(self.slots.values()):
            self._tend_slot(slot)
        while self._gone:
            _answer_all(self._gone[-1].unloaders)
            self._welcome_successors(self._gone[-1])
            self._gone.pop()
        self._begin_a_load()
        self.looks_by_itself = self._load is not None or any(
            slot.closing or slot.retired for slot in self.slots.values()
        )
        if self._closed and not self.slots:
            _answer_all(self._closers)
        self._collect_leases()

    def _collect_leases(self) -> None:
        """Collect garbage now and then while a lease is waited for.

        A dropped lease may be in a reference cycle, such as that of an exception and its frames.
        Only the collector ends it, and an idle process may never run the collector.
        """
        models = [each for slot in self.slots.values() for each in slot.residencies]
        now = time.monotonic()
        if not any(each.slot.closing and each.lessees() for each in models):
            self._collected = None
        elif self._collected is None:
            self._collected = now
        elif now - self._collected >= _COLLECT:
            gc.collect()
            self._collected = time.monotonic()

    def _tend_slot(self, slot: ModelSlot) -> None:
        loading = self._load is not None and self._load.slot is slot
        if slot.closing and not self._closed and (loading or slot.residency is not None):
            self._withdraw(slot)
        slot.mend()
        slot.replace_if_unusable()
        slot.waiters = [each for each in slot.waiters if not each.abandoned]
        if slot.closing:
            slot.retire()
            fail_all(slot.waiters, self._unloaded_error(slot))
        for residency in slot.retired.copy():
            if residency.freeing is None and not residency.lessees():
                self._free(residency)
            if residency.freeing is not None and residency.freeing.is_over:
                self._end_free(residency)
            elif residency.hangs:
                self._give_up_waiting(residency)
        if slot.closing and not loading and not slot.residencies:
            self._gone.append(slot)
            self.slots.pop(slot.path, None)

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
            if self._load is None and slot.waiters and not self.stopping:
                request = slot.waiters[0]
                load = Load(self, slot, request.name)
                try:
                    self._load = load
                    load.start()
                except Exception as error:  # the process has as many threads as it may
                    self._load = None
                    fail_all(slot.waiters, not_started(error, "to load a model on"))

    def stops(self, slot: ModelSlot) -> bool:
        """Whether a load should stop: nobody waits for it, or the model is being unloaded."""
        waiters = slot.waiters.copy()
        return self.stopping or slot.closing or all(each.abandoned for each in waiters)

    def _end_load(self, load: Load) -> None:
        """Record the result of a load."""
        slot, residency = load.slot, load.residency
        if residency is not None:
            slot.put(residency)
            while slot.waiters and not slot.closing:
                slot.waiters[0].grant(residency)
                del slot.waiters[0]
        elif not isinstance(load.error, StoppedLoad):
            fail_all(slot.waiters, load.error or ResourceError("the thread of the load ended"))
        # A request that came after the load was stopped has the model loaded again.
        load.error = None  # which refers to the load
        self._load = None

    def _free(self, residency: Residency) -> None:
        free = Free(self, residency)
        try:
            free.start()
        except (RuntimeError, MemoryError):  # as above
            free.run()
        residency.freeing = free

    def _end_free(self, residency: Residency) -> None:
        if not residency.is_freed:  # its thread failed before
            residency.freeing = None
            return
        while residency.freed:
            residency.freed[-1].put(False)
            residency.freed.pop()
        residency.slot.retired.remove(residency)

    def _give_up_waiting(self, residency: Residency) -> None:
        """Stop waiting for a model whose freeing hangs. It is freed if that becomes possible."""
        while residency.freed:
            residency.freed[-1].put(False)
            residency.freed.pop()
        slot = residency.slot
        for requests in (slot.unloaders, slot.successors, self._closers):
            fail_all(requests, ResourceError(f"model {slot.name!r} is {residency.kept_because}"))

    def stop(self) -> list[threading.Thread]:
        """Stop loading. Returns the threads that work for it."""
        self.stopping = True
        retired = [each for slot in self.slots.copy().values() for each in slot.retired]
        frees = [each.freeing.thread for each in retired if each.freeing is not None]
        return [*frees, *([] if self._load is None else [self._load.thread])]


_running: set[PoolThread] = set()


@atexit.register
def _stop_loads() -> None:
    """Stop all loads: at the end of the process no thread may be in the middle of one.

    Nobody is notified, since only daemon threads are left, which end here too.
    """
    end = time.monotonic() + _EXIT
    for thread in [each for pool in list(_running) for each in pool.stop()]:
        if thread.is_alive():
            thread.join(max(0.0, end - time.monotonic()))


def _is_refused(request: PoolRequest[Any], slot: ModelSlot) -> bool:
    """Refuse a request that would wait for a lease of its own thread."""
    own = any(lease.thread is request.thread for lease in slot.lessees())
    if own:
        request.fail(ModelInUseError(slot.name))
    return own


def _answer_all(requests: list[PoolRequest[Any]]) -> None:
    while requests:
        requests[-1].answer()
        requests.pop()


def _closed_error(name: str) -> ModelNotLoadedError:
    return ModelNotLoadedError(name, "its pool is closed; make a new ModelPool")
