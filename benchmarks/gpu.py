r"""What pyllama reaches on GPUs beside llama.cpp's own programs, in one run.

    python benchmarks/gpu.py --llama-cpp-bin BUILD/bin [--backends cuda vulkan] [--shapes 0.5B 8B]

``BUILD`` is llama.cpp's own build of the pinned sources with the same backends; see overhead.py.
pyllama has to be built with them too: ``pip install . -C cmake.define.GGML_CUDA=ON -C
cmake.define.GGML_VULKAN=ON``. Models are written with random Q4_0 weights, of the shapes of real
ones: speed does not depend on values. ``--model`` adds a real one, on which a question is asked
through DSPy on each backend and on the CPU.

llama.cpp's programs and pyllama take turns, in rounds whose order alternates; figures are medians.
All have all layers on the device, flash attention on, and wait for the device after each decode.
What a backend compiles and records when it meets a shape for the first time is left out: short
runs would measure little else.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from random_models import SHAPES, write_model
from sigterm import exit_at_sigterm

import pyllama
from pyllama import Batch, Context, Model, Sampler, SamplerChain

N_PROMPT, N_DECODE = 512, 128
N_BATCHED_PROMPT, N_BATCHED_DECODE = 128, 64
N_SHARED, N_OWN, N_ANSWER = 400, 70, 32
N_RUNS = 10
PARALLEL = (1, 8, 32, 64, 128)
GIB, MIB = 2**30, 2**20

SAMPLERS: dict[str, Callable[[int], list[Sampler]]] = {
    "greedy": lambda _: [Sampler.greedy()],
    "top-k, temp, dist": lambda seed: [Sampler.top_k(40), Sampler.temp(0.8), Sampler.dist(seed)],
}


def main() -> None:
    exit_at_sigterm()
    arguments = parse_arguments()
    if arguments.ask is not None:
        json.dump(ask(*arguments.ask), sys.stdout)
        return
    print_machine()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    models = {
        shape: write_model(folder / f"{shape}.gguf", *SHAPES[shape]) for shape in arguments.shapes
    }
    for backend in arguments.backends:
        devices = pyllama.backend_devices(backend)[:1]
        for shape, path in models.items():
            if "speed" in arguments.measure:
                compare_speed(arguments, backend, devices, shape, path)
            if "memory" in arguments.measure:
                compare_memory(backend, devices, shape, path)
            if "batched" in arguments.measure:
                compare_batched(arguments, backend, devices, shape, path)
            if "scheduler" in arguments.measure:
                measure_scheduler(arguments, backend, devices, shape, path)
    if arguments.model is not None:
        for backend in ("cpu", *arguments.backends):
            report(f"DSPy question on {backend}", **ask_apart(arguments.model, backend))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--llama-cpp-bin", type=Path)
    parser.add_argument("--backends", nargs="*", default=["cuda", "vulkan"])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES)[1:], choices=list(SHAPES))
    measures = ["speed", "memory", "batched", "scheduler"]
    parser.add_argument("--measure", nargs="*", default=measures, choices=measures)
    parser.add_argument("--parallel", nargs="*", type=int, default=[*PARALLEL])
    parser.add_argument("--sequences", nargs="*", type=int, default=[64], help="requests at once")
    parser.add_argument(
        "--batch-width",
        type=int,
        default=0,
        help="padded batches as well; CUDA needs GGML_CUDA_DISABLE_GRAPHS=1 in the environment",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-models"))
    parser.add_argument("--model", type=Path, help="a real model, for a question through DSPy")
    parser.add_argument("--ask", nargs=2, metavar=("MODEL", "BACKEND"), help=argparse.SUPPRESS)
    return parser.parse_args()


def print_machine() -> None:
    print(f"machine: {platform.platform()}, Python {platform.python_version()}")
    print(f"llama.cpp {pyllama.llama_cpp_version()}")
    for device in pyllama.devices():
        free, total = device.memory
        print(
            f"{device.name}: {device.description}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        )


def report(title: str, **figures: object) -> None:
    values = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
    print(f"{title}: {values}", flush=True)


# Speed of one sequence


def compare_speed(
    arguments: argparse.Namespace,
    backend: str,
    devices: list[pyllama.Device],
    shape: str,
    path: Path,
) -> None:
    results: dict[str, list[float]] = defaultdict(list)

    def theirs() -> None:
        for key, value in llama_bench(arguments.llama_cpp_bin, path, devices[0].name).items():
            results[f"llama-bench {key}"].append(value)

    def ours() -> None:
        for key, value in measure_speed(path, devices).items():
            results[f"pyllama {key}"].append(value)

    for number in range(arguments.rounds):
        for program in (theirs, ours) if number % 2 == 0 else (ours, theirs):
            program()
    medians = {name: statistics.median(values) for name, values in results.items()}
    for key in ("prompt", "decode"):
        if f"llama-bench {key}" in medians:
            medians[f"{key} ratio"] = medians[f"pyllama {key}"] / medians[f"llama-bench {key}"]
    report(f"{backend} {shape}, t/s", **medians)


def llama_bench(folder: Path | None, path: Path, device: str) -> dict[str, float]:
    if folder is None:
        return {}
    command = [folder / "llama-bench", "-m", path, "-dev", device, "-ngl", "99", "-fa", "on"]
    command += ["-p", str(N_PROMPT), "-n", str(N_DECODE), "-r", str(N_RUNS)]
    output = run([*command, "-o", "json"])
    return {
        "decode" if test["n_gen"] else "prompt": statistics.median(test["samples_ts"])
        for test in json.loads(output[output.index("[") :])
    }


def measure_speed(path: Path, devices: list[pyllama.Device]) -> dict[str, float]:
    """As llama-bench: a context for each test, one run to warm up, the median of the others."""
    figures = {}
    with Model(path, devices=devices) as model:
        tokens = np.random.default_rng(0).integers(0, len(model.vocab), N_PROMPT, dtype=np.int32)
        with Context(model, n_ctx=N_PROMPT, flash_attn="enabled") as context:

            def prompt() -> None:
                context.decode(Batch.from_tokens(tokens))
                context.synchronize()

            figures["prompt"] = N_PROMPT / timed(context, prompt)
        with Context(model, n_ctx=N_DECODE, flash_attn="enabled") as context:

            def decode() -> None:
                for pos, token in enumerate(tokens[:N_DECODE].tolist()):
                    context.decode_token(token, pos)
                    context.synchronize()

            figures["decode"] = N_DECODE / timed(context, decode)
    return figures


def timed(context: Context, run: Callable[[], None]) -> float:
    seconds = []
    for _ in range(1 + N_RUNS):
        context.memory.clear(data=False)
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


# Many sequences


def compare_batched(
    arguments: argparse.Namespace,
    backend: str,
    devices: list[pyllama.Device],
    shape: str,
    path: Path,
) -> None:
    theirs: dict[int, list[float]] = defaultdict(list)
    ours: dict[int, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        if arguments.llama_cpp_bin is not None:
            for count, speed in batched_bench(arguments, path, devices[0].name).items():
                theirs[count].append(speed)
        with Model(path, devices=devices) as model:
            for count in arguments.parallel:
                ours[count].append(measure_batched(model, count, None))
    with Model(path, devices=devices) as model:
        for count in arguments.parallel:
            figures = {"none": statistics.median(ours[count])}
            if count in theirs:
                figures["llama-batched-bench"] = statistics.median(theirs[count])
                figures["ratio"] = figures["none"] / figures["llama-batched-bench"]
            for name, make in SAMPLERS.items():
                figures[f"{name} on the device"] = measure_batched(model, count, make, attach=True)
                figures[f"{name} on the CPU"] = measure_batched(model, count, make)
            report(f"{backend} {shape}, {count} sequences, decode t/s by sampling", **figures)


def batched_bench(arguments: argparse.Namespace, path: Path, device: str) -> dict[int, float]:
    counts = ",".join(map(str, 2 * arguments.parallel))  # the first time is to warm up
    cells = cells_of(max(arguments.parallel))
    command = [arguments.llama_cpp_bin / "llama-batched-bench", "-m", path, "-dev", device]
    command += ["-ngl", "99", "-fa", "on", "-c", str(cells), "-b", "2048", "-ub", "512"]
    command += ["-npp", str(N_BATCHED_PROMPT), "-ntg", str(N_BATCHED_DECODE), "-npl", counts]
    lines = run([*command, "--output-format", "jsonl"]).splitlines()
    tests = [json.loads(line) for line in lines if line.startswith("{")]
    return {test["pl"]: test["speed_tg"] for test in tests}


def cells_of(count: int) -> int:
    """Each sequence's part is a multiple of 256."""
    return count * 256


