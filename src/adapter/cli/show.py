"""Shows one model: its header, the memory it takes, and what it would run on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter.cli.console import note, refuse, row, say, say_json, say_prose, show, table
from adapter.cli.error_words import errors_told
from adapter.cli.faster_types import faster_types
from adapter.cli.options import AsJson, Model
from adapter.wording import counted, file_size

if TYPE_CHECKING:
    import pyllama
    from adapter.models.hardware import Placement

_LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
_SHOWN = 60


def show_model(
    model: Model,
    template: Annotated[
        bool, typer.Option("--template", help="Write the chat template, and nothing else.")
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Write all metadata, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's header, the memory it needs, and the devices it would run on.

    No weights are read.
    """
    import pyllama
    from adapter.cli.references import refer
    from adapter.models.hardware import HardwareManager

    if template and metadata:
        refuse("--template and --metadata exclude each other")
    with errors_told():
        path = refer(model).path()
        facts = _read(path)
        if template:
            _write_template(facts, as_json=as_json)
            return
        if metadata:
            _write_metadata(facts, as_json=as_json)
            return
        uses = [pyllama.memory_use(path, n_ctx=length) for length in _lengths(facts.n_ctx_train)]
        placement = HardwareManager().plan(path)
    if as_json:
        say_json(_as_json(facts, uses, placement))
        return
    _write(facts, uses, placement)


