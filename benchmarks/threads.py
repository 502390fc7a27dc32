r"""Tokens a second on a CPU by the number of threads, idle and beside busy loops.

    python benchmarks/threads.py [--model FILE] [--busy 0 4] [--threads 16 15 8 4] [--rounds 2]

Each number of threads is fixed for one scheduler; "adaptive" may take fewer than the first number
while other work has the processors. They take turns in each round. ``GOMP_SPINCOUNT`` decides how
long libgomp's threads check before they sleep, and is read once: start one process for each value.
Without a model, one of the shape of SmolLM2-135M with random Q4_0 weights is written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import gpu
from random_models import SHAPES, write_model
from sigterm import exit_at_sigterm

import pyllama
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.scheduler import Scheduler

N_TOKENS = {1: 96, 8: 48}
"""Tokens of each answer, by how many run at once."""


def main() -> None:
    exit_at_sigterm()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-models"))
    parser.add_argument("--busy", nargs="*", type=int, default=[0, 4])
    parser.add_argument("--threads", nargs="*", type=int, default=[pyllama.cpu_math_cores()])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.model or write_model(arguments.folder / "135M.gguf", *SHAPES["135M"])
    spins = os.environ.get("GOMP_SPINCOUNT", "as the package sets it")
    print(f"{os.cpu_count()} CPUs, {pyllama.cpu_variant()}, GOMP_SPINCOUNT={spins}")
    with pyllama.Model(path, devices=[]) as model:
        most = arguments.threads[0]
        ways = {"adaptive": (most, None)}
        ways |= {str(count): (count, pyllama.ContextParams(n_threads=count))
                 for count in arguments.threads}  # fmt: skip
        for n_busy in arguments.busy:
            with busy_loops(n_busy):
                measure(model, ways, n_busy, arguments.rounds)


def measure(
    model: pyllama.Model,
    ways: dict[str, tuple[int, pyllama.ContextParams | None]],
    n_busy: int,
    rounds: int,
) -> None:
    schedulers = {
        name: Scheduler(
            model, context_length=1024, n_threads=count, n_cells=16 * 1024, max_sequences=16,
            max_queued=100, cache_bytes=0, reproducible=True, context=context,
        )
        for name, (count, context) in ways.items()
    }  # fmt: skip
    for scheduler in schedulers.values():
        speed(model, scheduler, 8)  # what is tried once is tried now
    for at_once in N_TOKENS:
        found: dict[str, list[float]] = {name: [] for name in schedulers}
        for _ in range(rounds):
            for name, scheduler in schedulers.items():
                found[name].append(speed(model, scheduler, at_once))
        parts = [
            f"{name} {statistics.median(each):.0f} ({'/'.join(f'{one:.0f}' for one in each)})"
            for name, each in found.items()
        ]
        print(f"{n_busy} busy, {at_once} at once, tokens/s: {', '.join(parts)}", flush=True)
    for scheduler in schedulers.values():
        scheduler.close()


def speed(model: pyllama.Model, scheduler: Scheduler, at_once: int) -> float:
    endless = Sampling(temperature=0.0, logit_bias={1: -100.0, 2: -100.0})
    requests = [
        GenerationRequest(gpu.prompt_tokens(model, 16, seed), N_TOKENS[at_once], endless, 1)
        for seed in range(at_once)
    ]
    begin = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(scheduler.generate, requests))
    return at_once * N_TOKENS[at_once] / (time.perf_counter() - begin)


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many other processes that compute all the time."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    main()
