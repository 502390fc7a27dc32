"""Decides what a model runs on: the devices, the layers on them, the context and the threads.

Every decision has a reason, which is logged and printed by ``pyllama devices``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pyllama
from adapter.errors import ConfigurationError, InvalidParameterError, ResourceError
from adapter.generation.contexts import padded, with_flash_attention
from adapter.generation.memory.anchors import LEAST
from adapter.generation.memory.blocks import CHUNK, longest_call
from adapter.models.context_settings import MAX_ANSWERS, checked
from adapter.models.cpu_memory import MAX_KEPT_BYTES, MAX_SEQUENCES, CpuMemory, longest_within
from adapter.models.device_choice import DeviceChoice, choose_devices
from adapter.models.integers import MAX_CONTEXT_LENGTH, MAX_LAYERS, require_integer
from adapter.wording import counted, file_size

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 4096
"""Tokens of context unless the user sets a length; less if the model was trained with less."""

DEFAULT_GPU_CONTEXTS, MAX_GPU_CONTEXTS = 4, 32
"""How many requests of that length a GPU has memory for, unless the user sets a number. The second
number applies if the memory allows it, since a GPU gains much from computing many requests at once.
"""

N_OTHERS = 2
"""Contexts of the full length besides those of requests: for scores and for isolated requests."""

HOST = "host"
"""The name of the host's memory among those of devices."""

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Placement:
    """Where a model runs."""

    #: The devices that keep layers, in this order; none for the CPU alone.
    devices: tuple[pyllama.Device, ...]
    #: Layers on the devices, negative for all.
    n_gpu_layers: int
    #: Tokens of context for each request.
    context_length: int
    #: Requests of the full length for which there is memory at once.
    n_contexts: int
    #: Tokens that the sequences of all requests may hold together.
    n_cells: int
    #: The most requests that run at once.
    n_sequences: int
    #: RAM for beginnings of prompts that have left the context.
    kept_bytes: int
    #: Threads of the CPU to compute with.
    n_threads: int
    #: Bytes that model and contexts take at their peak, by device name or ``"host"``.
    memory: Mapping[str, int]
    #: Bytes that were free there.
    free: Mapping[str, int]
    #: Whether enough remains free, and nothing had to be made smaller for it.
    fits: bool
    #: Why the model runs there.
    reasons: tuple[str, ...]
    #: The share of each device, if there are several.
    tensor_split: tuple[float, ...] | None = None
    #: Parts of layers that another device keeps.
    tensor_buft_overrides: Mapping[str, pyllama.Device] = field(default_factory=dict)
    #: How its contexts are made, as far as the user says it.
    context: pyllama.ContextParams = field(default_factory=pyllama.ContextParams)
    #: How many sequences are decoded in each batch at the least.
    batch_width: int = 1

    def load(
        self, path: Path, progress: Callable[[float], bool | None] | None = None
    ) -> pyllama.Model:
        """Load the model of a file at this placement. Raises what ``pyllama.Model`` raises."""
        return pyllama.Model(
            path,
            devices=self.devices,
            n_gpu_layers=self.n_gpu_layers,
            tensor_split=self.tensor_split,
            tensor_buft_overrides=self.tensor_buft_overrides or None,
            progress=progress,
        )