def measure_batched(
    model: Model,
    count: int,
    make: Callable[[int], list[Sampler]] | None,
    *,
    attach: bool = False,
) -> float:
    """Tokens of all sequences for each second, over N_BATCHED_DECODE steps."""
    chains = {seq_id: SamplerChain(make(seq_id)) for seq_id in range(count)} if make else {}
    with Context(
        model,
        n_ctx=cells_of(count),
        n_seq_max=count,
        flash_attn="enabled",
        samplers=chains if attach else None,
    ) as context:
        prompt = np.random.default_rng(0).integers(0, len(model.vocab), N_BATCHED_PROMPT)
        for seq_id in range(count):
            context.decode(Batch.from_tokens(prompt.astype(np.int32), seq_id=seq_id))
        context.synchronize()
        tokens = [int(token) for token in prompt[:1].repeat(count)]
        batch = Batch(count)

        def step(pos: int) -> None:
            batch.clear()
            for seq_id, token in enumerate(tokens):
                batch.add(token, pos, (seq_id,), output=True)
            context.decode(batch)
            if attach:
                tokens[:] = [chains[seq_id].sample(context, seq_id) for seq_id in range(count)]
            elif chains:
                sampled = pyllama.sample_each(context, chains).values()
                tokens[:] = [token for token in sampled if isinstance(token, int)]
            else:
                context.synchronize()

        step(N_BATCHED_PROMPT)  # to warm up
        begin = time.perf_counter()
        for pos in range(N_BATCHED_PROMPT + 1, N_BATCHED_PROMPT + 1 + N_BATCHED_DECODE):
            step(pos)
        seconds = time.perf_counter() - begin
    for chain in chains.values():
        chain.close()
    return count * N_BATCHED_DECODE / seconds


