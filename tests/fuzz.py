"""Damages files of every kind at random, for as long as one likes: ``nox -s fuzz``.

    python tests/fuzz.py --seed 2 --count 5000 state

The tests do the same with a few hundred files each. Exits with 1 after a harmful one, whose seed
and number name it: ``mutations(target.intact, seed=…, count=…)`` makes it again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzzing import Named, Use, mutations, run_in_child
from gguf_parts import UINT32, Parts
from synthetic import write_model
from synthetic_files import write_lora, write_tensors

sys.path.insert(0, str(Path(__file__).parent / "pyllama"))

SMALL = {"n_embd": 32, "n_head": 2, "n_head_kv": 1, "n_ff": 32}
MODELS = {
    "llama": {},
    "spm": {"tokenizer": "spm"},
    "no vocabulary": {"tokenizer": "none"},
    "mamba": {"architecture": "mamba"},
}
STATES = ("file", "sequence file", "bytes", "sequence bytes", "forged", "sequence forged")


@dataclass(frozen=True)
class Target:
    """A kind of file: what is done with one, an intact one, and what makes random damage of it."""

    use: Use
    intact: bytes
    mutations: Callable[..., Iterable[Named]]
    #: The parts of a GGUF file.
    parts: Parts | None = None


def targets(folder: Path, write: Callable[..., Path] | None = None) -> Iterator[tuple[str, Target]]:
    """Every kind of file, by name.

    :param write: what writes models; the tests' own keeps them.
    """
    if write is None:
        count = itertools.count()
        write = lambda **options: write_model(folder / f"{next(count)}.gguf", **options)  # noqa: E731
    models = {name: write(**SMALL, **options) for name, options in MODELS.items()}
    for name, path in models.items():
        yield f"{name} model", _gguf("using_files:use_model", path)
    llama = str(models["llama"])
    yield "lora", _gguf("using_files:use_lora", lora(folder / "lora"), llama)
    directions = {"direction.1": np.ones(32, np.float32)}
    vector = write_tensors(folder / "vector", directions, architecture="controlvector")
    yield "control vector", _gguf("using_files:use_control_vector", vector, llama)
    yield "imatrix", _gguf("using_files:use_imatrix", imatrix(folder / "imatrix"))
    for name in ("llama", "mamba"):
        for form in STATES:
            yield f"{name} state {form}", state(folder / "state", models[name], form)


def lora(path: Path) -> Path:
    """An adapter for the small llama."""
    random = np.random.default_rng(1)
    shapes = {"attn_q": (32, 32), "attn_v": (16, 32), "ffn_down": (32, 32)}
    write_lora(
        path,
        {
            f"blk.0.{name}.weight": (
                random.standard_normal((4, columns), dtype=np.float32),
                random.standard_normal((rows, 4), dtype=np.float32),
            )
            for name, (rows, columns) in shapes.items()
        },
    )
    parts = Parts(path.read_bytes())
    path.write_bytes(parts.with_key("adapter.alora.invocation_tokens", UINT32, [1, 2, 3]))
    return path


def imatrix(path: Path) -> Path:
    """An importance matrix of two tensors."""
    tensors = {}
    for name, columns in (("blk.0.attn_q.weight", 32), ("blk.0.ffn_down.weight", 64)):
        tensors[f"{name}.in_sum2"] = np.ones((1, columns), np.float32)
        tensors[f"{name}.counts"] = np.ones((1, 1), np.float32)
    metadata = {
        "imatrix.datasets": ["text.txt"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 512,
    }
    return write_tensors(path, tensors, architecture="llama", metadata=metadata)


def state(path: Path, model: Path, form: str) -> Target:
    """A saved state of two sequences, or of one of them."""
    import using_files

    import pyllama

    with using_files._context(str(model)) as context:
        for seq_id in (0, 1):
            context.decode(pyllama.Batch.from_tokens([1, 10, 20], seq_id=seq_id))
        if form == "file":
            context.state.save_file(path, [1, 10, 20])
        elif form == "sequence file":
            context.state.seq_save_file(path, 1, [1, 10, 20])
        elif form in ("bytes", "forged"):
            path.write_bytes(context.state.get_data())
        else:
            path.write_bytes(context.state.seq_get_data(1))
    data = path.read_bytes()
    use = Use("using_files:use_state", str(model), form)
    return Target(use, data, functools.partial(_mostly_at_the_beginning, data))


def _gguf(use: str, path: Path, *arguments: str) -> Target:
    data = path.read_bytes()
    parts = Parts(data)
    damage = functools.partial(mutations, data, end=parts.header_size)
    return Target(Use(use, *arguments), data, damage, parts)


def _mostly_at_the_beginning(data: bytes, *, seed: int, count: int) -> Iterator[Named]:
    """Nothing that is computed from stands in the tensors behind it."""
    yield from mutations(data, seed=seed, count=count - count // 4, end=min(len(data), 300))
    yield from mutations(data, seed=seed + 2**32, count=count // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", nargs="*", help="words that the kinds' names have; all by default")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind")
    asked = parser.parse_args()
    harmful = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, target in targets(Path(folder)):
            if not all(word in name for word in asked.kind):
                continue
            files = target.mutations(seed=asked.seed, count=asked.count)
            if target.parts is not None:
                files = itertools.chain(target.parts.wrong_numbers(), files)
            kinds: Counter[str] = Counter()
            for outcome in run_in_child(target.use, files):
                kinds[outcome.kind] += 1
                if outcome.kind not in ("accepted", "refused"):
                    harmful += 1
                    print(f"{name}: {outcome}", flush=True)
            print(f"{name}: {dict(kinds)}", flush=True)
    sys.exit(bool(harmful))


if __name__ == "__main__":
    main()
