"""Models by name: loaded from a folder when asked for, shared, and evicted for others."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter.errors import ConfigurationError, ModelNotLoadedError, TransientError
from adapter.generation.failures import insist
from adapter.generation.memory.prefix_folder import prepare
from adapter.generation.metrics import MetricsSnapshot
from adapter.generation.thread_start import start_thread
from adapter.models.chat_templates import ChatTemplates, Template
from adapter.models.context_settings import checked
from adapter.models.files import ModelFolder
from adapter.models.hardware import HardwareManager, require_integer
from adapter.models.info import ModelInfo
from adapter.models.loaded import LoadedModel, whole
from adapter.models.loader import ModelLoader
from adapter.models.loading import translated_load
from adapter.models.loading_bar import Progress, watch
from adapter.models.memory_budget import MemoryBudget
from adapter.models.resident import ResidentModel
from adapter.models.slot import ModelSlot

if TYPE_CHECKING:
    from typing_extensions import Self

    import pyllama

_LOOK = 1.0
"""Seconds after which aload_model() looks whether its thread still lives."""


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
                    many more as are shorter; None for what memory allows: up to 16 on a CPU, and
                    up to 32 on a GPU
    context         how the contexts of its models are made, such as
                    ContextParams(type_k="q8_0", n_threads=4): types of keys and values, RoPE,
                    threads, batch sizes, flash attention. What is left open, and what belongs to
                    the pool, the pool decides. Flash attention, which quantized values need, has
                    answers on a CPU decoded one by one, unless reproducible is False
    reproducible    on a CPU, have a request with a seed give the same bytes whatever runs beside it
                    or ran before; False computes faster, and reuses answers as the beginning of
                    the next prompt. On GPUs it is False in effect
    prefix_folder   a folder, made if missing, where beginnings of prompts are kept for the next
                    process, up to 1 GiB for each model; None to keep them in memory only. Its
                    files are states of llama.cpp: use a folder that nobody else can write
    chat_template   a template in Jinja in place of the models' own: its text, or the path of a file
                    that holds it. One for all models of the pool, or a mapping from their names.
                    What a model can do is found by trying it, and it is part of the lm's name
    progress        True draws a bar on standard error while a model loads, if that is a terminal;
                    False draws nothing. Or a function, called in a thread of the pool with a
                    model's name and the fraction loaded, 0.0 to 1.0. What it raises stops the load,
                    and is raised by whoever waits for it. It may unload models and close the pool;
                    asking for one that is not in memory is a ModelInUseError

    Raises NotADirectoryError when model_dir or prefix_folder is no folder, PermissionError or other
    OSErrors for a prefix_folder that is not to be trusted or cannot be written,
    InvalidParameterError for a number out of range, an rpc that is no "host:port", a progress that
    is neither a function nor a bool, and a context that says what the pool decides,
    InvalidModelNameError for an alias that is no plain name or leads out of the folder,
    ConfigurationError for both hardware and rpc, and for a chat_template that cannot be read or
    does not parse, ModelNotFoundError where it names a model that the folder does not have.
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
        context: pyllama.ContextParams | None = None,
        reproducible: bool = True,
        prefix_folder: str | os.PathLike[str] | None = None,
        chat_template: Template | Mapping[str, Template] | None = None,
        progress: Progress = True,
    ) -> None:
        require_integer("context_length", context_length, least=1)
        require_integer("max_contexts", max_contexts, least=1)
        require_integer("n_gpu_layers", n_gpu_layers)
        self.model_dir = Path(model_dir).expanduser()
        self._folder = ModelFolder(self.model_dir, aliases or {})
        if rpc and hardware is not None:
            raise ConfigurationError("rpc and hardware exclude each other: HardwareManager(rpc=…)")
        plan = partial(
            (hardware or HardwareManager(rpc=rpc)).plan,
            context_length=context_length,
            n_gpu_layers=n_gpu_layers,
            n_contexts=max_contexts,
            context=checked(context),
        )
        #: What load_model() returned: aliases have handles of their own.
        self._handles: dict[tuple[ModelSlot, str], LoadedModel] = {}
        self._loader = ModelLoader(
            plan,
            MemoryBudget(memory_budget, max_models),
            reproducible=reproducible,
            prefix_folder=_made(prefix_folder),
            templates=ChatTemplates(chat_template, self._folder.find),
            watch=watch(progress),
        )

    # Loading

    def load_model(self, name: str) -> LoadedModel:
        """The model called name, loaded from its file unless it is in memory already.

        Several threads that ask for one model at once wait for one load. Where there is no room,
        models that nobody is using are evicted, the least recently used first.

        The name hf:owner/repo:Q4_K_M means a model of a hub: it is downloaded, unless the cache
        of huggingface_hub has it. HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE count. The
        names lmstudio:owner/repo/file and ollama:model:tag mean models that these programs keep.

        Raises InvalidModelNameError for a name that is no plain file name, ModelNotFoundError
        when the folder has no such file, ModelDownloadError when a hub does not give it,
        ModelLoadError for a file that is no model,
        PoolFullError when no room can be made, TransientError when the process lacks descriptors
        or threads just now, or others ended the template's process, BackendError when memory or a
        device fails, and ModelNotLoadedError when the pool is closed.
        """
        path = self._folder.fetch(name)
        with self._loader.borrow(name, path, None, whole) as resident:
            return self._handle(name, path, resident)

    async def aload_model(self, name: str) -> LoadedModel:
        """The same, without blocking the event loop.

        A load goes on when the call is cancelled: the model is there for whoever asks next.
        """
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[LoadedModel] = loop.create_future()

        def load() -> None:
            try:
                settle = partial(_settle, loaded, self.load_model(name), None)
            except BaseException as error:
                settle = partial(_settle, loaded, None, error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                insist(partial(loop.call_soon_threadsafe, settle))

        # Not on the loop's own executor: DSPy uses that one, and long loads would starve it.
        thread = threading.Thread(target=load, name="model-pool-load", daemon=True)
        try:
            start_thread(thread)
        except (RuntimeError, MemoryError) as error:  # the process has as many as it may
            raise TransientError(f"no thread to load model {name!r} on: {error}") from error
        try:
            while not loaded.done():
                lives = thread.is_alive()
                await asyncio.wait([loaded], timeout=_LOOK)
                if not (lives or loaded.done()):
                    raise TransientError(f"no memory for a thread to load model {name!r} on")
            return await loaded
        finally:
            loaded.cancel()  # if nobody waits any more

    def get_loaded_model(self, name: str | None = None) -> LoadedModel:
        """A model that was loaded and not unloaded: the one called name, or the only one.

        Raises ModelNotLoadedError when it was not loaded, or without a name when there are none
        or several.
        """
        if name is None:
            live = self._live_handles()
            slots = dict.fromkeys(slot for slot, _ in live)
            if len(slots) != 1:
                names = ", ".join(repr(slot.name) for slot in slots) or "none"
                raise ModelNotLoadedError("", f"give a name; loaded: {names}")
            return next(iter(live.values()))
        slot = self._loaded_slot(name)
        return self._handles.get((slot, name)) or self.load_model(name)  # known by another name

    def models(self) -> list[ModelInfo]:
        """Every model of the folder, from the headers of the files, ordered by name.

        A damaged file is among them, with its problem. Headers are read once, and again when a
        file has changed.
        """
        found = []
        for info in self._folder.models():
            slot = self._loader.slot(info.paths[0])
            loaded = slot is not None and slot.residency is not None
            pinned = slot is not None and slot.pinned
            found.append(replace(info, loaded=loaded, pinned=pinned))
        return found

    # Keeping and letting go

    def metrics(self) -> dict[str, MetricsSnapshot]:
        """What the schedulers of the models have done since each was first loaded, by name.

        Raises ModelNotLoadedError in a child of fork().
        """
        self._loader.refuse_in_child("")
        slots = dict.fromkeys(slot for slot, _ in self._live_handles())
        return {slot.name: slot.metrics.snapshot() for slot in slots}

    def pin_model(self, name: str) -> LoadedModel:
        """Load a model, and never evict it. Raises what load_model() raises."""
        loaded = self.load_model(name)
        with loaded.lease():
            self._loaded_slot(name).pinned = True
        return loaded

    def unpin_model(self, name: str) -> None:
        """Let a model be evicted again. Raises ModelNotLoadedError when it was not loaded."""
        self._loaded_slot(name).pinned = False

    def unload_model(self, name: str) -> None:
        """Free a model, once the requests that use it are done; new ones are refused meanwhile.

        Its handles cannot be used any more; load_model() gives a new one. A load of it that is
        in progress is stopped. Where Ctrl-C ends the wait for its requests, it stays loaded.

        A progress callback may call it, too; it returns at once then.

        Raises ModelNotLoadedError when it was not loaded, ModelInUseError when this thread itself
        holds a lease on it, and BackendError when it is still not freed two minutes after its last
        request: what it computes on may hang, a GPU or another machine. It is freed when it can be.
        """
        slot = self._loaded_slot(name)
        self._loader.unload(slot)

    def close(self) -> None:
        """Free every model, once the requests that use it are done. Closing again does nothing.

        A pool that is dropped without it is closed, too, once no handle on one of its models is
        left. A progress callback may call it; it returns at once then.

        Raises ModelInUseError when this thread itself holds a lease on a model, and BackendError
        where one cannot be freed, as unload_model() does.
        """
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(slot.name for slot in self._loader.slots() if slot.residency)
        return f"<ModelPool {str(self.model_dir)!r}: {names or 'no model'} in memory>"

    def _live_handles(self) -> dict[tuple[ModelSlot, str], LoadedModel]:
        """The handles on models that were not unloaded."""
        return {
            key: handle
            for key, handle in self._handles.copy().items()
            if self._loader.slot(key[0].path) is key[0]
        }

    def _loaded_slot(self, name: str) -> ModelSlot:
        for slot, known in self._live_handles():  # even if the file is gone by now
            if known == name:
                return slot
        path = self._folder.find(name)
        found = self._loader.slot(path)
        if found is not None and (found.placement is not None or found.waiters):
            return found
        raise ModelNotLoadedError(name, f"call load_model({name!r}) first")

    def _handle(self, name: str, path: Path, resident: ResidentModel) -> LoadedModel:
        """The one handle of a name on a model, which this thread holds a lease on.

        It is another one where the model computes otherwise by now, as after the loss of a server.
        """
        slot = self._loader.slot(path)
        assert slot is not None
        assert slot.placement is not None
        for key in self._handles.keys() - self._live_handles().keys():
            self._handles.pop(key, None)
        borrow = partial(self._loader.borrow, name, path, slot)
        with translated_load(name, path):
            made = LoadedModel(name, path, resident, slot.placement, borrow)
        known = self._handles.setdefault((slot, name), made)
        if known.computation == made.computation:
            return known
        self._handles[slot, name] = made
        return made


def _made(prefix_folder: str | os.PathLike[str] | None) -> Path | None:
    if prefix_folder is None:
        return None
    path = Path(prefix_folder).expanduser()
    prepare(path)
    return path


def _settle(
    future: asyncio.Future[LoadedModel], loaded: LoadedModel | None, error: BaseException | None
) -> None:
    if future.done():  # the call was cancelled
        return
    if loaded is not None:
        future.set_result(loaded)
    elif error is not None:
        future.set_exception(error)
