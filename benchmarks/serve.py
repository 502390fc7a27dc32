r"""DSPy programs on pyllama, llama-server, xllamacpp and llama-cpp-python, in one run.

    python benchmarks/serve.py --llama-cpp-bin BUILD/bin [--peers-python PYTHON] \
        [--example SERVER.PY] --rounds 5 --results FILE
    python benchmarks/serve_report.py FILE --plots FOLDER

The first command measures and writes a file of results; the second makes the tables and plots of
it, at any later time. ``BUILD`` is llama.cpp's own build of the pinned sources, as
benchmarks/overhead.py describes it, with the targets llama-server and llama-batched-bench.
``PYTHON`` is an interpreter that has dspy, xllamacpp and llama-cpp-python 0.3.36. ``SERVER.PY`` is
examples/server/server.py of llama-cpp-python's sources; ``PYTHON`` needs what it names, too.

The tasks, with greedy sampling:

- predict: a ``dspy.Predict`` with five demos, ChatAdapter; through pyllama's own adapter too, which
  no other engine has
- json: the same through JSONAdapter with a schema
- chat: one conversation of 20 turns, each asked at once after the answer
- reading: the same conversation with somebody who reads each answer for ``--pause`` seconds
- unrelated: prompts that have nothing in common
- pair: a prompt of 1,500 tokens, and a short one that comes 0.3 s later

``--parallel`` sets how many threads ask, 8 if left out (one for a conversation and a pair), and
``--scan`` has predict asked by 1 to 32 threads as well. ``--backend cuda`` or ``vulkan`` has
pyllama and llama-server compute on its first GPU.

llama-server runs as it is started by default, with as many slots as threads ask, and with each of
the options by which its users tune it. Each peer runs each task in a process of its own, after the
same warm-up. They take turns; each round begins with another of them, and a first run that warms
the machine does not count. On a CPU the limit is the time that llama-batched-bench takes for what
cannot be avoided: the beginning that prompts share once, each prompt's own tokens at their place in
the context, and the answers, as many at once as there are threads. Nothing else should run
meanwhile; where something does, processor time is the figure to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import serve_peers
import serve_report
from serve_report import ALONE, OWN, Figures, Run
from sigterm import exit_at_sigterm

import pyllama

HERE = Path(__file__).resolve().parent
SERVERS = ("llama-server", "llama-server, defaults", *serve_peers.TUNINGS)
LIBRARIES = ("xllamacpp", "llama-cpp-python")
EXAMPLE = "llama-cpp-python, server example"
PEERS = (*OWN, *SERVERS, *LIBRARIES, EXAMPLE)
SCANNED = ("pyllama", "llama-server")
THREADS = (1, 2, 4, 8, 16, 32)
TASKS = {"predict": 32, "json": 32, "chat": 20, "reading": 20, "unrelated": 64, "pair": 1}
"""How many requests each has."""

PATIENCE = 300
"""Seconds after which a peer is given up, beside those in which nobody asks."""


class Rates(NamedTuple):
    """What llama-batched-bench measured: seconds for a prompt, by its length, and tokens a second
    of decoding, by how many sequences."""

    prompt: dict[int, float]
    decode: dict[int, float]


def main() -> None:
    exit_at_sigterm()
    given = parse_arguments()
    peers = [peer for peer in given.peers or PEERS if available(peer, given)]
    results: dict[str, Any] = {"about": describe(given), "runs": [], "limits": []}
    measure(given, peers[0], given.tasks[0], 0)  # the machine is slow after it was idle
    for number in range(given.rounds):
        for task in given.tasks:
            asked = [peer for peer in peers if task == "predict" or "Adapter" not in peer]
            first = number % len(asked)
            for peer in (*asked[first:], *asked[:first]):
                results["runs"].append(measure(given, peer, task, number))
                save(given, results)
        for peer in SCANNED if given.scan else ():
            for threads in THREADS:
                run = measure(given, peer, "predict", number, threads=threads, count=48)
                results["runs"].append({**run, "task": serve_report.SCAN})
                save(given, results)
    for task in given.tasks if not given.backend else ():  # a GPU's times do not add up
        for peer in OWN[::3]:
            own = serve_report.medians(results["runs"], peer, task)
            if "unique_tokens" in own:
                seconds = limit(given, task, own)
                results["limits"].append({"peer": peer, "task": task, "seconds": seconds})
    save(given, results)
    print(serve_report.report(results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--llama-cpp-bin", type=Path, required=True)
    parser.add_argument("--peers-python", help="an interpreter that has the peers")
    parser.add_argument("--example", type=Path, help="llama-cpp-python's examples/server/server.py")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="all if left out")
    parser.add_argument("--model", type=Path, help="a GGUF file; SmolLM2-135M if left out")
    parser.add_argument("--cores", type=int, default=pyllama.cpu_math_cores())
    parser.add_argument("--backend", choices=["cuda", "vulkan"], help="the CPU if left out")
    parser.add_argument("--parallel", type=int, default=8, help="threads that ask")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--pause", type=float, default=2.0, help="seconds in which one reads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scan", action="store_true", help="predict by 1 to 32 threads, too")
    parser.add_argument("--results", type=Path, default=Path("serve.json"))
    given = parser.parse_args()
    if given.model is None:
        from adapter.models import embedded_model

        given.model = embedded_model.fetch()
    return given


def available(peer: str, given: argparse.Namespace) -> bool:
    """Whether a peer is there to be measured."""
    if peer in OWN or peer in SERVERS:
        return True
    if given.backend or not given.peers_python:
        return False
    return peer != EXAMPLE or bool(given.example)


def save(given: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write what was measured so far."""
    given.results.write_text(json.dumps(results, indent=1) + "\n")


