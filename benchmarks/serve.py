r"""DSPy programs on pyllama, llama-server, xllamacpp and llama-cpp-python, in one run.

    python benchmarks/serve.py --llama-cpp-bin BUILD/bin [--peers-python PYTHON] [--plot FILE]

``BUILD`` is llama.cpp's own build of the pinned sources, as benchmarks/overhead.py describes it,
with the targets llama-server and llama-batched-bench. ``PYTHON`` is an interpreter that has dspy,
xllamacpp and llama-cpp-python 0.3.36. ``--plot`` writes requests a second against threads, with
matplotlib.

The tasks, with greedy sampling:

- predict: a ``dspy.Predict`` with five demos, ChatAdapter; through pyllama's own adapter too, which
  no other engine has
- json: the same through JSONAdapter with a schema
- chat: one conversation of 20 turns
- unrelated: prompts that have nothing in common
- pair: a prompt of 1,500 tokens, and a short one that comes 0.3 s later

``--parallel`` sets how many threads ask, 8 if left out (one for a chat and a pair). ``--backend
cuda`` or ``vulkan`` has pyllama and llama-server compute on its first GPU.

On a CPU the limit is the time that llama-batched-bench takes for what cannot be avoided: the
beginning that prompts share once, each prompt's own tokens at their place in the context, and the
answers, as many at once as there are threads. Each peer runs each task in a process of its own;
with ``--rounds`` in turns, and figures are medians. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import serve_peers

import pyllama

HERE = Path(__file__).resolve().parent
OWN = (
    "pyllama",
    "pyllama, isolated",
    "pyllama, reproducible=False",
    "pyllama, LlamaCppAdapter",
)
PEERS = (*OWN, "llama-server", "xllamacpp", "llama-cpp-python")
THREADS = (1, 2, 4, 8, 16, 32)
TASKS = {"predict": 32, "json": 32, "chat": 20, "unrelated": 64, "pair": 1}
"""How many requests each has."""

PATIENCE = 150
"""Seconds after which a peer is given up."""

Figures = dict[str, Any]


class Rates(NamedTuple):
    """What llama-batched-bench measured: seconds for a prompt, by its length, and tokens a second
    of decoding, by how many sequences."""

    prompt: dict[int, float]
    decode: dict[int, float]


def main() -> None:
    given = parse_arguments()
    peers = [peer for peer in PEERS if peer in OWN or available(peer, given)]
    results: dict[tuple[str, str], list[Figures]] = {}
    for task in given.tasks:
        for _ in range(given.rounds):
            for peer in asked_for(task, peers):
                figures = measure(given, peer, task, threads_of(given, task), count_of(given, task))
                results.setdefault((peer, task), []).append(figures)
    print(describe(given))
    for task in given.tasks:
        medians = {peer: median(results[peer, task]) for peer in asked_for(task, peers)}
        print(f"\n**{task}**\n")
        print(pair_table(medians) if task == "pair" else throughput_table(given, task, medians))
    if given.plot:
        plot(given, [peer for peer in ("pyllama", "llama-server") if peer in peers])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--llama-cpp-bin", type=Path, required=True)
    parser.add_argument("--peers-python", help="an interpreter that has the peers")
    parser.add_argument("--model", type=Path, help="a GGUF file; SmolLM2-135M if left out")
    parser.add_argument("--cores", type=int, default=pyllama.cpu_math_cores())
    parser.add_argument("--backend", choices=["cuda", "vulkan"], help="the CPU if left out")
    parser.add_argument("--parallel", type=int, default=8, help="threads that ask")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="a PNG file")
    given = parser.parse_args()
    if given.model is None:
        from adapter.models import embedded_model

        given.model = embedded_model.fetch()
    return given


def available(peer: str, given: argparse.Namespace) -> bool:
    """Whether a peer is there to be measured."""
    return peer == "llama-server" or (bool(given.peers_python) and not given.backend)


def asked_for(task: str, peers: list[str]) -> list[str]:
    """Those that a task is for: an adapter has its own form of a program alone."""
    return [peer for peer in peers if task == "predict" or "Adapter" not in peer]


def threads_of(given: argparse.Namespace, task: str) -> int:
    """How many threads ask."""
    return 1 if task in ("chat", "pair") else int(given.parallel)


def count_of(given: argparse.Namespace, task: str) -> int:
    """How many requests there are: a GPU answers more in the same time."""
    if task in ("chat", "pair"):
        return TASKS[task]
    return 16 * int(given.parallel) if given.backend else max(TASKS[task], 4 * given.parallel)


def measure(given: argparse.Namespace, peer: str, task: str, threads: int, count: int) -> Figures:
    """One task of one peer."""
    print(f"{peer}: {task}, {threads} threads", file=sys.stderr)
    python = sys.executable if peer in (*OWN, "llama-server") else given.peers_python
    command = [
        *(python, HERE / "serve_worker.py", "--peer", peer, "--task", task),
        *("--model", given.model, "--server", given.llama_cpp_bin / "llama-server"),
        *("--cores", str(given.cores), "--threads", str(threads)),
        *("--parallel", str(given.parallel), "--count", str(count)),
        *(("--backend", given.backend) if given.backend else ()),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{done.stderr}")
    # Some peers write to stdout too.
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"'))
    figures: Figures = json.loads(line)
    return figures


def median(rounds: list[Figures]) -> Figures:
    """Of numbers the median; of lists of numbers, all of them. Nothing if a round did not end."""
    found: Figures = {}
    if not all(rounds):
        return found
    for key in rounds[0]:
        values = [figures[key] for figures in rounds]
        if isinstance(values[0], list):
            found[key] = sorted(chain.from_iterable(values))
        else:
            found[key] = statistics.median(values)
    return found


def throughput_table(given: argparse.Namespace, task: str, medians: dict[str, Figures]) -> str:
    """Requests and tokens a second, and times to the first token."""
    lines = [
        "| | requests/s | of the limit | prompt t/s | output t/s | output tokens | "
        "first token p50, p95 (s) | memory, peak (MiB) | not parsed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    limited = () if given.backend else OWN[::3]  # a GPU's times do not add up
    limits = {peer: limit(given, task, medians[peer]) for peer in limited if peer in medians}
    for peer, figures in medians.items():
        if not figures:
            lines.append(f"| {peer} | not done after {PATIENCE} s |" + 7 * " |")
            continue
        seconds, first = figures["seconds"], figures.get("first_tokens")
        times = f"{at(first, 0.5):.2f}, {at(first, 0.95):.2f}" if first else "-"
        cells = [
            peer,
            f"{figures['requests'] / seconds:.2f}",
            f"{limits.get(peer, limits[OWN[0]]) / seconds:.2f}" if limits and peer in OWN else "-",
            f"{figures['prompt_tokens'] / seconds:.0f}",
            f"{figures['output_tokens'] / seconds:.0f}",
            f"{figures['output_tokens']:.0f}",
            times,
            f"{figures['memory'] / 2**20:.0f}",
            f"{figures['failures']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for peer, best in limits.items():
        own = medians[peer]
        lines.append(
            f"\nThe limit for {peer}'s tokens is {best:.1f} s, "
            f"{own['requests'] / best:.2f} requests/s: "
            f"{own['shared_tokens']:.0f} tokens that all prompts share, "
            f"{own['unique_tokens'] - own['shared_tokens']:.0f} others, "
            f"{own['output_tokens']:.0f} of answers."
        )
    return "\n".join(lines)


def limit(given: argparse.Namespace, task: str, own: Figures) -> float:
    """Seconds for the tokens that cannot be avoided."""
    shared = round(own["shared_tokens"])
    longest = round(own["prompt_tokens"] / own["requests"])
    n_own = (own["unique_tokens"] - shared) / own["requests"]
    if task == "chat":  # one prompt that grows, and its answers
        longest, n_own = round(own["unique_tokens"]), 0.0
        shared = longest
    parallel = 1 if task == "chat" else given.parallel
    lengths = sorted({max(16, longest - round(n_own)), max(16, longest), max(16, shared)})
    rates = batched_bench(given, lengths, longest, parallel)
    first = rates.prompt[max(16, shared)] if shared else 0.0
    begin = longest - round(n_own)
    each = rates.prompt[max(16, longest)] - (rates.prompt[max(16, begin)] if begin > 15 else 0.0)
    prompts = 0.0 if task == "chat" else own["requests"] * each
    seconds: float = first + prompts + own["output_tokens"] / rates.decode[parallel]
    return seconds


def batched_bench(
    given: argparse.Namespace, lengths: list[int], depth: int, parallel: int
) -> Rates:
    """The rates of llama.cpp alone, for prompts of these lengths and answers after the last."""
    command = [
        *(given.llama_cpp_bin / "llama-batched-bench", "-m", given.model),
        *("-c", str(4096 * given.parallel), *serve_peers.placed(None)),
        *("-t", str(given.cores), "--output-format", "jsonl", "-ntg", "32"),
    ]
    prompt, decode = {}, {}
    for length in lengths:
        prompt[length] = run_bench(command, length, 1)["t_pp"]
    decode[parallel] = run_bench(command, depth, parallel)["speed_tg"]
    return Rates(prompt, decode)


def run_bench(command: list[Any], length: int, parallel: int) -> Figures:
    """One line of llama-batched-bench."""
    command = [*command, "-npp", str(length), "-npl", str(parallel)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    found: Figures = json.loads(line)
    return found


def pair_table(medians: dict[str, Figures]) -> str:
    """Times to the first tokens of a short prompt and of a long one."""
    lines = [
        "| | first token of the short prompt (s) | of the long one (s) | memory, peak (MiB) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for peer, figures in medians.items():
        if not figures:
            lines.append(f"| {peer} | not done after {PATIENCE} s |" + 2 * " |")
            continue
        short, long = figures["first_short"], figures["first_long"]
        lines.append(f"| {peer} | {short:.2f} | {long:.2f} | {figures['memory'] / 2**20:.0f} |")
    return "\n".join(lines)


def plot(given: argparse.Namespace, peers: list[str]) -> None:
    """Requests a second against threads."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for peer in peers:
        runs = [measure(given, peer, "predict", threads, 48) for threads in THREADS]
        rates = [run["requests"] / run["seconds"] for run in runs]
        print(f"\n{peer}, requests/s at {THREADS} threads: {[round(rate, 2) for rate in rates]}")
        axes.plot(THREADS, rates, marker="o", label=peer)
    axes.set_xscale("log", base=2)
    axes.set_xticks(THREADS, [str(threads) for threads in THREADS])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threads")
    axes.set_ylabel("requests a second")
    axes.set_title("dspy.Predict with five demos")
    axes.legend()
    figure.savefig(given.plot, dpi=120, bbox_inches="tight")


def at(values: list[float], fraction: float) -> float:
    """A quantile of sorted values."""
    return values[min(len(values) - 1, int(fraction * len(values)))]


def describe(given: argparse.Namespace) -> str:
    command = " ".join(["python", "benchmarks/serve.py", *sys.argv[1:]])
    cpu = pyllama.devices()[-1].description
    return "\n".join(
        [
            f"- command: `{command}`",
            f"- machine: {cpu}, {os.cpu_count()} CPUs, {platform.platform()}",
            f"- CPU variant: {pyllama.cpu_variant()}, {given.cores} threads",
            f"- model: {given.model.name}, {given.rounds} round(s)",
            f"- llama.cpp {pyllama.llama_cpp_version()}",
        ]
    )


if __name__ == "__main__":
    main()
