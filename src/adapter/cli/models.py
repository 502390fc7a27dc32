"""The models that there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.cli.console import fail, file_size, note, row, say_json, show, table

if TYPE_CHECKING:
    from adapter.models.files import ModelInfo


def models(
    folder: Annotated[
        Path | None, typer.Argument(help="Where the models are; by default, where the demo's is.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, sizes in bytes.")] = False,
) -> None:
    """List the models of a folder, by what their files say, without loading them."""
    from adapter import ModelPool
    from adapter.models import embedded_model

    folder = folder or embedded_model.model_dir()
    try:
        with ModelPool(folder) as pool:
            found = pool.models()
    except OSError as error:
        fail(str(error))
    if as_json:
        say_json([_facts(model) for model in found])
        return
    made = table("name", "size", "type", "params", "arch", "context")
    for model in found:
        facts = model.quantization, _count(model.n_params), model.architecture
        row(made, model.name, file_size(model.size), *facts, model.context_length)
    show(made)
    for model in found:
        if model.problem is not None:
            note(f"{model.name}: {model.problem}")


def _facts(model: ModelInfo) -> dict[str, object]:
    return {
        "name": model.name,
        "paths": list(map(str, model.paths)),
        "size": model.size,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "n_params": model.n_params,
        "context_length": model.context_length,
        "problem": model.problem,
    }


def _count(number: int | None) -> str:
    """A count of parameters as model names give it, such as 135M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number and number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number or "")
