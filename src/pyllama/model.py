"""Models: a GGUF file loaded by llama.cpp."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from pyllama import _model_file, _process
from pyllama._gguf_file import DamagedFile
from pyllama._guard import check, raise_if_caught, to_str
from pyllama._half_made import or_half_made
from pyllama._model_check import check_files
from pyllama._model_metadata import MetadataInUse, classifier_labels, metadata_of, read_string
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject, holding_all
from pyllama._rpc_servers import require_answers, watch
from pyllama.errors import (
    ClosedError,
    ModelLoadError,
    ModelSaveError,
    NativeError,
    ServerLostError,
)
from pyllama.file_type import FileType, file_type
from pyllama.model_params import ModelOptions, ModelParams, utf8
from pyllama.vocab import Vocab

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from pyllama._native._binding import (
        Pointer,
        llama_adapter_lora,
        llama_model,
        llama_model_params_p,
    )

D = TypeVar("D")

RopeType = Literal["none", "norm", "neox", "mrope", "imrope", "vision"]

_ROPE_TYPES: dict[int, RopeType] = {
    lib.LLAMA_ROPE_TYPE_NONE: "none",
    lib.LLAMA_ROPE_TYPE_NORM: "norm",
    lib.LLAMA_ROPE_TYPE_NEOX: "neox",
    lib.LLAMA_ROPE_TYPE_MROPE: "mrope",
    lib.LLAMA_ROPE_TYPE_IMROPE: "imrope",
    lib.LLAMA_ROPE_TYPE_VISION: "vision",
}

# Where a file may say how its author samples from it (enum llama_model_meta_key).
_SAMPLING_KEYS: dict[str, str] = {
    name: to_str(lib.llama_model_meta_key_str(number))
    for name, number in {
        "sequence": lib.LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE,
        "top_k": lib.LLAMA_MODEL_META_KEY_SAMPLING_TOP_K,
        "top_p": lib.LLAMA_MODEL_META_KEY_SAMPLING_TOP_P,
        "min_p": lib.LLAMA_MODEL_META_KEY_SAMPLING_MIN_P,
        "xtc_probability": lib.LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY,
        "xtc_threshold": lib.LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD,
        "temp": lib.LLAMA_MODEL_META_KEY_SAMPLING_TEMP,
        "penalty_last_n": lib.LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N,
        "penalty_repeat": lib.LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT,
        "mirostat": lib.LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT,
        "mirostat_tau": lib.LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU,
        "mirostat_eta": lib.LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA,
    }.items()
}

_TEMPLATE_KEY = "tokenizer.chat_template"


class Model(NativeObject["Pointer[llama_model]"]):
    """A model loaded from a GGUF file (``llama_model_load_from_file``).

    Any number of threads may use one at once. Its contexts and LoRA adapters depend on it:
    ``close`` closes them first, and waits for a decode in another thread. Ctrl-C stops a load in
    the main thread.

    Args:
        path: the file; for a split model its first part (``name-00001-of-00003.gguf``).
        devices: run on these, in this order; None for all GPUs, or the CPU without one; an empty
            sequence for the CPU alone.
        n_gpu_layers: layers kept in the devices' memory; negative for all.
        split_mode: how layers are spread over several devices.
        main_gpu: index into the devices, for ``split_mode="none"``.
        tensor_split: share of each device, in any unit; at most ``llama_max_devices()`` values.
        tensor_buft_overrides: regular expressions (C++'s ``std::regex``, searched in tensor names),
            each with the device in whose memory the matching tensors are kept.
        load_mode: how the file is read into memory.
        lazy_mode: whether rows of large embedding tables are read when they are needed; needs a
            memory-mapped file.
        kv_overrides: values that replace metadata of the file: bool, int (-2**31 to 2**32 - 1),
            float or str (at most 127 bytes). A value whose type is not the key's is ignored, with a
            warning in the log.
        vocab_only: load the vocabulary and metadata without weights.
        load_mtp: load the layers that predict several tokens ahead, if the file has them.
        check_tensors: validate every tensor's values while loading.
        use_extra_bufts: let the CPU backend repack weights into layouts that it computes faster
            with; such a model cannot be saved again.
        no_host: keep no weights in memory that the host shares with a device.
        progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: a file cannot be read, or too many files are open.
        ModelLoadError: the file is not a model that llama.cpp can load; the message says why.
        ModelLoadCancelled: ``progress`` returned False. Its own exceptions are raised unchanged.
        ValueError: an argument out of range.
    """

    _instead_of_copying = (
        "Any number of threads may use it; another process opens its file by Model(path)"
    )

    #: The file it was loaded from, or what it was instead of a file with a name.
    path: str
    #: Whether only vocabulary and metadata were loaded.
    vocab_only: bool
    #: The vocabulary; it lives as long as the model.
    vocab: Vocab
    #: Context length the model was trained with, in tokens.
    n_ctx_train: int
    #: Whether it has a head that classifies or ranks: what ``pooling_type="rank"`` scores by.
    has_classifier: bool
    #: Size of an embedding.
    n_embd: int
    #: Size of an embedding that is given in place of a token.
    n_embd_inp: int
    #: Size of an embedding that comes out.
    n_embd_out: int
    #: Number of layers.
    n_layer: int
    #: Layers that predict several tokens ahead, beside n_layer.
    n_layer_nextn: int
    #: Heads of attention in a layer.
    n_head: int
    #: Heads that keys and values have; fewer than n_head with grouped-query attention.
    n_head_kv: int
    #: Width of the sliding attention window in tokens; 0 without one.
    n_swa: int
    #: How positions are encoded (rotary position embedding).
    rope_type: RopeType
    #: Factor on the rotary frequencies that the model was trained with.
    rope_freq_scale_train: float
    #: Number of parameters.
    n_params: int
    #: Size of all tensors in bytes.
    size: int
    #: Whether it encodes an input, as T5 does.
    has_encoder: bool
    #: Whether it has a decoder; the encoder of a T5 alone has none.
    has_decoder: bool
    #: The token that a decoder after an encoder begins with; None for other models.
    decoder_start_token: int | None
    #: Whether the state is recurrent (Mamba, RWKV): it cannot go back to an earlier position.
    is_recurrent: bool
    #: Whether recurrent and attention layers are mixed (Jamba, Granite).
    is_hybrid: bool
    #: Whether it writes text by diffusion, and not token by token.
    is_diffusion: bool
    #: The labels of a classifier's outputs, in order; empty for a model without labels.
    classifier_labels: tuple[str, ...]
    #: Type, size and quantization in words, such as ``"llama 135M Q4_1"``.
    desc: str
    #: The file's metadata, scalar values as strings; arrays are left out.
    metadata: Mapping[str, str]
    #: How its tensors are quantized, as far as this llama.cpp has a name for it.
    ftype: FileType | None
    #: How the file says to sample, by llama.cpp's names such as ``"top_k"``; often empty.
    sampling_metadata: Mapping[str, str]

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[ModelOptions]) -> None:
        name = _model_file.readable_gguf(path)
        self._load(
            [name],
            lambda params: lib.guarded_model_load_from_file(os.fsencode(name), params),
            options,
        )

    @classmethod
    def from_splits(
        cls, paths: Sequence[str | os.PathLike[str]], **options: Unpack[ModelOptions]
    ) -> Self:
        """Load a split model whose parts have names of their own.

        ``llama_model_load_from_splits``.

        Args:
            paths: all parts, in their order.
            options: as for ``Model``, which also says what is raised.

        Raises:
            ModelLoadError: also when the parts are not those of one model.
        """
        if isinstance(paths, (str, bytes)) or not isinstance(paths, Sequence):
            raise TypeError(f"paths must be a sequence of paths, got {paths!r}")
        if not 0 < len(paths) < 2**16:
            raise ValueError(f"paths must hold 1 to {2**16 - 1} paths, got {len(paths)}")
        names = [_model_file.readable_gguf(path, "paths") for path in paths]
        texts = [ffi.new("char[]", os.fsencode(name)) for name in names]
        array = ffi.new("const char *[]", texts)
        model = cls.__new__(cls)
        model._load(
            names,
            lambda params: lib.guarded_model_load_from_splits(array, len(texts), params),
            options,
        )
        count = max(1, int(model.metadata.get("split.count", 1)))
        if count != len(names):  # llama.cpp does not look at the others if there is but one part
            model.close()
            raise ModelLoadError(f"{names[0]} belongs to {count} parts, but paths has {len(names)}")
        return model

    @classmethod
    def from_file(
        cls, file: BinaryIO | int, *, offset: int | None = None, **options: Unpack[ModelOptions]
    ) -> Self:
        """Load from an open file, or from the middle of one.

        ``llama_model_load_from_file_ptr``. The file stays open and at its position, and can be
        closed afterwards; no other thread may move it meanwhile.

        Args:
            file: a file of the operating system opened for reading bytes, or its descriptor.
            offset: where the GGUF begins, in bytes; None for the file's position. Unless
                ``load_mode="none"``, its tensors must lie at multiples of 32 bytes in the file.
            options: as for ``Model``, which also says what is raised.

        Raises:
            TypeError: an object that is not a file of the operating system.
            OSError: a file that cannot be read or has no such position.
        """
        descriptor, begin = _model_file.descriptor_and_offset(file, offset)
        return cls._from_descriptor(f"<file descriptor {descriptor}>", descriptor, begin, options)

    @classmethod
    def from_bytes(cls, data: Any, **options: Unpack[ModelOptions]) -> Self:
        """Load from memory, through a copy in an anonymous file of the operating system.

        llama.cpp reads files only. On Linux the copy is in memory, elsewhere in the folder for
        temporary files; it goes away with the model.

        Args:
            data: bytes, or any contiguous buffer of them.
            options: as for ``Model``, which also says what is raised.
        """
        with _model_file.anonymous_file(data) as file:
            return cls._from_descriptor("<bytes>", file.fileno(), 0, options)

    @classmethod
    def _from_descriptor(
        cls, name: str, descriptor: int, offset: int, options: ModelOptions
    ) -> Self:
        model = cls.__new__(cls)
        with _model_file.position_kept(descriptor):
            _model_file.require_magic(_model_file.beginning_at(descriptor, offset), name)
            model._load(
                [descriptor],
                lambda params: lib.guarded_model_load_from_fd(descriptor, offset, params),
                options,
                name=name,
                offset=offset,
            )
        return model

    def _load(
        self,
        files: Sequence[str | int],
        load: Callable[[llama_model_params_p], Pointer[llama_model]],
        options: ModelOptions,
        *,
        name: str | None = None,
        offset: int = 0,
    ) -> None:
        super().__init__()
        self._dependents: weakref.WeakSet[NativeObject[Any]] = weakref.WeakSet()
        # To be freed when no context decodes.
        self._retired_adapters: list[Pointer[llama_adapter_lora]] = []
        # Held while a context is made, or an adapter loaded or freed: making a context reads the
        # model's adapters, and changes what the model says of its training for a moment.
        self._making = threading.RLock()
        self.path = name or str(files[0])
        # llama.cpp keeps a copy of the struct, including its pointers.
        self._params = ModelParams(**options)
        what = f"loading {self.path}"
        try:
            tensors = check_files(files, offset, options.get("kv_overrides"))
        except DamagedFile as error:
            raise ModelLoadError(f"{what}: {error}") from None
        devices = options.get("devices") or ()
        watch(self, devices)
        try:
            with require_answers(devices) as connections:
                pointer = load(ffi.addressof(self._params.struct))
                if pointer == ffi.NULL:
                    self._params.raise_failed(what)
                # It stays connected even without layers there: its contexts use all its devices.
                self._own(pointer, lib.guarded_model_free, *connections)
        except ServerLostError:
            self.close()
            raise
        self.has_classifier = not tensors.isdisjoint(("cls.weight", "cls.output.weight"))
        self._read_vocab(pointer, options.get("kv_overrides") or {})
        self._read_architecture(pointer)
        self._read_metadata(pointer, options)

    def _read_vocab(
        self, pointer: Pointer[llama_model], overrides: Mapping[str, bool | int | float | str]
    ) -> None:
        self.vocab_only = self._params.struct.vocab_only
        pre = overrides.get("tokenizer.ggml.pre")
        self.vocab = Vocab(
            self,
            lib.llama_model_get_vocab(pointer),
            pre=pre if isinstance(pre, str) else None,  # llama.cpp accepts no other
        )

    def _read_architecture(self, pointer: Pointer[llama_model]) -> None:
        self.n_ctx_train = lib.llama_model_n_ctx_train(pointer)
        self.n_embd = lib.llama_model_n_embd(pointer)
        self.n_embd_inp = lib.llama_model_n_embd_inp(pointer)
        self.n_embd_out = lib.llama_model_n_embd_out(pointer)
        self.n_layer = lib.llama_model_n_layer(pointer)
        self.n_layer_nextn = lib.llama_model_n_layer_nextn(pointer)
        self.n_head = check(lib.guarded_model_n_head(pointer), "the number of heads")
        self.n_head_kv = check(lib.guarded_model_n_head_kv(pointer), "the number of heads")
        self.n_swa = lib.llama_model_n_swa(pointer)
        self.rope_type = _ROPE_TYPES[
            check(lib.guarded_model_rope_type(pointer), "the kind of position encoding")
        ]
        self.rope_freq_scale_train = lib.llama_model_rope_freq_scale_train(pointer)
        self.n_params = lib.llama_model_n_params(pointer)
        self.size = lib.llama_model_size(pointer)
        self.has_encoder = lib.llama_model_has_encoder(pointer)
        self.has_decoder = lib.llama_model_has_decoder(pointer)
        start = lib.llama_model_decoder_start_token(pointer)
        self.decoder_start_token = None if start == lib.LLAMA_TOKEN_NULL else start
        self.is_recurrent = lib.llama_model_is_recurrent(pointer)
        self.is_hybrid = lib.llama_model_is_hybrid(pointer)
        self.is_diffusion = lib.llama_model_is_diffusion(pointer)

    def _read_metadata(self, pointer: Pointer[llama_model], options: ModelOptions) -> None:
        self.classifier_labels = classifier_labels(pointer)
        self.desc = read_string(lib.guarded_model_desc, pointer)
        self.metadata = MappingProxyType(metadata_of(pointer))
        self._in_use = MetadataInUse(self.metadata, options.get("kv_overrides"))
        self.ftype = file_type(
            # llama.cpp reports F32 for a model whose tensors it did not load.
            int(self.metadata.get("general.file_type", -1))
            if self.vocab_only
            else check(lib.guarded_model_ftype(pointer), "the type of a model")
        )
        self.sampling_metadata = MappingProxyType(
            {
                name: self.metadata[key]
                for name, key in _SAMPLING_KEYS.items()
                if key in self.metadata
            }
        )

    @property
    def chat_template_names(self) -> tuple[str, ...]:
        """The names that ``chat_template`` knows, without the default one."""
        prefix = f"{_TEMPLATE_KEY}."
        return tuple(key[len(prefix) :] for key in self.metadata if key.startswith(prefix))

    def chat_template(self, name: str | None = None) -> str | None:
        """The source of the model's chat template, or None if it has none of that name.

        ``llama_model_chat_template``.

        Args:
            name: a named template such as ``"tool_use"``; None for the default one.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        text = ffi.NULL if name is None else utf8("name", name)
        with self._open() as pointer:
            source = lib.guarded_model_chat_template(pointer, text)
            if source != ffi.NULL:
                return to_str(source)
            raise_if_caught("reading the chat template")
            return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a GGUF file (``llama_model_save_to_file``).

        The file appears, or replaces another, when it is complete. llama.cpp writes the tensors,
        the hyperparameters and the vocabulary; other metadata, such as the chat template, is lost.

        Raises:
            ModelSaveError: llama.cpp cannot write models of this architecture, or could not write
                the file.
            ValueError: the weights were not loaded (``vocab_only=True``), or were repacked while
                loading: load the model with ``use_extra_bufts=False``.
        """
        target = _model_file.writable_path("path", path)
        if self.vocab_only:
            raise ValueError("a model loaded with vocab_only=True has no weights to save")
        if self._params.struct.use_extra_bufts:
            raise ValueError(
                "the weights of this model may have been repacked for this processor, and cannot "
                "be read back: load it with use_extra_bufts=False to save it"
            )
        what = f"saving {target}"
        with self._open() as pointer, _model_file.replaced_when_done(target) as temporary:
            name = os.fsencode(temporary)
            try:
                check(lib.guarded_model_save_to_file(pointer, name), what)
                check(lib.guarded_check_gguf(name), what)
            except NativeError as error:
                raise ModelSaveError(str(error)) from None

    def close(self) -> None:
        """Free the model, after closing its contexts and adapters. Closing again does nothing.

        It waits for a decode of another thread.
        """
        if _process.ended:
            return
        with self._lock:
            handle, self._handle = self._handle, None
            dependents = list(self._dependents)
        for dependent in dependents:
            dependent.close()
        del handle  # frees the model unless another thread is inside a call on it

    @or_half_made
    def __repr__(self) -> str:
        state = "closed" if self.closed else self.desc
        return f"<pyllama.Model {os.path.basename(self.path)!r}: {state}>"

    @property
    def lost(self) -> bool:
        """Whether an RPC server with a part of the model went away. It can then only be closed."""
        return self._lost is not None

    def _lose(self, reason: str) -> None:
        super()._lose(reason)
        for dependent in list(self._dependents):
            dependent._lose(reason)

    def _dependents_of(self, kind: type[D]) -> list[D]:
        """The dependants of this model that are of a kind."""
        return [dependent for dependent in list(self._dependents) if isinstance(dependent, kind)]

    def _at_rest(self, kind: type[NativeObject[Any]], work: Callable[[], None]) -> None:
        """Run a block while no dependants of a kind are at work.

        The model's lock, which is held while one is made, comes after theirs: a sampler's function,
        which holds its context's lock, may make another context.
        """

        def work_if_all(held: list[NativeObject[Any]]) -> bool:
            with self._lock, self._making:
                if not set(self._dependents_of(kind)) <= set(held):
                    return False
                work()
                return True

        done = False
        while not done:
            held = sorted(self._dependents_of(kind), key=id)  # one order for all threads
            done = holding_all(held, partial(work_if_all, held))

    def _adapter_keeper(self) -> Callable[[Pointer[llama_adapter_lora]], None]:
        """Keeps a LoRA adapter that the user dropped. It does not refer to this model."""
        return self._retired_adapters.append

    def _free_retired_adapters(self) -> None:
        """Free what was kept so. Closing the model frees it otherwise."""
        handle = self._handle
        if handle is not None:
            with handle:
                while self._retired_adapters:
                    pointer = self._retired_adapters.pop()
                    check(lib.guarded_adapter_lora_free(pointer), "freeing an adapter")

    def _adopt(self, dependent: NativeObject[Any]) -> None:
        """Register a dependant of this model, so that close() closes it first."""
        with self._lock:
            if self._handle is not None:
                self._dependents.add(dependent)
                if self._lost is None:
                    return
        dependent.close()
        if self._lost is not None:
            self._open()  # which raises
        raise ClosedError(
            f"this Model was closed while a {type(dependent).__name__} was made from it: "
            f"{self.path}"
        )
