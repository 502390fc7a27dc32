"""Models by name: loaded from a folder when asked for, shared by every request, evicted for others.

Who waits for whom: a load waits for the load before it, in the whole process; whoever unloads
waits for leases and for a load of that model. A load never waits for a lease: where no room can be
made it fails. So nobody waits in a circle, except a thread that would wait for its own lease, which
is refused.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyllama
from adapter.errors import (
    BackendError,
    ConfigurationError,
    ModelChangedError,
    ModelInUseError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotLoadedError,
)
from adapter.generation.metrics import MetricsSnapshot
from adapter.hardware import HardwareManager, Placement, require_integer
from adapter.loaded_model import LoadedModel
from adapter.machine_memory import machine
from adapter.memory_budget import MemoryBudget
from adapter.model_file import ModelFolder, ModelInfo
from adapter.model_slot import ModelSlot
from adapter.resident_model import ResidentModel

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# One load at a time, in all pools: each sees the memory that the one before it took.
_one_load = threading.RLock()


class ModelPool:
    """The models of one folder, loaded when asked for, evicted when others need the room.

    Thread-safe. Several pools may be used at once; each evicts its own models alone.

    model_dir       the folder; the model called name is its file name.gguf, or the split files
                    name-00001-of-00003.gguf and so on
    aliases         more names: each for another name, or for a path below the folder that ends
                    in .gguf, the only way to files in subfolders. Links are followed
    memory_budget   bytes that models and their contexts may take together, as llama.cpp
                    estimates them; "auto" for what was free of the host's memory and of each
                    GPU's before the pools of this process took any, less a margin; None for no
                    limit
    max_models      models in memory at once; None for any number
    hardware        decides what a model runs on
    rpc             "host:port" of servers (pyllama rpc-server) whose devices models run on too,
                    beside those of this machine; in place of hardware. A request fails when a
                    server goes away, and the next one loads the model again
    n_gpu_layers    layers kept on the GPUs, negative for all, 0 for none; None for what fits
    context_length  tokens of context for each request; None for what the model was trained
                    with, at most 4096
    max_contexts    requests of the full length that each model has memory for at once, and as
                    many more as are shorter; None for 4, or up to 32 on a GPU that has the memory
    reproducible    on a CPU, have a request with a seed give the same bytes whatever runs beside it
                    or ran before; False computes faster, and reuses answers as the beginning of
                    the next prompt. On GPUs it is False in effect
    prefix_folder   a folder, made if missing, where beginnings of prompts are kept for the next
                    process, up to 1 GiB for each model; None to keep them in memory only. Its
                    files are states of llama.cpp: use a folder that nobody else can write
    progress        called with a model's name and the fraction loaded, 0.0 to 1.0, whenever the
                    model is loaded or reloaded, by the thread that loads it

    Raises NotADirectoryError when model_dir or prefix_folder is no folder, InvalidParameterError
    for a number out of range or an rpc that is no "host:port", InvalidModelNameError for an alias
    that is no plain name or leads out of the folder, ConfigurationError for both hardware and rpc.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        aliases: Mapping[str, str] | None = None,
        memory_budget: int | Literal["auto"] | None = "auto",
        max_models: int | None = None,
        hardware: HardwareManager | None = None,
        rpc: Sequence[str] = (),
        n_gpu_layers: int | None = None,
        context_length: int | None = None,
        max_contexts: int | None = None,
        reproducible: bool = True,
        prefix_folder: str | os.PathLike[str] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        require_integer("context_length", context_length, least=1)
        require_integer("max_contexts", max_contexts, least=1)
        require_integer("n_gpu_layers", n_gpu_layers)
        self.model_dir = Path(model_dir).expanduser()
        self._folder = ModelFolder(self.model_dir, aliases or {})
        self._budget = MemoryBudget(memory_budget, max_models)
        if rpc and hardware is not None:
            raise ConfigurationError("rpc and hardware exclude each other: HardwareManager(rpc=…)")
        self._plan = partial(
            (hardware or HardwareManager(rpc=rpc)).plan,
            context_length=context_length,
            n_gpu_layers=n_gpu_layers,
            n_contexts=max_contexts,
        )
        self._reproducible = reproducible
        self._prefix_folder = _made(prefix_folder)
        self._progress = progress
        self._changed = threading.Condition()
        self._slots: dict[Path, ModelSlot] = {}
        self._uses = itertools.count(1)
        self._closed = False
        self._threads = ThreadPoolExecutor(thread_name_prefix="model-pool")

    # Loading

    def load_model(self, name: str) -> LoadedModel:
        """The model called name, loaded from its file unless it is in memory already.

        Several threads that ask for one model at once wait for one load. Where there is no room,
        models that nobody is using are evicted, the least recently used first.

        Raises InvalidModelNameError for a name that is no plain file name, ModelNotFoundError
        when the folder has no such file, ModelLoadError for a file that is no model,
        PoolFullError when no room can be made, and ModelNotLoadedError when the pool is closed.
        """
        path = self._folder.find(name)
        while True:
            slot = self._slot(name, path)
            try:
                with self._borrow(slot, name):
                    return self._handle(slot, name)
            except ModelNotLoadedError as error:
                stopped = isinstance(error.__cause__, pyllama.ModelLoadCancelled)
                with self._changed:
                    if stopped or self._closed or not slot.closing:
                        raise
                # Another thread unloaded it in between.

    async def aload_model(self, name: str) -> LoadedModel:
        """The same, without blocking the event loop.

        A load goes on when the call is cancelled: the model is there for whoever asks next.
        """
        self._refuse_when_closed(name)
        return await asyncio.wrap_future(self._threads.submit(self.load_model, name))

    def get_loaded_model(self, name: str | None = None) -> LoadedModel:
        """A model that was loaded and not unloaded: the one called name, or the only one.

        Raises ModelNotLoadedError when it was not loaded, or without a name when there are none
        or several.
        """
        if name is None:
            with self._changed:
                slots = [slot for slot in self._slots.values() if slot.handles]
            if len(slots) != 1:
                names = ", ".join(repr(slot.name) for slot in slots) or "none"
                raise ModelNotLoadedError("", f"give a name; loaded: {names}")
            return next(iter(slots[0].handles.values()))
        slot = self._loaded_slot(name)
        with self._changed:
            loaded = slot.handles.get(name)
        return loaded or self.load_model(name)  # known by another of its names

    def models(self) -> list[ModelInfo]:
        """Every model of the folder, from the headers of the files, ordered by name.

        A damaged file is among them, with its problem. Headers are read once, and again when a
        file has changed.
        """
        found = []
        for info in self._folder.models():
            with self._changed:
                slot = self._slots.get(info.paths[0])
                loaded = slot is not None and slot.resident is not None
                pinned = slot is not None and slot.pinned
            found.append(replace(info, loaded=loaded, pinned=pinned))
        return found

    # Keeping and letting go

    def metrics(self) -> dict[str, MetricsSnapshot]:
        """What the schedulers of the models have done since each was first loaded, by name."""
        with self._changed:
            slots = [slot for slot in self._slots.values() if slot.handles]
            return {slot.name: slot.metrics.snapshot() for slot in slots}

    def pin_model(self, name: str) -> LoadedModel:
        """Load a model, and never evict it. Raises what load_model() raises."""
        loaded = self.load_model(name)
        with loaded.lease():
            slot = self._loaded_slot(name)
            with self._changed:
                slot.pinned = True
        return loaded

    def unpin_model(self, name: str) -> None:
        """Let a model be evicted again. Raises ModelNotLoadedError when it was not loaded."""
        slot = self._loaded_slot(name)
        with self._changed:
            slot.pinned = False

    def unload_model(self, name: str) -> None:
        """Free a model, once the requests that use it are done; new ones are refused meanwhile.

        Its handles cannot be used any more; load_model() gives a new one. A load of it that is
        in progress is stopped.

        Raises ModelNotLoadedError when it was not loaded, and ModelInUseError when this thread
        itself holds a lease on it.
        """
        self._close_slot(self._loaded_slot(name))

    def close(self) -> None:
        """Free every model, once the requests that use it are done. Closing again does nothing.

        Raises ModelInUseError when this thread itself holds a lease on a model.
        """
        with self._changed:
            slots = list(self._slots.values())
            for slot in slots:
                _refuse_own_lease(slot)
            self._closed = True
            for slot in slots:
                slot.closing = True
        for slot in slots:
            self._close_slot(slot)
        self._threads.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        with self._changed:
            names = ", ".join(slot.name for slot in self._slots.values() if slot.resident)
        return f"<ModelPool {str(self.model_dir)!r}: {names or 'no model'} in memory>"

    # Slots

    def _slot(self, name: str, path: Path) -> ModelSlot:
        """The slot of a file, once it is not being unloaded."""
        with self._changed:
            while True:
                self._refuse_when_closed(name)
                slot = self._slots.setdefault(path, ModelSlot(name, path))
                if not slot.closing:
                    return slot
                _refuse_own_lease(slot)
                self._changed.wait()

    def _loaded_slot(self, name: str) -> ModelSlot:
        with self._changed:
            for known in self._slots.values():  # even if the file is gone by now
                if name in known.handles:
                    return known
        path = self._folder.find(name)
        with self._changed:
            slot = self._slots.get(path)
            if slot is not None and (slot.handles or slot.loading):
                return slot
        raise ModelNotLoadedError(name, f"call load_model({name!r}) first")

    def _handle(self, slot: ModelSlot, name: str) -> LoadedModel:
        with self._changed:
            if name not in slot.handles:
                assert slot.resident is not None
                assert slot.placement is not None
                slot.handles[name] = LoadedModel(
                    name,
                    slot.path,
                    slot.resident,
                    slot.placement,
                    partial(self._borrow, slot, name),
                )
            return slot.handles[name]

    def _close_slot(self, slot: ModelSlot) -> None:
        with self._changed:
            _refuse_own_lease(slot)
            slot.closing = True
            try:
                self._changed.wait_for(lambda: not slot.leases and slot.loading is None)
            except BaseException:  # Ctrl-C
                slot.closing = self._closed
                self._changed.notify_all()
                raise
            free = slot.take()
        free()
        with self._changed:
            if self._slots.get(slot.path) is slot:
                del self._slots[slot.path]
            self._changed.notify_all()

    def _refuse_when_closed(self, name: str) -> None:
        with self._changed:
            if self._closed:
                raise ModelNotLoadedError(name, "its pool is closed; make a new ModelPool")

    @contextmanager
    def _borrow(self, slot: ModelSlot, name: str) -> Iterator[ResidentModel]:
        """Hold a lease on a model for a block; see LoadedModel.lease()."""
        thread = threading.get_ident()
        resident = self._acquire(slot, name, thread)
        try:
            yield resident
        finally:
            # Perhaps in another thread: a generator may be closed anywhere.
            with self._changed:
                slot.leases[thread] -= 1
                if not slot.leases[thread]:
                    del slot.leases[thread]
                    self._changed.notify_all()

    def _acquire(self, slot: ModelSlot, name: str, thread: int) -> ResidentModel:
        while True:
            with self._changed:
                # A request that is running may go on to its end.
                if slot.closing and thread not in slot.leases:
                    self._refuse_when_closed(name)
                    raise ModelNotLoadedError(
                        name, f"it was unloaded; call load_model({name!r}) again"
                    )
                if slot.resident is not None and not slot.is_lost:
                    slot.leases[thread] += 1
                    slot.last_used = next(self._uses)
                    return slot.resident
                pending = slot.loading
                mine = pending is None
                if pending is None:
                    pending = slot.loading = Future()
            if mine:
                return self._load_leased(slot, name, pending, thread)
            error = pending.exception()
            if isinstance(error, Exception):
                raise error
            # Loaded, and perhaps evicted again; or given up by a thread that was interrupted.

    def _load_leased(
        self, slot: ModelSlot, name: str, pending: Future[None], thread: int
    ) -> ResidentModel:
        """Load a model, and give this thread a lease on it before anybody can evict it."""
        try:
            with _one_load:
                placement, resident = self._load(slot, name)
                with self._changed:
                    slot.put(resident, placement)
                    slot.loading = None
                    slot.leases[thread] += 1
                    slot.last_used = next(self._uses)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                slot.loading = None
                self._changed.notify_all()
            pending.set_exception(error)
            raise
        pending.set_result(None)
        return resident

    def _load(self, slot: ModelSlot, name: str) -> tuple[Placement, ResidentModel]:
        def report(fraction: float) -> bool:
            if self._progress is not None:
                self._progress(name, fraction)
            return not slot.closing

        self._free_lost()
        with _translated(name, slot.path):
            placement = self._place(slot, name)
            resident = ResidentModel(
                slot.path,
                placement,
                report,
                slot.metrics,
                reproducible=self._reproducible,
                prefix_folder=self._prefix_folder,
            )
        if slot.fingerprint not in (None, resident.fingerprint):
            resident.close()
            raise ModelChangedError(name, slot.path)
        logger.info("loaded %s from %s", name, slot.path)
        return placement, resident

    def _free_lost(self) -> None:
        """Free the models whose server went away: a server takes one connection of a process."""
        with self._changed:
            free = [slot.take() for slot in self._slots.values() if slot.is_lost]
        for each in free:
            each()

    def _place(self, slot: ModelSlot, name: str) -> Placement:
        """Decide where a model goes, evicting others until there is room."""
        placement = slot.placement
        while True:
            if placement is None:
                placement = self._plan(slot.path)
                machine.observe(placement.free)
            with self._changed:
                own = [other for other in self._slots.values() if other.resident is not None]
                kept = [other for other in own if other.kept_because]
                error = self._budget.shortage(name, placement, own, kept)
                if error is not None:
                    raise error
                crowded = not placement.fits and not self._budget.is_unlimited
                victims = sorted(
                    (other for other in own if other not in kept), key=lambda v: v.last_used
                )
                short = self._budget.shortage(name, placement, own, own)
                if not victims or not (short or crowded):
                    return placement
                free = victims[0].take()
            logger.info("evicting %s to make room for %s", victims[0].name, name)
            free()
            if crowded and slot.placement is None:
                placement = None  # more of it may fit now


def _made(prefix_folder: str | os.PathLike[str] | None) -> Path | None:
    if prefix_folder is None:
        return None
    path = Path(prefix_folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"prefix_folder must be a folder, got {path}") from None
    return path


def _refuse_own_lease(slot: ModelSlot) -> None:
    if threading.get_ident() in slot.leases:
        raise ModelInUseError(slot.name)


@contextmanager
def _translated(name: str, path: Path) -> Iterator[None]:
    """Raise what pyllama raises as this package's own errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelNotFoundError(name, path) from error
    except pyllama.ModelLoadCancelled as error:
        raise ModelNotLoadedError(name, "it was unloaded while it was being loaded") from error
    except (pyllama.ModelLoadError, pyllama.ChatTemplateError, OSError) as error:
        raise ModelLoadError(name, path, str(error)) from error
    except (pyllama.NativeMemoryError, pyllama.MemoryFitError, pyllama.BackendError) as error:
        raise BackendError(f"no memory for model {name!r}: {error}") from error
