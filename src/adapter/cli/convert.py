"""A model in Hugging Face's format, as GGUF."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.cli.console import fail, progress_bar, refuse, say, say_json
from adapter.cli.error_words import errors_told
from adapter.cli.options import AsJson, Force, require_model_name, require_writable
from adapter.models.local_path import local_path
from adapter.wording import file_size

if TYPE_CHECKING:
    from adapter.models.hub.listing import Listing

_OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_TEXTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_MAX_TEXT = 2**28


def convert(
    source: Annotated[
        str, typer.Argument(help="A folder in Hugging Face's format, or owner/repo of a hub.")
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            readable=False, help="The file to write; by default in pyllama's own folder."
        ),
    ] = None,
    outtype: Annotated[
        str, typer.Option(help="auto (16 bits as in the original), f32, f16, bf16 or q8_0.")
    ] = "auto",
    lora: Annotated[
        bool, typer.Option("--lora", help="The input is a LoRA adapter, as peft writes it.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="The adapter's model: a folder or owner/repo; its weights are not read."),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Allow Python code that comes with it to run."),
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Convert a model to GGUF by llama.cpp's own converter, in a process of its own.

    It needs torch and transformers, which the extra "convert" installs. The file appears when it is
    complete.
    """
    from adapter.models.conversion import convert as convert_folder
    from adapter.models.conversion import require_converter
    from adapter.models.embedded_model import model_dir

    if outtype not in _OUTTYPES:
        refuse(f"--outtype {outtype} is no type; there are {', '.join(_OUTTYPES)}")
    if base is not None and not lora:
        refuse("--base is for an adapter: give --lora, too")
    if out is not None and not out.is_dir():
        require_model_name(out)
    with errors_told():
        for each in (source, *([base] if base else [])):
            _require_source(each)
        require_converter()
        folder = _folder(source, weights=True, code=trust_remote_code)
        if not lora and _is_adapter(folder):
            fail(f"{source} is a LoRA adapter, and no model: give --lora")
        if lora:
            base = base or _base_of(folder)
            _require_source(base)
        lora_base = _folder(base, weights=False, code=trust_remote_code) if base else None
        if out is None:
            out = model_dir()
            out.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            name = source.rpartition("/")[2] if _is_repo(source) else folder.resolve().name
            out = out / f"{name}{'-lora' if lora else ''}-{{type}}.gguf"
        kinds = ("f16", "bf16") if outtype == "auto" else (outtype,)
        for kind in ("f32",) if lora and outtype == "auto" else kinds:
            named = out.name.replace("{type}", kind.upper())
            require_writable(out.with_name(named), force=force)
        with progress_bar(f"Converting {source}") as report:
            made = convert_folder(
                folder,
                out.absolute(),
                outtype="f32" if lora and outtype == "auto" else outtype,
                lora_base=lora_base,
                trust_remote_code=trust_remote_code,
                report=report,
            )
        size = made.stat().st_size
    if as_json:
        say_json({"path": str(made), "size": size})
    else:
        say(f"{made}, {file_size(size)}")


def _is_repo(source: str) -> bool:
    from adapter.models.hub.names import is_repo

    return not local_path(source).exists() and is_repo(source)


def _require_source(source: str) -> None:
    """End the command if this is neither a folder nor the name of a repository."""
    if not source.strip():
        refuse("the name of the model is empty")
    folder = local_path(source)
    if not folder.exists() and not _is_repo(source):
        fail(f"{source} is neither a folder nor owner/repo of a hub")
    if folder.suffix.casefold() == ".gguf" and folder.is_file():
        fail(f"{source} is a GGUF file already")
    if folder.exists() and not folder.is_dir():
        fail(f"{source} is no folder")


def _folder(source: str, *, weights: bool, code: bool) -> Path:
    """The folder of a model. A repository's files are downloaded into the cache."""
    from adapter.cli.pull import transfer_bar
    from adapter.models.hub.names import HubName
    from adapter.models.hub.pull import pull_files

    if not _is_repo(source):
        return local_path(source)
    with transfer_bar() as report:
        return pull_files(
            HubName(source), lambda listing: _wanted(listing, weights, code), report=report
        )


def _wanted(listing: Listing, weights: bool, code: bool) -> list[str]:
    """The files of a repository that the converter reads."""
    names = {path: path.rpartition("/")[2] for path in listing.files}
    patterns = [*_TEXTS, *(["*.py"] if code else [])]
    found = [
        path
        for path, name in names.items()
        if any(fnmatch(name, pattern) for pattern in patterns)
        and path.count("/") <= 1  # sentence-transformers has modules in folders
        and listing.files[path].size <= _MAX_TEXT
    ]
    if weights:
        top = [path for path in names if "/" not in path and not path.startswith("consolidated")]
        safe = [path for path in top if path.endswith(".safetensors")]
        kept = safe or [path for path in top if fnmatch(path, "*model*.bin")]
        if not kept:
            has_gguf = any(name.casefold().endswith(".gguf") for name in names.values())
            hint = f"; it has GGUF files: pyllama pull {listing.repo}" if has_gguf else ""
            fail(f"{listing.repo} holds no weights in Hugging Face's format{hint}")
        found += kept
    return found


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _base_of(folder: Path) -> str:
    """The model that an adapter was made for."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or not name:
        fail(f"{folder} does not say which model it is for; give --base")
    return name