def margin(free: int) -> int:
    """Bytes to leave to other programs if this many are free: 1 GiB, at most an eighth."""
    return min(2**30, free // 8)


def cpu_threads() -> int:
    """Threads to compute with: the cores that are worth using, within a container's limit."""
    cores, limit = pyllama.cpu_math_cores(), _container_limit()
    return cores if limit is None else min(cores, limit)


class HardwareManager:
    """Decides which devices a model runs on, how much of it, and with how many threads.

    Thread-safe.

    Args:
        devices: run models on these and on the CPU; None for the devices that are worth using.
        backend: run models on the GPUs of this backend, as ``pyllama.backend_devices`` takes it.
            None for what the environment variable ``PYLLAMA_BACKEND`` says, or else all of them.
        rpc: ``"host:port"`` of RPC servers whose devices are used as well.

    Raises:
        ConfigurationError: both ``devices`` and ``backend`` were given.
        InvalidParameterError: there is no backend of that name, or an ``rpc`` is no
            ``"host:port"``.
    """

    def __init__(
        self,
        devices: Sequence[pyllama.Device] | None = None,
        *,
        backend: pyllama.BackendName | None = None,
        rpc: Sequence[str] = (),
    ) -> None:
        if devices is not None and backend is not None:
            raise ConfigurationError(f"give devices or backend={backend!r}, not both")
        if backend is not None and backend not in get_args(pyllama.BackendName):
            allowed = f"one of {', '.join(get_args(pyllama.BackendName))}, or None"
            raise InvalidParameterError("backend", backend, allowed)
        self._devices = None if devices is None else tuple(devices)
        self._backend = backend
        if isinstance(rpc, str) or not all(map(_is_endpoint, rpc)):
            raise InvalidParameterError("rpc", rpc, 'a sequence of "host:port"')
        self._rpc = tuple(rpc)

    def choices(self) -> list[DeviceChoice]:
        """Every device of this machine and of the RPC servers: whether models run on it, and why.

        Raises:
            ResourceError: this machine lacks the backend that was asked for, or a server does not
                answer.
        """
        found = pyllama.devices()
        remote = [
            DeviceChoice(device, True, f"of another machine, {device.description}")
            for device in self._remote()
        ]
        if self._devices is None:
            return [*choose_devices(found, self._demanded()), *remote]
        chosen = [
            DeviceChoice(device, device.type == "cpu" or device in self._devices, "as you chose")
            for device in found
        ]
        return [*chosen, *remote]

    def _remote(self) -> list[pyllama.Device]:
        try:
            return [device for endpoint in self._rpc for device in pyllama.rpc_devices(endpoint)]
        except pyllama.BackendError as error:
            raise ResourceError(str(error)) from error

    def _demanded(self) -> list[pyllama.Device] | None:
        try:
            return pyllama.backend_devices(self._backend)
        except pyllama.BackendError as error:
            raise ResourceError(str(error)) from error
        except ValueError as error:  # of the environment
            raise ConfigurationError(str(error)) from error

    def plan(
        self,
        path: str | os.PathLike[str],
        *,
        context_length: int | None = None,
        n_gpu_layers: int | None = None,
        n_contexts: int | None = None,
        room: int | None = None,
        context: pyllama.ContextParams | None = None,
        batch_width: int | None = None,
    ) -> Placement:
        """Where the model in a file runs, with the memory that is free now. No weights are read.

        A model that fits one GPU runs on the GPU with the most free memory, of this machine if
        there is one. A larger model is spread: all GPUs together take as many layers as fit, and
        the CPU takes the rest. On the CPU alone the context becomes shorter if memory is short and
        ``context_length`` is None.

        Args:
            path: the file, or the first part of a split one.
            context_length: tokens of context; None for what the model was trained with, at most
                4096.
            n_gpu_layers: layers on the GPUs, negative for all, 0 for none; None for what fits.
            n_contexts: requests of the full length for which there is memory at once. More
                requests run if they are shorter. None for up to 32 on a GPU and 16 on a CPU, as
                long as they and the model take no more than half of what is free there. If they
                take more, None stands for 16 requests of ordinary length (1024 tokens) and one of
                the full length, or for what fits.
            room: the most bytes of the machine's memory to take where numbers are left open; None
                for what is free, less a margin.
            context: how its contexts are made, as for ``ModelPool``.
            batch_width: the fewest sequences of each batch, as for ``ModelPool``.

        Raises:
            InvalidParameterError: a number out of range.
            FileNotFoundError: there is no such file.
            pyllama.ModelLoadError: the file is not a loadable model.
            pyllama.MemoryFitError: a context cannot be made.
            ResourceError: this machine lacks the backend that was asked for.
        """
        require_integer("context_length", context_length, least=1, most=MAX_CONTEXT_LENGTH)
        require_integer("n_contexts", n_contexts, least=1)
        require_integer("n_gpu_layers", n_gpu_layers, least=-MAX_LAYERS, most=MAX_LAYERS)
        require_integer("room", room)
        require_integer("batch_width", batch_width, least=1)
        choices = self.choices()
        for choice in choices:
            used = "used" if choice.used else "not used"
            logger.debug("%s is %s: %s", choice.device.name, used, choice.reason)
        gpus = [
            choice.device
            for choice in choices
            if choice.used and choice.device.type != "cpu" and n_gpu_layers != 0
        ]
        planner = _Planner(
            path, context_length, n_contexts, room, checked(context), batch_width or 1
        )
        if not gpus:
            why = "there is no GPU to use" if n_gpu_layers != 0 else "no layer is wanted on a GPU"
            placement = planner.on_cpu(f"it runs on the CPU: {why}")
        elif n_gpu_layers is not None:
            layers = "all layers" if n_gpu_layers < 0 else counted(n_gpu_layers, "layer")
            why = f"wanted on {_names(gpus)}: {layers}"
            placement = planner.on(gpus, n_gpu_layers, why)
        else:
            placement = planner.spread_over(gpus)
        for reason in placement.reasons:
            logger.info("%s: %s", os.path.basename(path), reason)
        return placement


def _computing(n_threads: int) -> str:
    return f"the CPU computes with {counted(n_threads, 'thread')}"


class _Planner:
    """Places one model."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        context_length: int | None,
        n_contexts: int | None,
        room: int | None,
        context: pyllama.ContextParams,
        batch_width: int,
    ) -> None:
        self._context = context
        self._width = batch_width
        self._n_threads = context.n_threads or cpu_threads()
        self._path = path
        self._wanted = context_length
        self._given = n_contexts
        self._room = room
        self._n_contexts = n_contexts or DEFAULT_GPU_CONTEXTS

    def on(self, devices: Sequence[pyllama.Device], n_gpu_layers: int, why: str) -> Placement:
        """Place this many layers on the devices, whether or not they fit."""
        use = self._use(devices, n_gpu_layers)
        return self._placement(devices, n_gpu_layers, use, (why,))

    def on_cpu(self, why: str) -> Placement:
        """Place everything in the host's memory, with fewer and shorter sequences if that is left
        open.
        """
        use = self._use((), 0)
        placement = self._cpu_placement(use, (why,))
        if placement.fits or self._wanted is not None:
            return placement
        room = placement.free[HOST] - margin(placement.free[HOST])
        if self._room is not None:
            room = min(room, self._room)
        length = longest_within(use, room, n_contexts=self._given or 1, width=self._width)
        if not length:
            return placement  # the weights alone are too large
        reasons = (why, f"the free memory allows a context of {counted(length, 'token')}")
        return self._cpu_placement(self._measure((), 0, length), reasons, whole=False)

    def _cpu_placement(
        self, use: pyllama.MemoryUse, reasons: tuple[str, ...], *, whole: bool = True
    ) -> Placement:
        memory, free = CpuMemory(use, width=self._width), use.host.free
        if self._given is not None:
            n_contexts, n_cells = self._given, memory.cells_of(self._given)
        else:
            room = free if self._room is None else min(free, self._room)
            n_cells = memory.cells(room, margin(free))
            n_contexts = min(MAX_SEQUENCES, n_cells // padded(use.n_ctx))
        n_sequences = max(MAX_SEQUENCES, n_contexts)
        taken = memory.bytes_for(n_cells)
        counts = (
            f"up to {counted(n_sequences, 'request')} at once, {n_contexts} of them if each takes "
            f"the full {use.n_ctx} tokens; with all that may be needed for them the model takes "
            f"{file_size(taken)} of {HOST} memory ({file_size(free)} free)"
        )
        fits = taken + margin(free) <= free
        return Placement(
            devices=(),
            n_gpu_layers=0,
            context_length=use.n_ctx,
            n_contexts=n_contexts,
            n_cells=n_cells,
            n_sequences=n_sequences,
            kept_bytes=memory.kept_bytes(n_cells),
            n_threads=self._n_threads,
            memory={HOST: taken},
            free={HOST: free},
            fits=whole and fits and (self._room is None or taken <= self._room),
            reasons=(*reasons, counts, _computing(self._n_threads)),
            context=self._context,
            batch_width=self._width,
        )

    def spread_over(self, gpus: Sequence[pyllama.Device]) -> Placement:
        """Place it on the emptiest GPU if it fits there, else over all GPUs and the CPU."""
        here = [device for device in gpus if device.backend != "RPC"] or gpus
        emptiest = max(here, key=lambda device: device.memory[0])
        use = self._use([emptiest], -1)
        placement = self._placement([emptiest], -1, use, (f"all of it fits {emptiest.name}",))
        if placement.fits:
            return placement if self._given else self._with_more_contexts(placement, use)
        length = placement.context_length
        try:
            fit = pyllama.memory_fit(
                self._path,
                n_ctx=length * (self._n_contexts + N_OTHERS),
                margin=min(margin(device.memory[0]) for device in gpus),
                devices=gpus,
                n_seq_max=self._n_contexts,
                n_batch=self._n_batch(length, 512),
                context=self._context,
            )
        except pyllama.MemoryFitError as error:
            return self.on_cpu(f"it runs on the CPU: nothing of it fits a GPU ({error})")
        whole = fit.n_gpu_layers < 0 and not fit.tensor_buft_overrides
        layers = "all layers" if whole else counted(fit.n_gpu_layers, "layer")
        use = self._measure(
            gpus, fit.n_gpu_layers, length, fit.tensor_split, fit.tensor_buft_overrides
        )
        return self._placement(
            gpus,
            fit.n_gpu_layers,
            use,
            (f"{layers} of it fit {_names(gpus)}",),
            whole=whole,
            tensor_split=fit.tensor_split,
            tensor_buft_overrides=fit.tensor_buft_overrides,
        )

    def _with_more_contexts(self, placement: Placement, use: pyllama.MemoryUse) -> Placement:
        """The same placement, with as many contexts as leave half of the free memory to other
        models.
        """
        devices, n_gpu_layers = placement.devices, placement.n_gpu_layers
        while self._n_contexts < MAX_GPU_CONTEXTS:
            self._n_contexts *= 2
            larger = self._placement(devices, n_gpu_layers, use, placement.reasons[:1])
            if any(2 * taken > larger.free[name] for name, taken in larger.memory.items()):
                break
            placement = larger
        return placement

    def _use(self, devices: Sequence[pyllama.Device], n_gpu_layers: int) -> pyllama.MemoryUse:
        """What the model and one context of the wanted length take."""
        length = self._wanted or DEFAULT_CONTEXT_LENGTH
        use = self._measure(devices, n_gpu_layers, length)
        if use.n_ctx_train >= length:
            return use
        if self._wanted is None:
            return self._measure(devices, n_gpu_layers, use.n_ctx_train)
        logger.warning(
            "a context of %d tokens is more than the %d that %s was trained with: answers may get "
            "worse beyond those",
            *(length, use.n_ctx_train, os.path.basename(self._path)),
        )
        return use

    def _measure(
        self,
        devices: Sequence[pyllama.Device],
        n_gpu_layers: int,
        length: int,
        tensor_split: tuple[float, ...] | None = None,
        tensor_buft_overrides: Mapping[str, pyllama.Device] | None = None,
    ) -> pyllama.MemoryUse:
        exact = not devices or self._width > 1
        return pyllama.memory_use(
            self._path,
            n_ctx=length,
            n_gpu_layers=n_gpu_layers,
            tensor_split=tensor_split,
            tensor_buft_overrides=tensor_buft_overrides,
            devices=devices,
            n_batch=self._n_batch(length, longest_call(CHUNK) if exact else 512),
            # On a CPU it does not take less if bytes are kept.
            context=with_flash_attention(self._context, reproducible=exact),
        )

    def _n_batch(self, length: int, default: int) -> int:
        """Tokens that are computed at once."""
        return min(self._context.n_batch or default, length)

    def _placement(
        self,
        devices: Sequence[pyllama.Device],
        n_gpu_layers: int,
        use: pyllama.MemoryUse,
        reasons: tuple[str, ...],
        *,
        whole: bool = True,
        tensor_split: tuple[float, ...] | None = None,
        tensor_buft_overrides: Mapping[str, pyllama.Device] | None = None,
    ) -> Placement:
        memories = {HOST: use.host}
        memories |= {memory.device.name: memory for memory in use.devices if memory.device}
        n_contexts, n_others = max(self._n_contexts, self._width), N_OTHERS
        n_computing = min(n_contexts, DEFAULT_GPU_CONTEXTS) + N_OTHERS  # others share theirs
        if self._width > 1:  # isolated requests are padded too, and batches are tried
            n_others += self._width - 1 + -(-MAX_ANSWERS * LEAST // use.n_ctx)
        taken = {
            name: memory.model
            + (n_contexts + n_others) * memory.context
            + n_computing * memory.compute
            for name, memory in memories.items()
        }
        taken[HOST] += MAX_KEPT_BYTES
        free = {name: memory.free for name, memory in memories.items()}
        needs = ", ".join(
            f"{file_size(taken[name])} of {name} memory ({file_size(free[name])} free)"
            for name in memories
        )
        contexts = counted(n_contexts, "context")
        counts = f"with {contexts} of {use.n_ctx} tokens it takes {needs}"
        return Placement(
            devices=tuple(devices),
            n_gpu_layers=n_gpu_layers,
            context_length=use.n_ctx,
            n_contexts=n_contexts,
            n_cells=n_contexts * use.n_ctx,
            n_sequences=MAX_ANSWERS,
            kept_bytes=MAX_KEPT_BYTES,
            n_threads=self._n_threads,
            memory=taken,
            free=free,
            fits=whole and all(taken[name] + margin(free[name]) <= free[name] for name in taken),
            reasons=(*reasons, counts, _computing(self._n_threads)),
            tensor_split=tensor_split,
            tensor_buft_overrides=tensor_buft_overrides or {},
            context=self._context,
            batch_width=self._width,
        )


def _is_endpoint(value: object) -> bool:
    """Whether it has the form that pyllama.rpc_devices() accepts."""
    found = re.fullmatch("[ -9;-~]+:([0-9]{1,5})", value) if isinstance(value, str) else None
    return found is not None and 0 < int(found[1]) < 65536


def _names(devices: Sequence[pyllama.Device]) -> str:
    return ", ".join(device.name for device in devices)


def _container_limit() -> int | None:
    """CPUs that Linux's control group allows; None if it sets no limit."""
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