# Requests


def measure_scheduler(
    arguments: argparse.Namespace,
    backend: str,
    devices: list[pyllama.Device],
    shape: str,
    path: Path,
) -> None:
    """Requests of many threads, with and without a beginning that they share.

    Prompts have 60 to 80 tokens of their own, answers 32. Each count runs three requests for each
    thread, after one for each to warm up. The limit is what prompts and answers take at the speed
    of a prompt of 512 tokens, and of as many sequences as there are threads.
    """
    with Model(path, devices=devices) as model:
        prompt = measure_speed(path, devices)["prompt"]
        decode = {count: measure_batched(model, count, None) for count in arguments.parallel}
        limits = {
            count: 1 / (N_OWN / prompt + N_ANSWER / decode[count]) for count in arguments.parallel
        }
        report(
            f"{backend} {shape}, limit in requests/s, from prompt {prompt:.0f} t/s and decode t/s "
            + " ".join(f"{count}: {speed:.0f}" for count, speed in decode.items()),
            **{f"{count} threads": limit for count, limit in limits.items()},
        )
        shared = prompt_tokens(model, N_SHARED)
        for name, beginning in ((f"{N_SHARED} tokens shared", shared), ("nothing shared", ())):
            for sequences in arguments.sequences:
                figures = requests_per_second(model, beginning, arguments.parallel, sequences, 1)
                of_limit = {
                    f"{count} threads": f"{speed:.1f} ({speed / limits[count]:.2f})"
                    for count, speed in figures.items()
                }
                report(f"{backend} {shape}, {name}, {sequences} at once, requests/s (of the limit)",
                       **of_limit)  # fmt: skip
            if arguments.batch_width:
                figures = requests_per_second(
                    model, beginning, arguments.parallel, 64, arguments.batch_width
                )
                report(
                    f"{backend} {shape}, {name}, batch_width={arguments.batch_width}, requests/s",
                    **{f"{count} threads": speed for count, speed in figures.items()},
                )