def measure(
    given: argparse.Namespace,
    peer: str,
    task: str,
    number: int,
    *,
    threads: int | None = None,
    count: int | None = None,
) -> Run:
    """One task of one peer. Its figures are empty if it did not end in time."""
    threads = threads or (1 if task in ALONE else given.parallel)
    count = count or count_of(given, task)
    print(f"round {number}: {peer}: {task}, {threads} threads", file=sys.stderr)
    own = peer in OWN or peer in SERVERS
    command = [
        *(sys.executable if own else given.peers_python, HERE / "serve_worker.py"),
        *("--peer", peer, "--task", task, "--model", given.model),
        *("--server", given.llama_cpp_bin / "llama-server", "--example", given.example or ""),
        *("--cores", str(given.cores), "--threads", str(threads)),
        *("--parallel", str(max(threads, given.parallel)), "--count", str(count)),
        *("--pause", str(given.pause)),
        *(("--backend", given.backend) if given.backend else ()),
    ]
    patience = PATIENCE + (given.pause * count if task == "reading" else 0.0)
    figures: Figures = {}
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = worker.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        pass
    else:
        if worker.returncode:
            raise SystemExit(f"{peer} failed:\n{errors}")
        # Some peers write to stdout too.
        (line,) = (line for line in output.splitlines() if line.startswith('{"'))
        figures = json.loads(line)
    finally:
        with suppress(ProcessLookupError):  # its server, if it could not end it
            os.killpg(worker.pid, signal.SIGKILL)
    return {"peer": peer, "task": task, "threads": threads, "round": number, "figures": figures}


def count_of(given: argparse.Namespace, task: str) -> int:
    """How many requests there are: a GPU answers more in the same time."""
    if task in ALONE:
        return TASKS[task]
    return 16 * int(given.parallel) if given.backend else max(TASKS[task], 4 * given.parallel)


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
    """The rates of llama.cpp alone, for prompts of these lengths and answers after the last.

    Medians of as many runs as there are rounds.
    """
    command = [
        *(given.llama_cpp_bin / "llama-batched-bench", "-m", given.model),
        *("-c", str(4096 * given.parallel), *serve_peers.placed(None)),
        *("-t", str(given.cores), "--output-format", "jsonl", "-ntg", "32"),
    ]
    rounds = range(given.rounds)
    prompt = {
        length: statistics.median(run_bench(command, length, 1)["t_pp"] for _ in rounds)
        for length in lengths
    }
    speed = statistics.median(run_bench(command, depth, parallel)["speed_tg"] for _ in rounds)
    return Rates(prompt, {parallel: speed})


def run_bench(command: list[Any], length: int, parallel: int) -> Figures:
    """One line of llama-batched-bench."""
    command = [*command, "-npp", str(length), "-npl", str(parallel)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    found: Figures = json.loads(line)
    return found


def describe(given: argparse.Namespace) -> list[str]:
    """The lines that say what was measured."""
    command = shlex.join(["python", "benchmarks/serve.py", *sys.argv[1:]])
    cpu = pyllama.devices()[-1].description
    return [
        f"command: `{command}`",
        f"machine: {cpu}, {os.cpu_count()} CPUs, {platform.platform()}",
        f"CPU variant: {pyllama.cpu_variant()}, {given.cores} threads",
        f"model: {given.model.name}, {given.rounds} round(s)",
        f"llama.cpp {pyllama.llama_cpp_version()}",
    ]


if __name__ == "__main__":
    main()
