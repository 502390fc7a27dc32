"""Downloads models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from adapter.cli.console import fail, messages, note, refuse, row, say_json, say_prose, show, table
from adapter.cli.error_words import errors_told
from adapter.cli.references import means_file
from adapter.models.local_path import local_path
from adapter.wording import file_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from adapter.models.hub.choice import Candidate
    from adapter.models.hub.listing import Listing
    from adapter.models.hub.names import HubName
    from adapter.models.hub.pull import Unclear

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="owner/repo, owner/repo:Q4_K_M or owner/repo:FILE of a hub; a URL; or a path."
        ),
    ],
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The SHA-256 that the file of a URL or path must have."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON: what is where.")] = False,
) -> None:
    """Download a model, or the missing parts of it, and check it.

    A download that broke off is continued. A hub's model goes into the cache of huggingface_hub,
    and HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE apply. The file of a URL or a path goes
    to pyllama's own folder.
    """
    _refuse_misuse(model, sha256)
    with errors_told():
        facts = _pull(model, sha256, as_json=as_json)
    if as_json:
        say_json(facts)
    else:
        say_prose(f"{facts['name']} is in {Path(facts['paths'][0]).parent}")


def _pull(model: str, sha256: str | None, *, as_json: bool) -> dict[str, Any]:
    from adapter.errors import ModelDownloadError
    from adapter.models.embedded_model import model_dir
    from adapter.models.hub import direct
    from adapter.models.hub.pull import Unclear
    from adapter.models.parts import plain_name

    is_url = "://" in model
    hub_name = None
    try:
        hub_name = direct.hub_name(model) if is_url else None
        if not is_url and not local_path(model).is_file() and not means_file(model):
            hub_name = _hub_name(model)
        if sha256 is not None and hub_name is not None:
            refuse("--sha256 is for a URL or a path; a hub's files are checked by its own digests")
        with transfer_bar() as report:
            if hub_name is not None:
                return _pull_from_hub(hub_name, report)
            if is_url:
                paths = direct.download(model, model_dir(), sha256=sha256, report=report)
            else:
                _require_file(model)
                source = local_path(model)
                paths = direct.copy(source, model_dir(), sha256=sha256, report=report)
            return _facts(plain_name(paths[0]), paths)
    except Unclear as error:
        _list_choices(error, as_json=as_json)
        fail(error.reason)
    except ModelDownloadError as error:
        local = hub_name is None and not is_url
        fail(f"{model} cannot be copied: {error.reason}" if local else str(error))
    except KeyboardInterrupt:
        if hub_name is not None or is_url:
            note("stopped; what has arrived is kept, and the same command goes on from there")
        raise


def _refuse_misuse(model: str, sha256: str | None) -> None:
    """End the command if its arguments are wrong on every machine."""
    if not model.strip():
        refuse("the name of the model is empty")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        refuse(f"--sha256 {sha256} is no SHA-256, which has 64 hexadecimal digits")
    if "://" not in model:
        return
    try:
        url = urlsplit(model)
        host = url.hostname
    except ValueError as error:
        refuse(f"{model} is no URL: {error}")
    if url.scheme not in ("http", "https"):
        refuse(f"{model} begins with {url.scheme}://, and only http:// and https:// can be used")
    if not host:
        refuse(f"{model} is no URL: it names no server")
    if not url.path.casefold().endswith(".gguf"):
        refuse(f"{model} does not end in the name of a .gguf file")


def _require_file(model: str) -> None:
    path = local_path(model)
    if not path.name.casefold().endswith(".gguf"):  # no machine takes it
        is_folder = "is a folder; give a .gguf file, or make one of it: pyllama convert"
        refuse(f"{model} {is_folder if path.is_dir() else 'is no .gguf file'}")
    if not path.is_file():
        fail(f"{model} is a folder" if path.is_dir() else f"there is no file {model}")


def _hub_name(model: str) -> HubName:
    from adapter.errors import InvalidModelNameError
    from adapter.models.hub.names import HubName

    try:
        return HubName.parse(model)
    except InvalidModelNameError as error:
        if local_path(model).exists():
            _require_file(model)
        if "/" not in model:
            refuse(f"{model} is neither a file nor a URL nor owner/repo of a hub")
        refuse(f"{model} {error.reason}; give owner/repo, owner/repo:Q4_K_M, a URL or a path")


def _pull_from_hub(name: HubName, report: Callable[[int, int], None]) -> dict[str, Any]:
    from adapter.models.hub.pull import pull as pull_model

    def listed(listing: Listing, chosen: Candidate) -> None:
        for path in (*chosen.files, *chosen.extras):
            note(f"{listing.repo}: {path}, {file_size(listing.files[path].size)}")

    pulled = pull_model(name, listed=listed, report=report)
    return _facts(pulled.name, pulled.paths, pulled.mmproj)


def pull_missing(name: str) -> None:
    """Download a hub's model that is not in the cache, with a bar.

    Raises:
        ModelDownloadError: it could not be downloaded.
        InvalidModelNameError: no model can have this name.
    """
    from adapter.errors import ModelNotFoundError
    from adapter.models.hub.names import PREFIX, HubName
    from adapter.models.hub.pull import cached_path

    if not name.startswith(PREFIX):
        return
    try:
        cached_path(name)
    except ModelNotFoundError:
        with transfer_bar() as report:
            _pull_from_hub(HubName.parse(name), report)


def _facts(name: str, paths: Sequence[Path], mmproj: Path | None = None) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in (*paths, *([mmproj] if mmproj else [])))
    return {
        "name": name,
        "paths": list(map(str, paths)),
        "mmproj": mmproj and str(mmproj),
        "size": size,
    }


@contextmanager
def transfer_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal for the block. The block gets a function of the bytes done and of
    all.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    shown = messages.is_interactive  # no dumb terminal
    with Progress(*columns, console=messages, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _list_choices(error: Unclear, *, as_json: bool) -> None:
    if as_json:
        say_json({"choices": list(error.choices)})
    if as_json or not error.models:
        return
    made = table("pull", "files", "mmproj")
    for name, model in zip(error.choices, error.models, strict=True):
        row(made, name.removeprefix("hf:"), len(model.files), "yes" if model.mmproj else "")
    show(made)
