r"""Which ways of decoding many sequences at once keep the bits of one, on a GPU.

    python benchmarks/gpu_bytes.py [--backend cuda] [--shapes 135M 8B] [--widths 1 8 64]

Models have random weights of the shapes of real ones, in few layers. One sequence is watched while
others are decoded beside it, a token of each. A row of the table says for each width of a batch
whether the bits of its logits stay

- r: when the same is computed again,
- c: beside other companions,
- p: in another place of the batch,
- l: when a companion is longer (300, 600, 1,000, 1,300 tokens),
- m: when a companion makes attention read 1,024, 1,536 or 2,048 cells; the watched sequence is once
  short and once 700 tokens long.

and with which other widths it has the same bits, when attention reads 1,024 cells.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gpu
import numpy as np
from random_models import write_model

import pyllama
from pyllama import Batch, Context, Model

# n_embd, n_ff, n_head, n_head_kv, n_layer, n_vocab
SHAPES = {
    "135M": (576, 1536, 9, 3, 8, 49_152),
    "2B": (2048, 5632, 16, 8, 4, 32_000),
    "8B": (4096, 14_336, 32, 8, 4, 32_000),
    "tiny": (256, 512, 4, 2, 2, 2_000),
}
TYPES = {
    "135M": ("Q4_1", "F16"),
    "2B": ("Q4_K_M", "Q8_0"),
    "8B": ("Q4_0",),
    "tiny": ("Q4_0", "Q8_0"),
}
WIDTHS = (1, 4, 8, 16, 32, 64)
LENGTH = 2048
SHORT, LONG = 5, 700
LONGER = (300, 600, 1000, 1300)
READ = (1024, 1536, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--shapes", nargs="*", default=["135M", "2B", "8B"], choices=list(SHAPES))
    parser.add_argument("--widths", nargs="*", type=int, default=[*WIDTHS])
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-models"))
    arguments = parser.parse_args()
    gpu.print_machine()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    devices = pyllama.backend_devices(arguments.backend)[:1] if arguments.backend != "cpu" else []
    print(
        "| weights | attention, memory | " + " | ".join(map(str, arguments.widths)) + " | equal |"
    )
    print("| --- | --- |" + " --- |" * (len(arguments.widths) + 1))
    for shape in arguments.shapes:
        source = write_model(arguments.folder / f"bytes-{shape}.gguf", *SHAPES[shape])
        for name in TYPES[shape]:
            path = arguments.folder / f"bytes-{shape}-{name}.gguf"
            if not path.exists():
                pyllama.quantize(source, path, name, allow_requantize=True)
            with Model(path, devices=devices) as model:
                for way in (Way(False, False), Way(True, False), Way(True, True)):
                    begin = time.monotonic()
                    row = tried(model, way, arguments.widths)
                    seconds = time.monotonic() - begin
                    print(
                        f"| {shape} {name} | {way} | {' | '.join(row)} | <!-- {seconds:.0f} s -->"
                    )


@dataclass(frozen=True)
class Way:
    """How contexts are made."""

    flash: bool
    unified: bool

    def __str__(self) -> str:
        memory = "one for all" if self.unified else "of its own"
        return f"{'flash' if self.flash else 'no flash'}, {memory}"


def tried(model: Model, way: Way, widths: list[int]) -> list[str]:
    found, bits = [], {}
    for width in widths:
        cells = 4096 + 64 * width if way.unified else LENGTH * width
        with Context(
            model,
            n_ctx=cells,
            n_seq_max=width,
            n_batch=512,
            kv_unified=way.unified,
            flash_attn="enabled" if way.flash else "disabled",
        ) as context:
            checks, bits[width] = of_width(Beside(context, width), width)
        found.append(", ".join(name if stays else f"{name} ✗" for name, stays in checks.items()))
    groups: dict[bytes, list[str]] = {}
    for width, found_bits in bits.items():
        groups.setdefault(found_bits, []).append(str(width))
    return [*found, "; ".join(" = ".join(group) for group in groups.values())]


class Beside:
    """Decodes a token of the watched sequence, and one of each other."""

    def __init__(self, context: Context, width: int) -> None:
        self._context = context
        self._width = width

    def bits(
        self, *, place: int = 0, seed: int = 1, watched: int = SHORT, longer: int = 0
    ) -> bytes:
        """The watched sequence's logits.

        Args:
            longer: tokens of one companion, the farthest; 0 for as many as the others have.
        """
        context, width = self._context, self._width
        context.memory.clear(data=False)
        lengths = [SHORT] * width
        lengths[place] = watched
        if longer and width > 1:
            lengths[0 if place == width - 1 else width - 1] = longer
        n_vocab = context.model.vocab.n_tokens
        tokens = {
            seq_id: np.random.default_rng((0,) if seq_id == place else (seed, seq_id)).integers(
                3, n_vocab, LENGTH
            )
            for seq_id in range(width)
        }
        for seq_id in sorted(range(width), key=lambda seq_id: seq_id != place):
            for begin in range(0, lengths[seq_id], 512):
                part = tokens[seq_id][begin : min(begin + 512, lengths[seq_id])]
                batch = Batch.from_tokens(part, pos=begin, seq_id=seq_id, outputs="none")
                context.decode(batch)
        batch = Batch(width)
        for seq_id in range(width):
            token = int(tokens[seq_id][lengths[seq_id]])
            batch.add(token, lengths[seq_id], (seq_id,), output=True)
        context.decode(batch)
        return context.all_logits()[place].tobytes()


def of_width(beside: Beside, width: int) -> tuple[dict[str, bool], bytes]:
    """What keeps the bits at a width, and the bits if attention reads as many cells as READ[0]."""
    base = beside.bits()
    checks: dict[str, bool] = {"r": same(base, lambda: beside.bits())}
    if width == 1:
        return checks, base
    checks["c"] = same(base, *(partial_bits(beside, seed=seed) for seed in (2, 3)))
    checks["p"] = same(base, *(partial_bits(beside, place=at) for at in (width // 2, width - 1)))
    checks["l"] = same(base, *(partial_bits(beside, longer=size) for size in LONGER))
    read = beside.bits(longer=READ[0] - 1)
    long = beside.bits(longer=READ[0] - 1, watched=LONG)
    checks["m"] = same(
        read, *(partial_bits(beside, longer=size - 1) for size in READ[1:])
    ) and same(long, *(partial_bits(beside, longer=size - 1, watched=LONG) for size in READ[1:]))
    return checks, read


def partial_bits(beside: Beside, **options: int) -> Callable[[], bytes]:
    return lambda: beside.bits(**options)


def same(expected: bytes, *others: Callable[[], bytes]) -> bool:
    return all(other() == expected for other in others)


if __name__ == "__main__":
    main()
