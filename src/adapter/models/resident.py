"""A model in memory: its weights, its chat template, and its contexts."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import pyllama
from adapter.errors import ConfigurationError
from adapter.generation.contexts import PADDING, Contexts, with_flash_attention
from adapter.generation.generator import Generator
from adapter.generation.memory.prefix_folder import PrefixFolder
from adapter.generation.memory.prefix_reuse import rolls_back
from adapter.generation.metrics import Metrics
from adapter.generation.request import Execution
from adapter.generation.scheduler import Scheduler
from adapter.models import warm_up
from adapter.models.chat_templates import of_the_hub
from adapter.models.context_settings import changed, chunk_of, decisive
from adapter.models.hardware import Placement
from adapter.models.parts import parts
from adapter.models.template_trials import calls_tools
from adapter.models.template_variables import variables_in

logger = logging.getLogger(__name__)

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message.role | title }}: {{ message.content }}\n\n"
    "{% endfor %}Assistant:"
)
"""The template of a model without one."""


NO_GRAPHS = "GGML_CUDA_DISABLE_GRAPHS"
"""The environment variable of llama.cpp that turns CUDA graphs off in the whole process."""

MAX_QUEUED = 4096
"""The most requests that wait for a slot."""

MAX_FILE_BYTES = 2**30
"""Bytes that a model's prefixes may take in a folder."""


class ResidentModel:
    """What a model keeps in memory, from loading until close().

    Attributes:
        model: the weights.
        has_template: whether it has a chat template, its own or the user's.
        template: that template in a process of its own, or else PLAIN_TEMPLATE.
        template_variables: names in the template.
        calls_tools: whether it can be given tools, and its calls can be read.
        generators: compute completions, together or each in a context of its own.
        fingerprint: hex digest of the file, its chat template and llama.cpp's version.
        computation: what else affects the bytes of its answers: the devices, the layers on them,
            the CPU's instructions and threads, whether bytes are kept, and the user's settings of
            contexts.
    """

    def __init__(
        self,
        path: Path,
        placement: Placement,
        progress: Callable[[float], bool | None],
        metrics: Metrics,
        *,
        reproducible: bool = True,
        prefix_folder: Path | None = None,
        chat_template: str | None = None,
    ) -> None:
        # GPUs choose kernels by the size of a batch, so bytes are kept only in padded batches.
        self._reproducible = reproducible and (not placement.devices or placement.batch_width > 1)
        if self._reproducible:
            _require_no_graphs(placement.devices)
        self.computation = _computation(placement, self._reproducible)
        self._chunk = chunk_of(
            placement.context,
            on_device=bool(placement.devices),
            reproducible=self._reproducible,
        )
        warms_up = warm_up.warms_up(placement.devices)
        loading = warm_up.while_loading(progress) if warms_up else progress
        self.model = placement.load(path, loading)
        try:
            self._try_out(placement)
            if warms_up:
                self._warm_up(placement, progress)
            if chat_template is None and self.model.chat_template() is None:
                chat_template = of_the_hub(path)
            self.has_template = (chat_template or self.model.chat_template()) is not None
            self.template = _chat_template(self.model, chat_template)
            self.template_variables = _variables(self.model, self.template, chat_template)
            self.calls_tools = calls_tools(self.template)
            self.fingerprint = _fingerprint(parts(path), self.template)
            self._scheduler = self._make_scheduler(placement, metrics, prefix_folder)
            self._isolated = self._make_isolated(placement)
            self.generators: Mapping[Execution, Generator] = MappingProxyType(
                {"batched": self._scheduler, "isolated": self._isolated}
            )
        except BaseException:
            self.model.close()
            raise

    @property
    def failed(self) -> BaseException | None:
        """The error that left it unable to answer, or None. Close and reload it then."""
        return self._scheduler.failed or self._isolated.failed

    @property
    def usable(self) -> bool:
        """Whether it can answer: nothing failed, and no RPC server with a part of it was lost."""
        return self.failed is None and self.model.usable

    def start(self) -> None:
        """Start the threads that compute, so that no request depends on one that cannot start."""
        self._scheduler.start()
        self._isolated.start()

    def close(self) -> None:
        """Free the weights and contexts. The template's process ends with this object."""
        with ExitStack() as steps:  # all of them, even if one is interrupted
            steps.callback(self.model.close)
            steps.callback(self._scheduler.close)
            steps.callback(self._isolated.close)

    def _try_out(self, placement: Placement) -> None:
        """Refuse settings of contexts with which none can be made for this model."""
        context = placement.context
        if not changed(context):
            return
        try:
            asked = with_flash_attention(context, reproducible=self._reproducible)
            pyllama.Context(self.model, asked, n_ctx=PADDING).close()
        except (ValueError, pyllama.ContextError) as error:
            raise ConfigurationError(
                f"ModelPool(context=…) does not fit {self.model.desc}: {error}"
            ) from error

    def _warm_up(self, placement: Placement, progress: Callable[[float], bool | None]) -> None:
        """Have the devices make ready what they compute with."""
        contexts = Contexts(
            self.model,
            with_flash_attention(placement.context, reproducible=self._reproducible),
            chunk=self._chunk,
            scoring_chunk=self._chunk,
            mixed=not self._reproducible,
        )
        warm_up.warm_up(self.model, contexts, self._chunk, progress)

    def _make_scheduler(
        self, placement: Placement, metrics: Metrics, folder: Path | None
    ) -> Scheduler:
        prefixes = None
        if folder is not None:
            key = " ".join([self.fingerprint, *self.computation])
            try:
                prefixes = PrefixFolder(folder, key, max_bytes=MAX_FILE_BYTES)
            except OSError as error:  # the folder was usable when the pool was made
                logger.warning("%s runs without prefix_folder: %s", self.model.desc, error)
        # A GPU computes a beginning as quickly as it saves one.
        saves = not placement.devices or not rolls_back(self.model) or prefixes is not None
        return Scheduler(
            self.model,
            context_length=placement.context_length,
            n_threads=placement.n_threads,
            n_cells=placement.n_cells,
            max_sequences=placement.n_sequences,
            max_queued=MAX_QUEUED,
            cache_bytes=placement.kept_bytes if saves else 0,
            reproducible=self._reproducible,
            chunk=self._chunk,
            shared_memory=bool(placement.devices) and not self._reproducible,
            metrics=metrics,
            prefix_folder=prefixes,
            context=placement.context,
            batch_width=placement.batch_width,
            anchored=bool(placement.devices) and self._reproducible,
        )

    def _make_isolated(self, placement: Placement) -> Scheduler:
        return Scheduler(
            self.model,
            context_length=placement.context_length,
            n_threads=placement.n_threads,
            n_cells=placement.context_length,
            max_sequences=1,
            max_queued=MAX_QUEUED,
            cache_bytes=0,
            reproducible=self._reproducible,
            chunk=self._chunk,
            isolated=True,
            context=placement.context,
            batch_width=placement.batch_width,
            anchored=bool(placement.devices) and self._reproducible,
        )


