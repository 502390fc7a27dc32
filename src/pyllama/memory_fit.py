"""How much memory a model and its context would take, and which layout fits.

llama.cpp simulates the load: it reads no weights, and allocates no memory for them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict

from pyllama import _model_file
from pyllama._arguments import integer
from pyllama._guard import check, last_errors, to_str
from pyllama._native._binding import ffi, lib
from pyllama._rpc_servers import require_answers
from pyllama._system_memory import available_memory
from pyllama.context_params import (
    CacheType,
    ContextOptions,
    ContextParams,
    FlashAttention,
    with_options,
)
from pyllama.device import Device
from pyllama.device import devices as all_devices
from pyllama.errors import MemoryFitError, NativeError
from pyllama.model import Model
from pyllama.model_params import ModelParams, SplitMode, buffer_type

if TYPE_CHECKING:
    from typing_extensions import Unpack

# A simulated context has real lists of its cells: about 60 bytes for each token.
_MAX_N_CTX = 2**24

# libllama-common redirects llama.cpp's log while it simulates.
_simulating = threading.Lock()


class LayoutOptions(TypedDict, total=False):
    """Further arguments of ``memory_use`` and ``memory_fit``.

    They have the meaning and the defaults that they have for ``Model`` and ``Context``. ``context``
    has the other parameters of the context. Arguments given besides it take precedence.
    """

    context: ContextParams | None
    devices: Sequence[Device] | None
    split_mode: SplitMode
    main_gpu: int
    kv_overrides: Mapping[str, bool | int | float | str] | None
    use_extra_bufts: bool
    no_host: bool
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    flash_attn: FlashAttention
    type_k: CacheType
    type_v: CacheType
    offload_kqv: bool
    kv_unified: bool


_OF_CONTEXT = LayoutOptions.__annotations__.keys() & ContextOptions.__annotations__.keys()


@dataclass(frozen=True)
class DeviceMemory:
    """What would be taken of one memory, and how much of it there is, in bytes."""

    #: None for the host's memory.
    device: Device | None
    #: Weights.
    model: int
    #: Keys and values, or recurrent states.
    context: int
    #: Buffers for computing.
    compute: int
    #: Not in use now. For the host, on Linux: what the system says is available, within the
    #: limits of control groups; elsewhere all of it.
    free: int
    #: Bytes that it has.
    total: int

    @property
    def used(self) -> int:
        """What the model and its context would take together."""
        return self.model + self.context + self.compute


@dataclass(frozen=True)
class MemoryUse:
    """What a model and a context would take of each memory."""

    #: The devices that the model would run on; none for the CPU alone.
    devices: tuple[DeviceMemory, ...]
    #: The memory of the machine itself.
    host: DeviceMemory
    #: Tokens that the context would hold.
    n_ctx: int
    #: Context length the model was trained with, in tokens.
    n_ctx_train: int
    #: Number of layers.
    n_layer: int
    #: Tokens of the vocabulary: each output takes four bytes for each of them.
    n_vocab: int = 0
    #: Whether a sequence has a state whose size does not depend on its length.
    recurrent: bool = False


@dataclass(frozen=True)
class MemoryFit:
    """Arguments for ``Model``, and n_ctx for ``Context``, that fit the memory."""

    #: Layers kept in the devices' memory.
    n_gpu_layers: int
    #: None on fewer than two devices, or where nothing had to change.
    tensor_split: tuple[float, ...] | None
    #: Parts of layers that stay in another memory; empty where nothing had to change.
    tensor_buft_overrides: Mapping[str, Device]
    #: Tokens that the context can hold.
    n_ctx: int
    #: What they would take.
    use: MemoryUse


def memory_use(
    path: str | os.PathLike[str],
    *,
    n_ctx: int = 0,
    n_gpu_layers: int = -1,
    tensor_split: Sequence[float] | None = None,
    tensor_buft_overrides: Mapping[str, Device] | None = None,
    **options: Unpack[LayoutOptions],
) -> MemoryUse:
    """How much memory a model and a context would take (``common_get_device_memory_data``).

    No weights are read. Calls wait for each other; a log line that another thread writes at the
    moment one begins or ends can be lost.

    Args:
        n_ctx: tokens in the context, at most 2**24; 0 for those of ``context``, or what the model
            was trained with.

    Raises:
        ModelLoadError: the file is not a model that llama.cpp can load.
        MemoryFitError: no such context can be made, for example because n_ctx is too large.
        ServerLostError: an RPC server of the devices does not answer.
    """
    layout = _Layout(
        path,
        n_ctx,
        n_gpu_layers=n_gpu_layers,
        tensor_split=tensor_split,
        tensor_buft_overrides=tensor_buft_overrides,
        **options,
    )
    with _simulating, require_answers(options.get("devices") or ()):
        return layout.measure()


def memory_fit(
    path: str | os.PathLike[str],
    *,
    n_ctx: int = 0,
    n_ctx_min: int = 4096,
    margin: int = 2**30,
    **options: Unpack[LayoutOptions],
) -> MemoryFit:
    """Find a layout that fits the free memory (``common_fit_params``).

    Without GPUs the host's memory decides, and n_ctx is all that can be made smaller. With GPUs,
    first the context becomes smaller, then fewer layers go to the GPUs. The host's memory is
    assumed to be large enough; check ``use.host``. No weights are read. Calls wait for each other;
    see ``memory_use``.

    Args:
        n_ctx: tokens in the context; 0 for what the model was trained with, or as many as fit.
        n_ctx_min: with n_ctx=0, the fewest tokens to go down to.
        margin: bytes to leave free on each device, or of the host's memory.

    Raises:
        ModelLoadError: the file is not a model that llama.cpp can load.
        MemoryFitError: nothing fits; the message says what it would take.
        ServerLostError: an RPC server of the devices does not answer.
    """
    own = {"n_gpu_layers", "tensor_split", "tensor_buft_overrides"} & options.keys()
    if own:
        raise TypeError(f"memory_fit() finds {', '.join(sorted(own))} itself; leave it out")
    margin = integer("margin", margin, 0, 2**62)
    n_ctx_min = integer("n_ctx_min", n_ctx_min, 1, _MAX_N_CTX)
    layout = _Layout(
        path, n_ctx, n_gpu_layers=-1, tensor_split=None, tensor_buft_overrides=None, **options
    )
    with _simulating, require_answers(options.get("devices") or ()):
        use = layout.measure()
        if not use.devices:
            # llama.cpp compares with the host's total memory, so memory in use must be subtracted.
            margins = [margin + use.host.total - use.host.free]
        else:
            margins = [margin] * len(use.devices)
        return layout.fit(margins, n_ctx_min, use)


class _Layout:
    """The parameters of a model and its context, to be measured and made to fit."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        n_ctx: int,
        *,
        n_gpu_layers: int,
        tensor_split: Sequence[float] | None,
        tensor_buft_overrides: Mapping[str, Device] | None,
        context: ContextParams | None = None,
        devices: Sequence[Device] | None = None,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        **options: Any,
    ) -> None:
        self.path = _model_file.readable_gguf(path)
        unknown = options.keys() - LayoutOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
        of_context = {key: options.pop(key) for key in _OF_CONTEXT if key in options}
        integer("n_ctx", n_ctx, 0, _MAX_N_CTX)
        if n_ctx or context is None:
            of_context["n_ctx"] = n_ctx
        params = with_options("context", context, of_context)
        self._context = params._struct()
        for name in ("n_ctx", "n_batch", "n_ubatch"):
            integer(name, getattr(self._context, name), 0, _MAX_N_CTX)
        self._params = ModelParams(
            devices=devices,
            n_gpu_layers=n_gpu_layers,
            tensor_split=tensor_split,
            tensor_buft_overrides=tensor_buft_overrides,
            kv_overrides=kv_overrides,
            **options,
        )
        # The devices of RPC servers are in no list.
        self._known = [*all_devices(), *(devices or ())]
        # Reports why a file cannot be loaded, and how long a context it would simulate.
        with Model(path, vocab_only=True, kv_overrides=kv_overrides) as model:
            key = f"{model.metadata.get('general.architecture')}.context_length"
            n_ctx_train = int((kv_overrides or {}).get(key, model.metadata.get(key, 0)))
            self._n_vocab = model.vocab.n_tokens
            self._recurrent = model.is_recurrent or model.is_hybrid
        n_streams = 1 if params.kv_unified else params.n_seq_max
        if not n_ctx and n_ctx_train * n_streams > _MAX_N_CTX:
            raise MemoryFitError(
                f"{self.path}: n_ctx=0 asks for {n_streams} sequences of {n_ctx_train} tokens, "
                f"but no more than {_MAX_N_CTX} can be simulated; give n_ctx"
            )

    def measure(self) -> MemoryUse:
        what = f"measuring {self.path}"
        room = lib.llama_max_devices() + 1
        memory = ffi.new("pyllama_device_memory[]", room)
        n_layer, n_ctx_train = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        try:
            count = check(
                lib.guarded_device_memory(
                    os.fsencode(self.path),
                    ffi.addressof(self._params.struct),
                    ffi.addressof(self._context),
                    memory,
                    room,
                    n_layer,
                    n_ctx_train,
                ),
                what,
            )
        except NativeError as error:
            reasons = last_errors()
            raise MemoryFitError(f"{what}: {reasons}" if reasons else str(error)) from None
        by_pointer = {device._pointer: device for device in self._known}
        *found, host = (
            DeviceMemory(
                device=by_pointer.get(entry.device),
                model=entry.model,
                context=entry.context,
                compute=entry.compute,
                free=entry.free,
                total=entry.total,
            )
            for entry in memory[0:count]
        )
        return MemoryUse(
            devices=tuple(found),
            host=_with_available(host),
            n_ctx=self._context.n_ctx or n_ctx_train[0],
            n_ctx_train=n_ctx_train[0],
            n_layer=n_layer[0],
            n_vocab=self._n_vocab,
            recurrent=self._recurrent,
        )

    def fit(self, margins: list[int], n_ctx_min: int, use: MemoryUse) -> MemoryFit:
        params = self._params.struct
        split = ffi.new("float[]", lib.llama_max_devices())
        overrides = ffi.new(
            "struct llama_model_tensor_buft_override[]", lib.llama_max_tensor_buft_overrides()
        )
        room = max(len(margins), lib.llama_max_devices())
        status = lib.guarded_fit_params(
            os.fsencode(self.path),
            ffi.addressof(params),
            ffi.addressof(self._context),
            split,
            overrides,
            ffi.new("size_t[]", margins + [0] * (room - len(margins))),
            n_ctx_min,
        )
        check(status, f"fitting {self.path}")
        if status:
            raise MemoryFitError(_what_is_missing(self.path, use))
        shares = tuple(split) if any(split) else None
        return MemoryFit(
            n_gpu_layers=params.n_gpu_layers,
            tensor_split=shares,
            tensor_buft_overrides=MappingProxyType(_override_mapping(overrides, self._known)),
            n_ctx=self._context.n_ctx,
            use=self.measure(),
        )


def _with_available(host: DeviceMemory) -> DeviceMemory:
    """ggml reports all of the host's memory as free."""
    available = available_memory()
    return host if available is None else replace(host, free=min(available, host.total))


def _override_mapping(overrides: Any, known: Sequence[Device]) -> dict[str, Device]:
    """What llama.cpp wrote, up to the entry without a pattern."""
    # Several devices may keep their tensors in the host's buffers. The CPU represents them.
    by_type = {buffer_type(device): device for device in known if device.type != "cpu"}
    by_type.update((buffer_type(d), d) for d in known if d.type == "cpu")
    found = {}
    for entry in overrides:
        if entry.pattern == ffi.NULL:
            break
        found[to_str(entry.pattern)] = by_type[entry.buft]
    return found


def _what_is_missing(path: str, use: MemoryUse) -> str:
    needs = ", ".join(
        f"{memory.used:,} bytes of {memory.device.name if memory.device else 'the host'}, where "
        f"{memory.free:,} are free"
        for memory in use.devices or (use.host,)
    )
    return f"{path} does not fit with n_ctx={use.n_ctx}: it takes {needs}"
