"""The arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapter.cli.completion import completed
from adapter.cli.console import fail, refuse
from adapter.cli.references import HELP

Model = Annotated[str, typer.Argument(help=HELP, autocompletion=completed)]
ModelOrDemo = Annotated[
    str | None,
    typer.Argument(help=f"{HELP} Without one, the demo's.", autocompletion=completed),
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context", "-c", min=1, max=2**24, help="Tokens of context, prompt and answer together."
    ),
]
Threads = Annotated[int | None, typer.Option("-t", min=1, max=512, help="Threads.")]
Chunks = Annotated[int | None, typer.Option(min=1, help="Parts to compute; by default all.")]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        min=-1,
        max=2**31 - 1,
        help="Layers on GPUs: -1 all, 0 none; by default, what fits.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, sizes in bytes.")]


def require_model_name(target: Path) -> None:
    """End the command if it would write a model under a name that no command takes."""
    if not target.name.casefold().endswith(".gguf"):
        refuse(f"{target} does not end in .gguf, as the names of models have to")


def require_writable(target: Path, *, force: bool) -> None:
    """End the command if a file may not be replaced, or if its folder does not exist."""
    if not force and target.exists():
        fail(f"{target} is there already; to replace it: --force")
    folder = target.absolute().parent
    if not folder.is_dir():
        fail(f"there is no folder {folder}")
