r"""What pyllama costs over llama.cpp itself, and beside llama-cpp-python, in one run.

    python benchmarks/overhead.py --llama-cpp-bin BUILD/bin [--llama-cpp-python PYTHON]

``BUILD`` is llama.cpp's own build of the pinned sources, with the options that pyllama has. The
sources with their tools are ``vendor/llama.cpp`` inside the archive that vendor/llama_cpp_pin.json
names; in that folder::

    cmake -B BUILD -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF \
        -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON
    cmake --build BUILD --target llama-bench llama-simple

``PYTHON`` is an interpreter that has llama-cpp-python 0.3.36, which carries the same llama.cpp.
The tiny model that shows Python's own cost is written with gguf, of the ``test`` extra. Memory is
what the operating system counted for a process, so this runs on Linux and macOS.

Every measurement runs in a process of its own. The programs take turns, in rounds whose order
alternates, so that a machine that slows down slows all of them; figures are medians over the
rounds. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sigterm import exit_at_sigterm

import pyllama

HERE = Path(__file__).resolve().parent
PROMPT = "Hello"

Results = dict[str, list[float]]


class Program(NamedTuple):
    """One of those compared: its name, and what one round of it gives, by row of the table."""

    name: str
    measure: Callable[[], dict[str, float]]


class Row(NamedTuple):
    """One line of the table. ``goal`` compares pyllama with llama.cpp, or is pyllama's own."""

    key: str
    title: str
    goal: str = ""


ROWS = (
    Row("prompt", "prompt, 512 tokens (t/s)", "≥ 0.99 of llama.cpp"),
    Row("decode", "decode, 128 tokens (t/s)", "≥ 0.99 of llama.cpp"),
    Row("greedy", "decode and sample greedily (t/s)"),
    Row("sampled", "decode, top-k, top-p, temperature, dist (t/s)"),
    Row("load", "load, to the first logits (ms)", "≤ 1.05 of llama.cpp"),
    Row("memory", "resident memory, peak (MiB)"),
    Row("import", "import, beyond numpy (ms)", "≤ 60"),
    Row("python", "Python per token, decode + sample + detokenize (µs)", "≤ 8"),
)


def main() -> None:
    exit_at_sigterm()
    arguments = parse_arguments()
    model, threads = str(arguments.model), str(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny_model(Path(folder) / "tiny.gguf")

        def measure_llama_cpp() -> dict[str, float]:
            return measure_c(arguments.llama_cpp_bin, model, threads)

        def measure_pyllama() -> dict[str, float]:
            return measure_python(sys.executable, "measure_pyllama.py", model, threads, tiny)

        def measure_llama_cpp_python() -> dict[str, float]:
            python = arguments.llama_cpp_python
            return measure_python(python, "measure_llama_cpp_python.py", model, threads)

        programs = [Program("llama.cpp", measure_llama_cpp), Program("pyllama", measure_pyllama)]
        if arguments.llama_cpp_python:
            programs.append(Program("llama-cpp-python", measure_llama_cpp_python))
        results = run(programs, arguments.rounds)
    print(describe(arguments))
    print(table(programs, results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--llama-cpp-bin", type=Path, required=True)
    parser.add_argument("--llama-cpp-python", help="an interpreter that has it")
    parser.add_argument("--model", type=Path, help="a GGUF file; SmolLM2-135M if left out")
    parser.add_argument("--threads", type=int, default=pyllama.cpu_math_cores())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.model is None:
        from adapter.models import embedded_model

        arguments.model = embedded_model.fetch()
    return arguments


def run(programs: list[Program], rounds: int) -> dict[str, Results]:
    """The figures of each program, by row: one of each round."""
    results: dict[str, Results] = {program.name: defaultdict(list) for program in programs}
    for index in range(rounds):
        for program in programs if index % 2 == 0 else reversed(programs):
            print(f"round {index + 1} of {rounds}: {program.name}", file=sys.stderr)
            for key, value in program.measure().items():
                results[program.name][key].append(value)
    return results


def measure_c(folder: Path, model: str, threads: str) -> dict[str, float]:
    """llama-bench for speed and memory, llama-simple for the time to load."""
    command = [folder / "llama-bench", "-m", model, "-t", threads, "-r", "1", "-o", "json"]
    bench, peak = call([*command, "-p", "512", "-n", "128"])
    prompt, decode = (test["avg_ts"] for test in json.loads(bench))
    simple = subprocess.run(
        [folder / "llama-simple", "-m", model, "-n", "1", PROMPT],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    load = re.search(r"load time =\s*([\d.]+) ms", simple.stderr)
    assert load, simple.stderr
    return {"prompt": prompt, "decode": decode, "load": float(load[1]), "memory": peak}


def measure_python(python: str, script: str, *arguments: str) -> dict[str, float]:
    """What a script of this folder measures, and the memory that its speed test took."""
    figures: dict[str, float] = {}
    for what in ("speed", "load", "import", *(["python"] if len(arguments) > 2 else [])):
        output, peak = call([python, HERE / script, what, PROMPT, *arguments])
        figures |= json.loads(output)
        if what == "speed":
            figures["memory"] = peak
    return figures


def call(command: list[str | Path]) -> tuple[str, float]:
    """What a command wrote, and the most memory that it had resident, in MiB."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        # Bytecode is kept, as an installed package has it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        child = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if child.returncode:
            raise SystemExit(f"{command} failed with {child.returncode}:\n{errors.read()}")
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return output.read(), usage.ru_maxrss / unit


def write_tiny_model(path: Path) -> str:
    """A model so small that computing takes next to no time."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import synthetic

    shape = {"n_embd": 32, "n_head": 1, "n_head_kv": 1, "n_layer": 1, "n_ff": 32}
    return str(synthetic.write_model(path, n_ctx_train=4096, **shape))


def describe(arguments: argparse.Namespace) -> str:
    command = " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]])
    cpu = pyllama.devices()[-1].description
    return "\n".join(
        [
            f"- command: `{command}`",
            f"- machine: {cpu}, {os.cpu_count()} CPUs, {platform.platform()}",
            f"- CPU variant: {pyllama.cpu_variant()}, {arguments.threads} threads",
            f"- Python {platform.python_version()}, llama.cpp {pyllama.llama_cpp_version()}",
            f"- model: {arguments.model.name}; medians of {arguments.rounds} rounds, "
            f"load average {os.getloadavg()[0]:.1f} at the end",
            "",
        ]
    )


def table(programs: list[Program], results: dict[str, Results]) -> str:
    names = [program.name for program in programs]
    lines = [
        f"| | {' | '.join(names)} | pyllama / llama.cpp | goal |",
        f"|---|{'---|' * len(names)}---|---|",
    ]
    for row in ROWS:
        medians = [statistics.median(results[name].get(row.key, [float("nan")])) for name in names]
        cells = ["" if value != value else f"{value:,.4g}" for value in medians]
        ratio = medians[1] / medians[0]
        cells.append("" if ratio != ratio else f"{ratio:.3f}")
        lines.append(f"| {row.title} | {' | '.join(cells)} | {row.goal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
