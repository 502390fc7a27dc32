"""Importance matrices, computed by llama.cpp's own tool in a process of its own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyllama
from adapter.errors import ImatrixError
from adapter.models.hardware import Placement
from adapter.models.tool_process import run_tool
from adapter.wording import counted, reason_of
from pyllama.scratch_folder import scratch_folder

_N_BATCH = 512
_CHUNKS = re.compile(r"compute_imatrix: computing over (\d+) chunks")
_DONE = re.compile(r"\[(\d+)\][-+.\w]+\Z")
_PERPLEXITY = re.compile(r"Final estimate: PPL = ([\d.]+)")
_PARTIAL = re.compile(r"entry '\s*(\S+)' has partial data")
_ENDS = re.compile(rb"[\r\n]|(?<=\w),(?=\[|\Z)")


@dataclass(frozen=True)
class Imatrix:
    """What was computed.

    Attributes:
        n_tensors: tensors of the model whose inputs the file describes.
        n_chunks: parts of the text.
        perplexity: of the text; None if llama.cpp gave none.
        partial: tensors with experts that saw no token.
    """

    n_tensors: int
    n_chunks: int
    perplexity: float | None
    partial: tuple[str, ...]


def compute_imatrix(
    model: Path,
    text: Path,
    target: Path,
    placement: Placement,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    n_threads: int | None = None,
    report: Callable[[float], object] | None = None,
) -> Imatrix:
    """Write how much each column of a model's weights matters for a text.

    The file appears when it is complete and can be read.

    Args:
        model: the model's file, or its first part.
        text: a file of UTF-8 text, whose name the file keeps.
        target: the file to write.
        placement: where the model runs.
        n_ctx: tokens of each part of the text.
        n_chunks: parts to compute; None for all.
        n_threads: threads of the CPU; None for those of the placement.
        report: called with the fraction that is done.

    Raises:
        ImatrixError: with what to do.
    """
    content = _long_enough(model, text, n_ctx)
    try:
        with scratch_folder(target.parent, ".imatrix-") as scratch:
            made = scratch / "imatrix.gguf"
            (scratch / text.name).write_bytes(content)
            command = [str(pyllama.imatrix_program()), "-m", str(model.absolute())]
            command += ["-f", text.name, "-o", made.name, *_where(placement)]
            command += ["-c", str(n_ctx), "-b", str(min(_N_BATCH, n_ctx))]
            command += ["-t", str(n_threads or placement.n_threads)]
            command += ["--output-frequency", str(2**30)]  # once, at the end
            command += [] if n_chunks is None else ["--chunks", str(n_chunks)]
            told = _run(command, scratch, _environment(placement), report)
            try:
                n_tensors = len(pyllama.load_imatrix(made))
            except (pyllama.QuantizeError, OSError) as error:
                raise ImatrixError(f"llama.cpp's imatrix tool wrote no file: {error}") from error
            os.replace(made, target)
    except OSError as error:
        raise ImatrixError(f"{target} cannot be made: {reason_of(error)}") from error
    perplexity = float(told.perplexity) if told.perplexity else None
    return Imatrix(n_tensors, told.n_chunks, perplexity, tuple(dict.fromkeys(told.partial)))


def _long_enough(model: Path, text: Path, n_ctx: int) -> bytes:
    """The text, if it has two parts."""
    try:
        content = text.read_bytes()
        content.decode()
    except UnicodeDecodeError as error:
        raise ImatrixError(
            f"{text} is no UTF-8 text: its byte {error.start} is {content[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise ImatrixError(f"{text} cannot be read: {error.strerror}") from error
    with pyllama.Model(model, vocab_only=True) as header:
        tokens = len(header.vocab.tokenize_array(content))
    if tokens < 2 * n_ctx:
        raise ImatrixError(
            f"{text} has {counted(tokens, 'token')}, and {2 * n_ctx} are needed at least: give a "
            "longer text or a smaller --context"
        )
    return content


def _where(placement: Placement) -> list[str]:
    """Options for the devices that a placement chose."""
    names = [device.name for device in placement.devices]
    if not names:
        return ["--device", "none", "-ngl", "0", "-fit", "off"]
    layers = str(placement.n_gpu_layers) if placement.n_gpu_layers >= 0 else "all"
    options = ["--device", ",".join(names), "-ngl", layers, "-fit", "off"]
    if placement.tensor_split:
        options += ["-ts", ",".join(map(str, placement.tensor_split))]
    return options


class _Told:
    """What the tool says while it runs."""

    def __init__(self, report: Callable[[float], object] | None) -> None:
        self.n_chunks = 0
        self.perplexity: str | None = None
        self.partial: list[str] = []
        self._report = report
        self._done = 0.0

    def _reached(self, fraction: float) -> None:
        if self._report is not None and fraction > self._done:
            self._done = fraction
            self._report(fraction)

    def finish(self) -> None:
        """It has ended well: its last chunk may have come on a line with other words."""
        self._reached(1.0)

    def follow(self, line: str) -> bool:
        if found := _CHUNKS.search(line):
            self.n_chunks = int(found[1])
        elif found := _PERPLEXITY.search(line):
            self.perplexity = found[1]
        elif found := _PARTIAL.search(line):
            self.partial.append(found[1])
        elif found := _DONE.search(line):
            if self.n_chunks:
                self._reached(min(1.0, int(found[1]) / self.n_chunks))
            return True
        return False


def _environment(placement: Placement) -> dict[str, str]:
    """Without settings of llama.cpp's programs, and with the backend of a package of its own."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    used = [package for package in pyllama.backend_packages() if package.problem is None]
    if placement.devices and used:
        found["GGML_BACKEND_PATH"] = used[0].path
        libraries = [Path(place, each) for place in sys.path for each in used[0].library_folders]
        folders = [*map(str, filter(Path.is_dir, libraries)), found.get("LD_LIBRARY_PATH", "")]
        found["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    return found


def _run(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    report: Callable[[float], object] | None,
) -> _Told:
    """Run the tool in a folder of its own: ggml looks for modules in the current one, too."""
    told = _Told(report)
    code, said = run_tool(command, told.follow, environment=environment, cwd=folder, ends=_ENDS)
    if code:
        raise ImatrixError(f"llama.cpp's imatrix tool failed ({code}); it said:\n{said}")
    told.finish()
    return told