def prompt_tokens(model: Model, count: int, seed: int = 0) -> tuple[int, ...]:
    random = np.random.default_rng(seed)
    return tuple(random.integers(300, len(model.vocab), count).tolist())


def requests_per_second(
    model: Model,
    beginning: tuple[int, ...],
    counts: Sequence[int],
    sequences: int,
    width: int,
) -> dict[int, float]:
    """By the number of threads. With a width, batches are padded so that bytes stay."""
    from adapter.generation.memory.blocks import CHUNK, DEVICE_CHUNK
    from adapter.generation.request import GenerationRequest
    from adapter.generation.sampling import Sampling
    from adapter.generation.scheduler import Scheduler

    endless = Sampling(temperature=0.0, logit_bias={1: -100.0, 2: -100.0})
    exact = width > 1
    figures = {}
    for count in counts:
        scheduler = Scheduler(
            model, context_length=4096, n_threads=pyllama.cpu_math_cores(), n_cells=32 * 4096,
            max_sequences=sequences, max_queued=4 * count, cache_bytes=0, reproducible=exact,
            chunk=CHUNK if exact else DEVICE_CHUNK, shared_memory=not exact, batch_width=width,
            anchored=exact,
        )  # fmt: skip
        sizes = np.random.default_rng(1).integers(N_OWN - 10, N_OWN + 11, 4 * count)
        requests = [
            GenerationRequest(
                beginning + prompt_tokens(model, int(size), 2 + index), N_ANSWER, endless, 1
            )
            for index, size in enumerate(sizes)
        ]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(scheduler.generate, requests[:count]))
            begin = time.perf_counter()
            list(pool.map(scheduler.generate, requests[count:]))
            figures[count] = 3 * count / (time.perf_counter() - begin)
        scheduler.close()
    return figures


# Memory


def compare_memory(backend: str, devices: list[pyllama.Device], shape: str, path: Path) -> None:
    """What memory_use() predicts, and what the driver says was taken."""
    (gpu,) = devices
    options = {"n_ctx": 16_384, "n_batch": 512}
    (predicted,) = pyllama.memory_use(path, devices=devices, **options).devices
    with Model(path, devices=devices) as model, Context(model, n_ctx=256) as context:
        context.decode_token(1, 0)
        context.synchronize()  # what the backend takes once
    begin = time.perf_counter()
    before = gpu.memory[0]
    with Model(path, devices=devices) as model, Context(model, **options) as context:
        load = time.perf_counter() - begin
        tokens = np.arange(512, dtype=np.int32)
        context.decode(Batch.from_tokens(tokens))
        context.synchronize()
        taken = before - gpu.memory[0]
    report(
        f"{backend} {shape}, memory in MiB",
        predicted=predicted.used / MIB,
        taken=taken / MIB,
        ratio=predicted.used / taken if taken else float("nan"),
        **{"load seconds": load},
    )


# A question


def ask_apart(path: Path, backend: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--ask", str(path), backend]
    figures: dict[str, object] = json.loads(run(command))
    return figures


def ask(path: str, backend: str) -> dict[str, object]:
    import dspy

    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool
    from adapter.models.hardware import HardwareManager

    file = Path(path)
    with ModelPool(file.parent, hardware=HardwareManager(backend=backend)) as pool:
        loaded = pool.load_model(file.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=64, temperature=0.0)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        with dspy.context(lm=adapter.lm, adapter=adapter):
            predict = dspy.Predict("question -> answer", cache=False)
            seconds = []
            for question in (
                "What is the capital of Spain?",
                *["What is the capital of France?"] * 5,
            ):
                begin = time.perf_counter()
                answer = predict(question=question, config={"cache": False}).answer
                seconds.append(time.perf_counter() - begin)
        return {"ms": 1e3 * statistics.median(seconds[1:]), "answer": answer, "on": loaded.device}


# Programs


def run(command: list[object]) -> str:
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{command[0]} failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return result.stdout


if __name__ == "__main__":
    main()
