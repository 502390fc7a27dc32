"""How much each column of a model's weights matters, for the smallest quantizations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.cli.console import note, progress_bar, say, say_json
from adapter.cli.error_words import errors_told
from adapter.cli.options import AsJson, Chunks, Force, GpuLayers, Model, Threads, require_writable
from adapter.cli.session import found, require_generator
from adapter.models.local_path import local_path
from adapter.wording import counted, file_size

if TYPE_CHECKING:
    from adapter.models.imatrix import Imatrix


def imatrix(
    model: Model,
    text: Annotated[
        Path,
        typer.Argument(readable=False, help="A file of text of the kind that the model will see."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            readable=False,
            help="The file to write; by default NAME-imatrix.gguf.",
        ),
    ] = None,
    length: Annotated[
        int, typer.Option("--context", "-c", min=16, max=2**20, help="Tokens of each part.")
    ] = 512,
    chunks: Chunks = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compute an importance matrix by llama.cpp's own tool, in a process of its own.

    A hundred parts of 512 tokens are enough for most models. The file appears when it is complete.
    """
    import pyllama
    from adapter.models.hardware import HardwareManager
    from adapter.models.imatrix import compute_imatrix

    with errors_told():
        path = found(model).path()
        target = _target(model, path, out)
        require_writable(target, force=force)
        with pyllama.Model(path, vocab_only=True) as header:
            require_generator(model, header)
        placement = HardwareManager().plan(
            path, context_length=length, n_gpu_layers=gpu_layers, n_contexts=1
        )
        with progress_bar("Computing") as report:
            made = compute_imatrix(
                path,
                text,
                target,
                placement,
                n_ctx=length,
                n_chunks=chunks,
                n_threads=threads,
                report=report,
            )
        size = target.stat().st_size
    if made.partial:
        note(
            f"some experts of {counted(len(made.partial), 'tensor')} saw no token of the text, and "
            "count as equally important: a longer text may reach them"
        )
    if as_json:
        say_json(
            {
                "path": str(target),
                "size": size,
                "tensors": made.n_tensors,
                "partial_tensors": list(made.partial),
                "chunks": made.n_chunks,
                "context_length": length,
                "perplexity": made.perplexity,
            }
        )
    else:
        say(f"{target}, {file_size(size)}: {_amount(made)}")


def _amount(made: Imatrix) -> str:
    return f"{counted(made.n_tensors, 'tensor')}, {counted(made.n_chunks, 'part')}"


def _target(model: str, path: Path, out: Path | None) -> Path:
    """Beside a file that the user named, and in the current folder for a name."""
    from adapter.models.parts import plain_name

    name = f"{plain_name(path)}-imatrix.gguf"
    if out is None:
        named = local_path(model)
        out = named.parent if named.is_file() else Path()
    return (out / name if out.is_dir() else out).absolute()
