"""Commands about the models on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.cli.console import fail, note, row, say, say_json, show, table, typed
from adapter.cli.error_words import errors_told
from adapter.cli.options import AsJson, Model
from adapter.wording import counted, file_size, reason_of, short_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapter.models.info import ModelInfo
    from adapter.models.stores import StoredModel


def models(
    folder: Annotated[
        Path | None,
        typer.Argument(
            readable=False, help="A folder of models; by default pyllama's and other programs'."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models by the headers of their files, without loading them.

    Without a folder, they are those of pyllama's own folder, of the cache of huggingface_hub, of
    LM Studio and of Ollama. Each name can be given to the other commands.
    """
    from adapter.models.embedded_model import model_dir
    from adapter.models.files import ModelFolder

    try:
        if folder is not None and not folder.is_dir():
            fail(f"{folder} is {'no folder' if folder.exists() else 'not there'}")
        if folder is not None:
            found = list(ModelFolder(folder, {}).models())
        else:
            own = model_dir()
            found = list(ModelFolder(own, {}).models()) if own.is_dir() else []
            found += _stored()
    except OSError as error:
        fail(reason_of(error))
    if as_json:
        say_json([_facts(model) for model in found])
        return
    if not found:
        note("there are none; get one with: pyllama pull owner/repo:Q4_K_M")
        return
    made = table("name", "size", "type", "params", "arch", "context")
    for model in found:
        facts = model.quantization, short_count(model.n_params or 0), model.architecture
        row(made, model.name, file_size(model.size), *facts, model.context_length)
    show(made)
    for model in found:
        if model.problem is not None:
            note(f"{model.name}: {model.problem}")


def _stored() -> list[ModelInfo]:
    """The models that other programs keep. One whose file cannot be read has a problem."""
    from adapter.models.info import ModelInfo, read_info
    from adapter.models.stores import stored_models

    def described(model: StoredModel) -> ModelInfo:
        try:
            size = sum(path.stat().st_size for path in model.paths)
        except OSError as error:
            return ModelInfo(model.name, model.paths, 0, problem=reason_of(error))
        return read_info(model.name, model.paths, size, ())

    return list(map(described, stored_models()))


def rm(
    model: Model,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model's files from pyllama's own folder, or from the cache of huggingface_hub.

    Models of LM Studio and Ollama are never deleted.
    """
    from adapter.models.hub.choice import UnclearError

    try:
        with errors_told():
            files, delete = _removal(model)
            if not files:
                fail(f"no model {model!r}; pyllama models lists those that there are")
            size = sum(path.stat().st_size for path in files)
            for path in files:
                note(str(path))
            what = f"{counted(len(files), 'file')}, {file_size(size)}"
            if not yes:
                if not sys.stdin.isatty():
                    fail("nothing was deleted; to do it without a question: --yes")
                if not _agreed(f"Delete {what}? [y/N]: "):
                    note("nothing was deleted")
                    raise typer.Exit(1)
            delete()
    except UnclearError as error:
        fail(str(error))
    say(f"deleted {model}: {file_size(size)}")


def _agreed(question: str) -> bool:
    """Whether the user says yes. Ctrl-D says no, and Ctrl-C ends the command as everywhere."""
    try:
        return typed(question).strip().casefold() in ("y", "yes")
    except EOFError:
        return False


def _removal(model: str) -> tuple[list[Path], Callable[[], None]]:
    """The files of a model, and the function that deletes them."""
    from adapter.cli.references import refer
    from adapter.models.embedded_model import model_dir
    from adapter.models.hub.cache import CachedRepository
    from adapter.models.hub.names import PREFIX, HubName
    from adapter.models.hub.removal import removable, remove
    from adapter.models.parts import parts
    from adapter.models.stores import is_stored_name

    reference = refer(model)
    if reference.name.startswith(PREFIX):
        name = HubName.parse(reference.name)
        cached = CachedRepository(name.repo)
        files = removable(cached, name.tag)
        return files, lambda: remove(cached, files)
    if is_stored_name(reference.name):
        fail(f"{reference.name} is another program's: {_delete_there(reference.name)}")
    if reference.folder != model_dir():
        fail(f"{model} is not in {model_dir()}; delete the file itself")
    paths = [path for path in parts(reference.path()) if path.exists()]
    return paths, lambda: _unlink(paths)


def _delete_there(name: str) -> str:
    """How to delete a model of another program."""
    from adapter.models.stores import OLLAMA

    if name.startswith(OLLAMA):
        return f"delete it there, with: ollama rm {shlex.quote(name.removeprefix(OLLAMA))}"
    return "delete it in LM Studio, under My Models"


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:  # the first part first: without it there is no model
        path.unlink()


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
