r"""Which batches keep the bytes and how long they take, and where a prompt may be cut.

    python benchmarks/exactness.py

Quantizes a model to the usual types and tries each on the devices that there are, as the scheduler
does when a model first needs it, without flash attention. Weights that were quantized twice are of
no use but for this: which kernels run depends on their types alone. ``PYLLAMA_BACKEND`` chooses
the device.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import pyllama
from adapter.generation.exactness import exact_cuts, tried_sizes
from adapter.models import embedded_model

FILE_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_M",
    "IQ4_NL",
)  # fmt: skip
N_SEQUENCES = 16
SHOWN = (1, 2, 3, 4, 8, 16)
"""Sizes of batches whose times are printed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a GGUF file; SmolLM2-135M if left out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    model = arguments.model or embedded_model.fetch()
    print(f"- {pyllama.devices()[-1].description}, {pyllama.cpu_variant()}, {platform.platform()}")
    print(f"- {model.name}, llama.cpp {pyllama.llama_cpp_version()}, {arguments.threads} threads\n")
    sizes = " / ".join(map(str, SHOWN))
    print(f"| weights | sequences in a batch | prompts cut at any block | ms a step of {sizes} |")
    print("| --- | ---: | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in FILE_TYPES:
            path = Path(folder) / f"{name}.gguf"
            pyllama.quantize(model, path, name, allow_requantize=True)
            with pyllama.Model(path) as quantized:
                size, cuts, seconds = tried(quantized, arguments.threads)
            times = " / ".join(f"{1e3 * seconds[size]:.1f}" for size in SHOWN)
            print(f"| {name} | {size} | {'yes' if cuts else 'no'} | {times} |", flush=True)
            path.unlink()


def tried(model: pyllama.Model, n_threads: int) -> tuple[int, bool, dict[int, float]]:
    """The largest exact batch, whether cuts are exact, and the seconds of batches by their size."""

    def context(count: int) -> pyllama.Context:
        return pyllama.Context(
            model,
            n_ctx=256 * count,
            n_seq_max=count,
            n_batch=512,
            flash_attn="disabled",
            n_threads=n_threads,
        )

    with context(N_SEQUENCES) as made:
        largest = tried_sizes(made).largest
        seconds = tried_sizes(made, exact=False).measured
    with context(1) as made:
        return largest, exact_cuts(made), seconds


if __name__ == "__main__":
    main()
