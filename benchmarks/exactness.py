r"""Where bytes stay: how many sequences a batch may hold, and where a prompt may be cut.

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
from adapter.generation.exactness import exact_batch_size, exact_cuts
from adapter.models import embedded_model

FILE_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "Q3_K_M",
    "IQ4_NL",
)  # fmt: skip
N_SEQUENCES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a GGUF file; SmolLM2-135M if left out")
    model = parser.parse_args().model or embedded_model.fetch()
    print(f"- {pyllama.devices()[-1].description}, {pyllama.cpu_variant()}, {platform.platform()}")
    print(f"- {model.name}, llama.cpp {pyllama.llama_cpp_version()}\n")
    print("| weights | sequences in a batch | prompts cut at any block |")
    print("| --- | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in FILE_TYPES:
            path = Path(folder) / f"{name}.gguf"
            pyllama.quantize(model, path, name, allow_requantize=True)
            with pyllama.Model(path) as quantized:
                size, cuts = tried(quantized)
            print(f"| {name} | {size} | {'yes' if cuts else 'no'} |", flush=True)
            path.unlink()


def tried(model: pyllama.Model) -> tuple[int, bool]:
    """The largest exact batch, and whether cuts are."""
    options = {"n_batch": 512, "flash_attn": "disabled"}
    with pyllama.Context(
        model, n_ctx=64 * N_SEQUENCES, n_seq_max=N_SEQUENCES, **options
    ) as context:
        size = exact_batch_size(context, range(N_SEQUENCES))
    with pyllama.Context(model, n_ctx=1024, **options) as context:
        return size, exact_cuts(context)


if __name__ == "__main__":
    main()
