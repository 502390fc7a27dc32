"""Models by name: loaded from a folder on demand, shared, and evicted for others."""

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

from adapter.errors import (
    ConfigurationError,
    InvalidParameterError,
    ModelNotLoadedError,
    TransientError,
)
from adapter.generation.failures import insist
from adapter.generation.memory.prefix_folder import prepare
from adapter.generation.metrics import MetricsSnapshot
from adapter.generation.thread_start import not_started, start_thread
from adapter.models.chat_templates import ChatTemplates, Template
from adapter.models.context_settings import BATCH_WIDTHS, checked
from adapter.models.files import ModelFolder
from adapter.models.hardware import HardwareManager
from adapter.models.info import ModelInfo
from adapter.models.integers import MAX_CONTEXT_LENGTH, MAX_LAYERS, require_integer
from adapter.models.lease import Lease
from adapter.models.load_settings import LoadSettings
from adapter.models.loaded import LoadedModel, whole
from adapter.models.loader import ModelLoader
from adapter.models.loading import translated_load
from adapter.models.loading_bar import Progress, watch, weakly
from adapter.models.local_path import local_path
from adapter.models.memory_budget import MemoryBudget
from adapter.models.resident import ResidentModel
from adapter.models.slot import ModelSlot

if TYPE_CHECKING:
    from typing_extensions import Self

    import pyllama

_LOOK = 1.0
"""Seconds after which aload_model() checks whether its thread still lives."""


