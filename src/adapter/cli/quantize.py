"""Makes a model's weights smaller, and measures what that costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from adapter.cli.console import (
    fail,
    file_text,
    note,
    progress_bar,
    refuse,
    row,
    say,
    say_json,
    show,
    table,
)
from adapter.cli.error_words import errors_told
from adapter.cli.options import (
    AsJson,
    Chunks,
    Force,
    GpuLayers,
    Model,
    Threads,
    require_model_name,
    require_writable,
)
from adapter.cli.session import found, require_generator
from adapter.models.local_path import local_path
from adapter.wording import counted, file_size

if TYPE_CHECKING:
    import pyllama

_ONLY_READ = ("NVFP4",)


def quantize(
    model: Model,
    kind: Annotated[
        str,
        typer.Argument(metavar="TYPE", help="Such as Q4_K_M, Q8_0, IQ4_XS or F16."),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            readable=False, help="The file to write; by default the name with the type, beside it."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", readable=False, help="An importance matrix.")
    ] = None,
    requantize: Annotated[
        bool,
        typer.Option(
            "--requantize", help="Also quantize already quantized weights, which costs quality."
        ),
    ] = False,
    pure: Annotated[
        bool, typer.Option("--pure", help="Use one type, instead of a mixture.")
    ] = False,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="Write as many files as the model has.")
    ] = False,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the result, and write nothing.")
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write a model with its weights quantized by llama.cpp.

    Begin with F32, F16 or BF16 if you can. The file appears when it is complete.
    """
    import pyllama
    from adapter.models.parts import parts

    ftype = _file_type(kind)
    with errors_told():
        path = found(model).path()
        target = out if out is not None else _beside(model, path, ftype)
        if target.is_dir():
            target = target / _name(path, ftype)
        require_model_name(target)
        if any(target.exists() and target.samefile(part) for part in parts(path)):
            refuse(f"{target} is the model itself; give another file to write")
        if imatrix is not None and not imatrix.is_file():
            fail(f"{imatrix} is {'no file' if imatrix.exists() else 'not there'}")
        if not dry_run:
            require_writable(target, force=force)
        with pyllama.Model(path, vocab_only=True) as original:
            n_params = original.n_params
        before = sum(part.stat().st_size for part in parts(path))
        settings: dict[str, Any] = {
            "imatrix": imatrix,
            "allow_requantize": requantize,
            "pure": pure,
            "keep_split": keep_split,
            "nthread": threads,
        }
        with _errors_explained(model, ftype):
            done = pyllama.quantize(path, None, ftype, dry_run=True, **settings)
            if not dry_run:
                _require_room(target, done.size)
                with progress_bar(f"Quantizing to {ftype}") as report:
                    done = pyllama.quantize(path, target, ftype, progress=report, **settings)
    _tell(done, ftype, before, n_params, as_json=as_json)


def _file_type(kind: str) -> Any:
    """The type that a user wrote, as ``pyllama.quantize`` takes it."""
    from pyllama.file_type import FileType

    ftype = kind.upper()
    types = [name for name in get_args(FileType) if name not in _ONLY_READ]
    if ftype not in types:
        refuse(f"{kind} is no type to quantize to; there are {', '.join(types)}")
    return ftype


@contextmanager
def _errors_explained(model: str, ftype: str) -> Iterator[None]:
    """End with what the user can do about what ``pyllama.quantize`` raises."""
    import pyllama

    try:
        yield
    except pyllama.QuantizeError as error:
        if "requantiz" in str(error):
            fail(f"{error}; give a model in F32, F16 or BF16, or --requantize")
        if "requires an imatrix" in str(error):
            fail(
                f"{ftype} needs an importance matrix: pyllama imatrix {model} TEXT, and then "
                "--imatrix FILE"
            )
        raise
    except ValueError as error:
        fail(str(error))


def _tell(
    done: pyllama.Quantization, ftype: str, before: int, n_params: int, *, as_json: bool
) -> None:
    written = sum(Path(path).stat().st_size for path in done.paths) or done.size
    kinds: dict[str, int] = {}
    for kind in done.tensor_types.values():
        kinds[kind] = kinds.get(kind, 0) + 1
    bits = [8 * size / n_params if n_params else 0.0 for size in (done.original_size, done.size)]
    if as_json:
        say_json(
            {
                "paths": list(done.paths),
                "type": ftype,
                "size_before": before,
                "size": written,
                "bits_per_weight_before": bits[0],
                "bits_per_weight": bits[1],
                "tensor_types": kinds,
            }
        )
        return
    made = table("", "size", "bits per weight")
    row(made, "before", file_size(before), f"{bits[0]:.2f}")
    row(made, ftype, file_size(written), f"{bits[1]:.2f}")
    show(made)
    for path in done.paths:
        say(path)
    if not done.paths:
        note("nothing was written")


def _beside(model: str, path: Path, ftype: str) -> Path:
    """Beside a file that the user named; in pyllama's own folder for a name."""
    from adapter.models.embedded_model import model_dir

    named = local_path(model)
    if named.is_file():
        return named.parent / _name(path, ftype)
    folder = model_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / _name(path, ftype)


def _name(path: Path, ftype: str) -> str:
    """The name of a model with its type replaced."""
    from adapter.models.hub.choice import quantization_of
    from adapter.models.parts import plain_name

    name = plain_name(path)
    old = quantization_of(name)
    if old is not None:
        bare = re.sub(rf"[-._]?{re.escape(old)}\Z", "", name, flags=re.IGNORECASE)
        name = bare or name
    return f"{name}-{ftype}.gguf"


def _require_room(target: Path, size: int) -> None:
    from adapter.models.disk_space import too_little_room

    folder = target.absolute().parent
    free = too_little_room(folder, size)
    if free is not None:
        fail(f"{file_size(size)} would be written, but {folder} has {free}")


def perplexity(
    model: Model,
    text: Annotated[
        Path, typer.Argument(readable=False, help="A file of text, the longer the better.")
    ],
    length: Annotated[
        int, typer.Option("--context", "-c", min=8, max=2**20, help="Tokens of each part.")
    ] = 512,
    chunks: Chunks = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model predicts a text: lower is better.

    Measured as llama-perplexity does: the second half of each part is predicted from what comes
    before. Compare models of one vocabulary, with one text and one length.
    """
    import pyllama
    from adapter.cli.text_surprise import measure
    from adapter.models.hardware import HardwareManager

    with errors_told():
        path = found(model).path()
        with pyllama.Model(path, vocab_only=True) as header:
            require_generator(model, header)
        content = file_text(text)
        placement = HardwareManager().plan(
            path, context_length=length, n_gpu_layers=gpu_layers, n_contexts=1
        )
        with progress_bar("Computing") as report:
            try:
                surprise = measure(
                    path,
                    placement,
                    content,
                    n_ctx=length,
                    n_chunks=chunks,
                    n_threads=threads,
                    report=report,
                )
            except ValueError as error:
                fail(str(error))
    if as_json:
        say_json(
            {
                "perplexity": surprise.perplexity,
                "error": surprise.error,
                "tokens": surprise.n_tokens,
                "chunks": surprise.n_chunks,
                "context_length": length,
            }
        )
        return
    say(
        f"perplexity: {surprise.perplexity:.4f} ± {surprise.error:.4f} over {surprise.n_tokens} "
        f"tokens, in {counted(surprise.n_chunks, 'part')} of {length}"
    )
