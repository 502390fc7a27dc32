"""Models by name: loaded once from a folder, shared by every request."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyllama
from adapter.errors import (
    BackendError,
    InvalidModelNameError,
    InvalidParameterError,
    ModelNotFoundError,
    ModelNotLoadedError,
    TokenizationError,
)
from adapter.generation.context_pool import ContextPool
from adapter.generation.isolated import IsolatedGenerator
from adapter.generation.request import Generator
from adapter.hardware import cpu_threads, running_device

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_CONTEXT_LENGTH = 4096
"""Tokens of context where the user names no length, at most what the model was trained with."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.role | title }}: {{ message.content }}\n\n"
    "{% endfor %}Assistant:"
)
"""What a model without a chat template is shown."""


class LoadedModel:
    """A model in memory, with what it takes to answer a conversation. ModelPool makes it.

    name            the model's name in its pool
    path            its GGUF file
    fingerprint     hex digest of what decides its answers: the file, its chat template, and the
                    version of llama.cpp
    generator       computes completions
    n_ctx_train     tokens of context it was trained with
    context_length  tokens of context that its generator has
    capabilities    what its chat template can express
    n_vocab         tokens that it knows
    turn_stops      texts at which a turn ends beside the vocabulary's own tokens
    device          what runs it, such as "CPU (Intel Xeon)"
    """

    def __init__(
        self,
        name: str,
        model: pyllama.Model,
        *,
        context_length: int,
        max_contexts: int,
        device: pyllama.Device,
    ) -> None:
        self._model = model
        self._has_template = model.chat_template() is not None
        self._template = _chat_template(model)
        self.name = name
        self.path = Path(model.path)
        self.fingerprint = _fingerprint(self.path, self._template)
        self.capabilities = self._template.capabilities
        self.n_vocab = model.vocab.n_tokens
        self.n_ctx_train = model.n_ctx_train
        self.context_length = context_length
        self.turn_stops = () if self._has_template else ("\n\nUser:", "\n\nSystem:")
        self.device = f"{device.name} ({device.description})"
        contexts = ContextPool(
            model, context_length=context_length, n_threads=cpu_threads(), limit=max_contexts
        )
        self.generator: Generator = IsolatedGenerator(
            model, contexts, context_length=context_length
        )

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> pyllama.RenderedChat:
        """A conversation as the model wants it, ending where the assistant's answer begins.

        The model's chat template is applied by llama.cpp's own engine, with the options of
        ``pyllama.ChatTemplate.apply``; a model without one gets ``System: … / User: …``.

        Raises TokenizationError for messages that the template refuses, and for a template that
        does not end, or ends its process.
        """
        try:
            return self._template.apply(messages, **options)
        except pyllama.ChatTemplateError as error:
            raise TokenizationError(str(error)) from error

    def tokenize(self, prompt: str) -> list[int]:
        """The tokens of a rendered prompt, with BOS as the model wants it.

        Special tokens are recognised where a chat template writes them.

        Raises TokenizationError for text that has no UTF-8 form.
        """
        try:
            return self._model.vocab.tokenize(prompt, parse_special=self._has_template)
        except pyllama.TokenizationError as error:
            raise TokenizationError(str(error)) from error

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text within the assistant's turn, special ones recognised."""
        vocab = self._model.vocab
        tokens = vocab.tokenize(text, add_special=False, parse_special=True)
        if tokens and not text[:1].isspace() and vocab.token_to_piece(tokens[0])[:1].isspace():
            del tokens[0]  # a space that some tokenizers put before the first special token
        return tuple(tokens)

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._model.vocab.token_to_piece(token)

    def close(self) -> None:
        """Free the model, after requests that are being computed. Closing again does nothing."""
        self._model.close()

    def __repr__(self) -> str:
        return f"<LoadedModel {self.name!r} on {self.device}>"