class ModelPool:
    """The models of one folder. It loads them when they are asked for, and evicts them for others.

    Thread-safe. Several pools may be used at once; each evicts its own models only.

    Args:
        model_dir: the folder. The model ``name`` is the file ``name.gguf``, or the split files
            ``name-00001-of-00003.gguf`` and so on.
        aliases: more names, each for another name or for a path below the folder that ends in
            ``.gguf``. An alias is the only way to a file in a subfolder. Links are followed.
        memory_budget: bytes that models and their contexts may take together, as llama.cpp
            estimates them. ``"auto"`` allows what was free on the machine and on each GPU before
            the pools of this process took any, less a margin; None sets no limit.
        max_models: models in memory at once; None for any number.
        hardware: decides what a model runs on.
        rpc: ``"host:port"`` of servers (``pyllama rpc-server``). Models run on their devices and on
            those of this machine. Give either this or ``hardware``. If a server goes away, requests
            fail, and the next request loads the model again.
        n_gpu_layers: layers kept on the GPUs, negative for all, 0 for none; None for what fits.
        context_length: tokens of context for each request; None for what the model was trained
            with, at most 4096.
        max_contexts: requests of the full length for which each model has memory at once. More
            requests run if they are shorter. None for what memory allows, up to 16 on a CPU and
            up to 32 on a GPU.
        context: how the contexts of the models are made, such as
            ``pyllama.ContextParams(type_k="q8_0", n_threads=4)``: types of keys and values, RoPE,
            threads, batch sizes, flash attention. The pool decides what is left open, and refuses
            parameters that it always decides itself. Quantized values need flash attention. With
            it, answers on a CPU are decoded one by one unless ``reproducible`` is False.
        reproducible: on a CPU, a request with a seed gives the same bytes whatever runs beside it
            or ran before. False computes faster, and reuses an answer as the beginning of the next
            prompt. On GPUs the bytes are the same only with ``batch_width``.
        batch_width: compute answers in batches of at least this many sequences, padded where fewer
            run. A multiple of 4, up to 16. On a CPU, it makes many answers at once faster if the
            model's weights give other bytes in batches (K-quants, F16), and a single answer slower.
            On a GPU, 16 keeps the bytes, as ``reproducible`` does on a CPU, and answers are
            computed more slowly than without it; CUDA needs GGML_CUDA_DISABLE_GRAPHS=1 in the
            environment. See docs/scheduling.md. Memory is reserved for that many requests of the
            full length. None pads nothing. It has no effect if ``reproducible`` is False, and for
            recurrent models on a CPU.
        prefix_folder: a folder that keeps the beginnings of prompts for the next process, up to 1
            GiB for each model. It is created if it is missing. None keeps them in memory only. The
            files are states of llama.cpp: use a folder that nobody else can write.
        chat_template: a template in Jinja that replaces the models' own: its text, or the path of a
            file. Give one for all models, or a mapping from their names. The pool finds out by
            trial what the template can do. The lm's name covers the template.
        progress: True draws a bar on standard error while a model loads, if that is a terminal;
            False draws nothing. Or a function, called in a thread of the pool with a model's name
            and the fraction loaded, 0.0 to 1.0. If it raises, the load stops, and the call that
            waits for the load raises the same exception. The function may unload models and close
            the pool. If it asks for a model that is not in memory, it gets a ModelInUseError.

    Raises:
        NotADirectoryError: ``model_dir`` or ``prefix_folder`` is not a folder.
        OSError: ``prefix_folder`` cannot be written, or others can write it (PermissionError).
        InvalidParameterError: a number out of range, an ``rpc`` that is no ``"host:port"``, a
            ``progress`` that is neither a function nor a bool, or a ``context`` that sets what the
            pool decides.
        InvalidModelNameError: an alias is no plain name, or leads out of the folder.
        ConfigurationError: both ``hardware`` and ``rpc`` were given, or a ``chat_template`` cannot
            be read or does not parse.
        ModelNotFoundError: ``chat_template`` names a model that the folder does not have.
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
        batch_width: int | None = None,
        prefix_folder: str | os.PathLike[str] | None = None,
        chat_template: Template | Mapping[str, Template] | None = None,
        progress: Progress = True,
    ) -> None:
        require_integer("context_length", context_length, least=1, most=MAX_CONTEXT_LENGTH)
        require_integer("max_contexts", max_contexts, least=1)
        require_integer("n_gpu_layers", n_gpu_layers, least=-MAX_LAYERS, most=MAX_LAYERS)
        if batch_width not in BATCH_WIDTHS:
            raise InvalidParameterError("batch_width", batch_width, "4, 8, 12, 16 or None")
        #: The folder of the models.
        self.model_dir = local_path(model_dir)
        self._folder = ModelFolder(self.model_dir, aliases or {})
        if rpc and hardware is not None:
            raise ConfigurationError(
                "give rpc or hardware, not both: HardwareManager(rpc=…) takes rpc as well"
            )
        plan = partial(
            (hardware or HardwareManager(rpc=rpc)).plan,
            context_length=context_length,
            n_gpu_layers=n_gpu_layers,
            n_contexts=max_contexts,
            context=checked(context),
            batch_width=batch_width if reproducible else None,
        )
        #: What load_model() returned: each alias has a handle of its own.
        self._handles: dict[tuple[ModelSlot, str], LoadedModel] = {}
        self._watch = watch(progress)
        self._loader = ModelLoader(
            LoadSettings(
                plan,
                MemoryBudget(memory_budget, max_models),
                reproducible=reproducible,
                prefix_folder=_made(prefix_folder),
                templates=ChatTemplates(chat_template, self._folder.find),
                watch=weakly(self._watch),
            )
        )

    # Loading

    def load_model(self, name: str) -> LoadedModel:
        """The model with this name, loaded from its file unless it is in memory.

        Threads that ask for the same model at once wait for one load. If there is no room, the
        pool evicts models that nobody uses, the least recently used ones first.

        Args:
            name: a file name without ``.gguf``, an alias, or one of these.
                ``"hf:owner/repo:Q4_K_M"`` is a model of a hub. It is downloaded unless the cache of
                huggingface_hub has it; HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE apply.
                ``"lmstudio:owner/repo/file"`` and ``"ollama:model:tag"`` are models of those
                programs.

        Raises:
            InvalidModelNameError: the name is no plain file name.
            ModelNotFoundError: the folder has no such file.
            ModelDownloadError: the model could not be downloaded.
            ModelFileError: the file is not a model that llama.cpp can load.
            PoolFullError: no room can be made.
            TransientError: the process lacks descriptors or threads at the moment, or the
                template's process was ended by others.
            ResourceError: memory or a device failed.
            ModelNotLoadedError: the pool is closed.
        """
        path = self._folder.fetch(name)
        with Lease(self._loader, name, path, None, whole) as resident:
            return self._handle(name, path, resident)

    async def aload_model(self, name: str) -> LoadedModel:
        """The same as ``load_model``, without blocking the event loop.

        If the call is cancelled the load goes on, and the next caller finds the model loaded.
        """
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[LoadedModel] = loop.create_future()

        def load() -> None:
            try:
                settle = partial(_settle, loaded, self.load_model(name), None)
            except BaseException as error:
                settle = partial(_settle, loaded, None, error)
            with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                insist(partial(loop.call_soon_threadsafe, settle))

        # Not on the loop's own executor: DSPy uses that one, and long loads would starve it.
        thread = threading.Thread(target=load, name="model-pool-load", daemon=True)
        try:
            start_thread(thread)
        except (RuntimeError, MemoryError) as error:  # the process has as many threads as it may
            raise not_started(error, f"to load model {name!r} on") from error

        def look(lived: bool) -> None:
            if loaded.done():
                return
            if lived:
                loop.call_later(_LOOK, look, thread.is_alive())
            else:
                message = f"no memory for a thread to load model {name!r} on"
                loaded.set_exception(TransientError(message))

        try:
            look(True)
            return await loaded
        finally:
            loaded.cancel()  # if nobody waits any more

    def get_loaded_model(self, name: str | None = None) -> LoadedModel:
        """A model that was loaded and not unloaded since: the one with this name, or the only one.

        Raises:
            ModelNotLoadedError: it was not loaded; or no name was given and there is no model, or
                more than one.
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

        A damaged file is listed with its problem. A header is read again when its file changes.
        """
        found = []
        for info in self._folder.models():
            slot = self._loader.slot(info.paths[0])
            loaded = slot is not None and slot.residency is not None
            pinned = slot is not None and slot.pinned
            found.append(replace(info, loaded=loaded, pinned=pinned))
        return found

    # Keeping and unloading

    def metrics(self) -> dict[str, MetricsSnapshot]:
        """Counts and times of each model's scheduler since the model was first loaded, by name.

        Raises:
            ModelNotLoadedError: in a child of ``fork()``.
        """
        self._loader.refuse_in_child("")
        slots = dict.fromkeys(slot for slot, _ in self._live_handles())
        return {slot.name: slot.metrics.snapshot() for slot in slots}

    def pin_model(self, name: str) -> LoadedModel:
        """Load a model, and never evict it. Raises what ``load_model`` raises."""
        loaded = self.load_model(name)
        with loaded.lease():
            self._loaded_slot(name).pinned = True
        return loaded

    def unpin_model(self, name: str) -> None:
        """Allow a model to be evicted again.

        Raises:
            ModelNotLoadedError: it was not loaded.
        """
        self._loaded_slot(name).pinned = False

    def unload_model(self, name: str) -> None:
        """Free a model once the requests that use it are done. New requests are refused meanwhile.

        Its handles cannot be used any more; ``load_model`` gives a new one. A load in progress is
        stopped. If Ctrl-C ends the wait for the requests, the model stays loaded. In a progress
        callback the method returns at once.

        Raises:
            ModelNotLoadedError: it was not loaded.
            ModelInUseError: this thread holds a lease on it.
            ResourceError: it is still not freed two minutes after its last request, because a GPU
                or another machine hangs. It is freed when that is possible.
        """
        slot = self._loaded_slot(name)
        self._loader.unload(slot)

    def close(self) -> None:
        """Free every model once the requests that use it are done. Closing again does nothing.

        A pool that is not closed is closed when nothing refers to it or to a handle of it any more.
        In a progress callback the method returns at once.

        Raises:
            ModelInUseError: this thread holds a lease on a model.
            ResourceError: a model cannot be freed; see ``unload_model``.
        """
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if "_loader" not in vars(self):
            return "<ModelPool, which could not be made>"
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
        """The one handle of a name on a model that this thread holds a lease on.

        There is a new handle if the model now computes differently, for example after the loss of a
        server.
        """
        slot = self._loader.slot(path)
        assert slot is not None
        assert slot.placement is not None
        for key in self._handles.keys() - self._live_handles().keys():
            self._handles.pop(key, None)
        borrow = partial(Lease, self._loader, name, path, slot)
        with translated_load(name, path):
            made = LoadedModel(name, path, resident, slot.placed, borrow)
        known = self._handles.setdefault((slot, name), made)
        if known.computation == made.computation:
            return known
        self._handles[slot, name] = made
        return made


def _made(prefix_folder: str | os.PathLike[str] | None) -> Path | None:
    if prefix_folder is None:
        return None
    path = local_path(prefix_folder)
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