def fit(
    model: Model,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context", "-c", min=1, max=2**24, help="Tokens of context; may be repeated."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what fits on which device, for several lengths of context.

    llama.cpp compares it with the memory that is free now. No weights are read.
    """
    from adapter.cli.references import refer
    from adapter.models.hardware import HardwareManager

    with errors_told():
        path = refer(model).path()
        lengths = context or _lengths(_read(path).n_ctx_train)
        manager = HardwareManager()
        placements = [manager.plan(path, context_length=length) for length in lengths]
    if as_json:
        say_json([_placement(placement) for placement in placements])
        return
    made = table("context", "fits", "takes", "of free", "on GPUs", "full requests at once")
    for placement in placements:
        row(
            made,
            placement.context_length,
            "yes" if placement.fits else "no",
            _per_memory(placement.memory, "\n"),
            _per_memory(placement.free, "\n"),
            _layers(placement),
            placement.n_contexts,
        )
    show(made)
    first, *others = placements
    for reason in first.reasons:
        if all(reason in other.reasons for other in others):
            say_prose(reason)


@dataclass(frozen=True)
class _Facts:
    paths: tuple[Path, ...]
    size: int
    metadata: dict[str, str]
    template: str | None
    n_params: int
    n_vocab: int
    n_ctx_train: int
    n_layer: int
    ftype: str | None
    tensors: tuple[pyllama.TensorInfo, ...]

    @property
    def bits_per_weight(self) -> float:
        return sum(t.size for t in self.tensors) * 8 / self.n_params if self.n_params else 0.0


def _read(path: Path) -> _Facts:
    import pyllama
    from adapter.models.info import unlogged
    from adapter.models.parts import parts

    paths = parts(path)
    with unlogged(), pyllama.Model(path, vocab_only=True) as model:
        return _Facts(
            paths=paths,
            size=sum(part.stat().st_size for part in paths),
            metadata=dict(model.metadata),
            template=model.chat_template(),
            n_params=model.n_params,
            n_vocab=model.vocab.n_tokens,
            n_ctx_train=_number(model, "context_length"),
            n_layer=_number(model, "block_count"),
            ftype=model.ftype,
            tensors=tuple(t for part in paths for t in pyllama.tensor_infos(part)),
        )


def _number(model: pyllama.Model, key: str) -> int:
    text = model.metadata.get(f"{model.metadata.get('general.architecture')}.{key}", "0")
    return int(text) if text.isdecimal() else 0


def _lengths(n_ctx_train: int) -> list[int]:
    longest = min(n_ctx_train or _LENGTHS[1], 2**24)
    return [*(length for length in _LENGTHS if length < longest), longest]


def _write(facts: _Facts, uses: list[pyllama.MemoryUse], placement: Placement) -> None:
    architecture = facts.metadata.get("general.architecture")
    for key, value in (
        ("file", facts.paths[0]),
        ("files", len(facts.paths) if len(facts.paths) > 1 else None),
        ("size", file_size(facts.size)),
        ("name", facts.metadata.get("general.name")),
        ("architecture", architecture),
        ("quantization", facts.ftype),
        ("parameters", f"{facts.n_params:,}"),
        ("bits per weight", f"{facts.bits_per_weight:.2f}"),
        ("trained context", f"{facts.n_ctx_train:,} tokens" if facts.n_ctx_train else None),
        ("layers", facts.n_layer or None),
        ("vocabulary", f"{facts.n_vocab:,} tokens"),
        ("license", facts.metadata.get("general.license")),
        ("chat template", _first_line(facts.template)),
    ):
        if value is not None:
            say_prose(f"{key + ':':<17} {value}", indent=18 * " ")
    made = table("tensor type", "tensors", "size", "share")
    for kind, (count, size) in _by_type(facts.tensors).items():
        total = sum(tensor.size for tensor in facts.tensors) or 1
        row(made, kind, count, file_size(size), f"{100 * size / total:.1f} %")
    show(made)
    made = table("context", "weights", "context takes", "computing", "together")
    for use in uses:
        memories = (*use.devices, use.host)
        numbers = [sum(getattr(m, what) for m in memories) for what in ("model", "context")]
        numbers.append(sum(memory.compute for memory in memories))
        row(made, use.n_ctx, *map(file_size, numbers), file_size(sum(numbers)))
    show(made)
    for reason in placement.reasons:
        say_prose(reason)
    fits = "fits" if placement.fits else "does not fit"
    requests = (
        f"{counted(placement.n_contexts, 'request')} of "
        f"{counted(placement.context_length, 'token')} at once"
    )
    if placement.n_sequences > placement.n_contexts:
        requests += f", or up to {placement.n_sequences} shorter ones,"
    say_prose(f"with {requests} it {fits}: {_per_memory(placement.memory)}")
    faster = _faster(facts, placement)
    if faster:
        note(
            f"on this CPU {' or '.join(faster)} has about the same size and needs 0.3 to 0.7 "
            "of the time for prompts, and for many requests at once"
        )
    if facts.template is None:
        note("it has no chat template: conversations become plain text")


def _faster(facts: _Facts, placement: Placement) -> tuple[str, ...]:
    """File types that would be markedly faster where the model runs."""
    import pyllama

    if placement.devices:
        return ()
    sizes = {kind: size for kind, (_, size) in _by_type(facts.tensors).items()}
    return faster_types(sizes, pyllama.cpu_variant())


def _first_line(template: str | None) -> str | None:
    if template is None:
        return None
    line = " ".join(template.split())
    cut = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
    return f"{len(template):,} characters: {cut}"


def _write_template(facts: _Facts, *, as_json: bool) -> None:
    if as_json:
        say_json(facts.template)
    elif facts.template is not None:
        say(facts.template)
    else:
        note("it has no chat template")


def _write_metadata(facts: _Facts, *, as_json: bool) -> None:
    if as_json:
        say_json(facts.metadata)
        return
    for key, value in facts.metadata.items():
        text = value.replace("\n", "\\n")
        say(f"{key} = {text if len(text) <= 500 else text[:500] + '…'}")


def _by_type(tensors: tuple[pyllama.TensorInfo, ...]) -> dict[str, tuple[int, int]]:
    """How many tensors a type has, and their bytes, the largest first."""
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for tensor in tensors:
        count, size = counts[tensor.type]
        counts[tensor.type] = count + 1, size + tensor.size
    return dict(sorted(counts.items(), key=lambda item: -item[1][1]))


def _per_memory(sizes: Any, between: str = ", ") -> str:
    return between.join(f"{name} {file_size(size)}" for name, size in sizes.items())


def _layers(placement: Placement) -> str:
    if not placement.devices:
        return "none"
    return "all layers" if placement.n_gpu_layers < 0 else counted(placement.n_gpu_layers, "layer")


def _placement(placement: Placement) -> dict[str, object]:
    return {
        "context_length": placement.context_length,
        "fits": placement.fits,
        "devices": [device.name for device in placement.devices],
        "n_gpu_layers": placement.n_gpu_layers,
        "n_sequences": placement.n_sequences,
        "n_threads": placement.n_threads,
        "memory": dict(placement.memory),
        "free": dict(placement.free),
        "reasons": list(placement.reasons),
    }


def _as_json(
    facts: _Facts, uses: list[pyllama.MemoryUse], placement: Placement
) -> dict[str, object]:
    return {
        "paths": list(map(str, facts.paths)),
        "size": facts.size,
        "quantization": facts.ftype,
        "faster_types": list(_faster(facts, placement)),
        "n_params": facts.n_params,
        "bits_per_weight": facts.bits_per_weight,
        "context_length": facts.n_ctx_train,
        "n_layer": facts.n_layer,
        "n_vocab": facts.n_vocab,
        "metadata": facts.metadata,
        "chat_template": facts.template,
        "tensor_types": {
            kind: {"count": count, "size": size}
            for kind, (count, size) in _by_type(facts.tensors).items()
        },
        "memory": [
            {
                "n_ctx": use.n_ctx,
                "memories": {
                    (memory.device.name if memory.device else "host"): {
                        "model": memory.model,
                        "context": memory.context,
                        "compute": memory.compute,
                    }
                    for memory in (*use.devices, use.host)
                },
            }
            for use in uses
        ],
        "placement": _placement(placement),
    }