class ModelPool:
    """The models of one folder, loaded when asked for and kept. Thread-safe.

    model_dir       the folder; the model called name is its file name.gguf
    n_gpu_layers    layers kept on the GPU, where there is one: negative for all, 0 for none
    context_length  tokens of context for each request; None for what the model was trained
                    with, at most 4096
    max_contexts    requests computed at once for each model, each in a context of its own;
                    None for 1 on a CPU, which one request keeps busy, and 4 on a GPU
    progress        called with a model's name and the fraction loaded, 0.0 to 1.0

    Raises NotADirectoryError when model_dir is no folder, InvalidParameterError for a number out
    of range.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike[str],
        *,
        n_gpu_layers: int = -1,
        context_length: int | None = None,
        max_contexts: int | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self.model_dir = Path(model_dir).expanduser()
        if not self.model_dir.is_dir():
            raise NotADirectoryError(f"model_dir must be a folder of GGUF files, got {model_dir}")
        limits = {"context_length": context_length, "max_contexts": max_contexts}
        for parameter, value in limits.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidParameterError(parameter, value, "an integer of at least 1, or None")
        self._n_gpu_layers = n_gpu_layers
        self._context_length = context_length
        self._max_contexts = max_contexts
        self._progress = progress
        self._lock = threading.Lock()
        self._models: dict[str, Future[LoadedModel]] = {}

    def load_model(self, name: str) -> LoadedModel:
        """The model called name, loaded from its file unless it is in memory already.

        Several threads that ask for one model at once wait for one load.

        Raises InvalidModelNameError for a name that is no plain file name, ModelNotFoundError
        when the folder has no such file, and pyllama.ModelLoadError for a file that is no model.
        """
        path = self._path(name)
        with self._lock:
            pending = self._models.get(name)
            mine = pending is None
            if pending is None:
                pending = self._models[name] = Future()
        if mine:
            try:
                pending.set_result(self._load(name, path))
            except BaseException as error:
                with self._lock:
                    self._models.pop(name, None)
                pending.set_exception(error)
        return pending.result()

    def get_loaded_model(self, name: str | None = None) -> LoadedModel:
        """A model that is in memory: the one called name, or the only one there is.

        Raises ModelNotLoadedError when it is not in memory, or without a name when there are
        none or several.
        """
        with self._lock:
            loaded = {key: model for key, model in self._models.items() if _is_ready(model)}
        if name is None:
            if len(loaded) != 1:
                names = ", ".join(map(repr, loaded)) or "none"
                raise ModelNotLoadedError("", f"give a name; in memory: {names}")
            name = next(iter(loaded))
        if name not in loaded:
            raise ModelNotLoadedError(name, f"call load_model({name!r}) first")
        return loaded[name].result()

    def close(self) -> None:
        """Free every model, after requests that are being computed."""
        with self._lock:
            models, self._models = list(self._models.values()), {}
        for model in models:
            if _is_ready(model):
                model.result().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ModelPool {str(self.model_dir)!r}: {', '.join(self._models) or 'none loaded'}>"

    def _path(self, name: str) -> Path:
        """The file of a model; the name cannot lead out of the folder."""
        if not isinstance(name, str):
            raise InvalidModelNameError(name, "is no string")
        if not name.strip():
            raise InvalidModelNameError(name, "is empty")
        if any(character in name for character in "/\\\0") or name.startswith("."):
            raise InvalidModelNameError(name, "is not a plain file name")
        path = self.model_dir / f"{name}.gguf"
        if not path.is_file():
            raise ModelNotFoundError(name, path)
        return path

    def _load(self, name: str, path: Path) -> LoadedModel:
        progress = self._progress
        device = running_device(self._n_gpu_layers)
        try:
            model = pyllama.Model(
                path,
                n_gpu_layers=self._n_gpu_layers,
                progress=None if progress is None else lambda done: progress(name, done),
            )
        except pyllama.NativeMemoryError as error:
            raise BackendError(f"no memory for model {name!r}: {error}") from error
        length = self._context_length or min(model.n_ctx_train, DEFAULT_CONTEXT_LENGTH)
        contexts = self._max_contexts or (1 if device.type == "cpu" else 4)
        return LoadedModel(name, model, context_length=length, max_contexts=contexts, device=device)


def _is_ready(model: Future[LoadedModel]) -> bool:
    return model.done() and model.exception() is None


def _chat_template(model: pyllama.Model) -> pyllama.ChatTemplate:
    """The model's template, in a process of its own: it is a program that came with a file."""
    if model.chat_template() is None:
        return pyllama.ChatTemplate(source=PLAIN_TEMPLATE)
    return pyllama.ChatTemplate(model, isolated=True)


def _fingerprint(path: Path, template: pyllama.ChatTemplate) -> str:
    """A digest of what decides the answers.

    Of the file: its size, its first megabyte (metadata) and 256 blocks spread over it, which
    tells fine-tunes and quantizations apart without reading a large file whole.
    """
    block, spread = 64 * 1024, 256
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n{pyllama.llama_cpp_version()}\n".encode())
    digest.update(template.source.encode())
    with path.open("rb") as file:
        digest.update(file.read(1024 * 1024))
        for index in range(spread):
            file.seek(max(0, size - block) * index // (spread - 1))
            digest.update(file.read(block))
    return digest.hexdigest()