def _require_no_graphs(devices: Sequence[pyllama.Device]) -> None:
    """Refuse to compute without flash attention in CUDA graphs, which fails for some models.

    llama.cpp captures a prompt's call in a graph once it is repeated. Where cuBLAS multiplies in
    it, the graph ended with an illegal instruction on an H100 (heads of 64 values, CUDA 13.0).
    """
    if NO_GRAPHS not in os.environ and any(device.backend == "CUDA" for device in devices):
        raise ConfigurationError(
            f"ModelPool(batch_width=…) on a GPU needs {NO_GRAPHS}=1 in the environment, set before "
            "the program computes anything with CUDA; without batch_width it is not needed, and "
            "bytes depend on the other requests"
        )


def _chat_template(model: pyllama.Model, source: str | None) -> pyllama.ChatTemplate:
    """The user's template, or the model's, in its own process: it is a program from a file."""
    if source is None and model.chat_template() is None:
        return pyllama.ChatTemplate(source=PLAIN_TEMPLATE)
    return pyllama.ChatTemplate(model, source, isolated=True)


def _variables(
    model: pyllama.Model, template: pyllama.ChatTemplate, source: str | None
) -> frozenset[str]:
    """The names in its template, and in the model's template for tools."""
    for_tools = model.chat_template("tool_use") if source is None else None
    return variables_in(template.source) | variables_in(for_tools or "")


def _computation(placement: Placement, reproducible: bool) -> tuple[str, ...]:
    """What affects the bytes that a model of given content computes."""
    devices = [device.description for device in placement.devices]
    overrides = {part: device.name for part, device in placement.tensor_buft_overrides.items()}
    return (
        *devices,
        f"layers={placement.n_gpu_layers if devices else 0}",
        f"split={placement.tensor_split}",
        f"overrides={sorted(overrides.items())}",
        f"cpu={pyllama.cpu_variant()}",
        f"threads={placement.n_threads}",
        f"reproducible={reproducible}",
        *([f"width={placement.batch_width}"] if reproducible and placement.batch_width > 1 else []),
        *decisive(placement.context),
    )


def _fingerprint(paths: Sequence[Path], template: pyllama.ChatTemplate) -> str:
    """A digest of the files, the chat template and llama.cpp's version, which decide the answers.

    Of a file it covers the size, the first megabyte (metadata) and 256 blocks spread over it. That
    distinguishes fine-tunes and quantizations without reading a large file completely.
    """
    block, spread = 64 * 1024, 256
    digest = hashlib.sha256(pyllama.llama_cpp_version().encode())
    digest.update(template.source.encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"\n{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(1024 * 1024))
            for index in range(spread):
                file.seek(max(0, size - block) * index // (spread - 1))
                digest.update(file.read(block))
    return digest.hexdigest()
