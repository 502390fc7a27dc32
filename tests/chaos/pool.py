"""A pool under load, while one fault after the other comes and goes.

What must hold: every request ends, with a result or an error that tells the truth; the next one
works; an answer has the bytes that it has alone; and in the end no more threads, descriptors,
processes and memory are in use than before. Each case is a process of its own.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import synthetic
from instruments import Asked, Failure, Told, command, environment, run_child, side_by_side

import pyllama

FAULTS = (
    *("none", "contexts_without_memory", "poisoned_contexts", "short_memory", "no_descriptors"),
    *(
        "no_threads",
        "errors_in_threads",
        "errors_in_requests",
        "files_gone",
        "files_replaced",
        "full_disk",
    ),
    *("template_processes_killed", "unwritable_folder", "damaged_prefixes", "interrupts"),
)
SECONDS = 1.0  # that a fault lasts


def run(asked: Asked) -> Told:
    notes: Counter[str] = Counter()
    told = side_by_side(asked, lambda numbers: list(_case(asked, numbers[0], notes)))
    told.notes = notes
    return told


def _case(asked: Asked, number: int, notes: Counter[str]) -> Iterator[Failure]:
    draw = random.Random(f"{asked.seed}/{number}")
    if number % 6 == 5 and pyllama.supports_rpc():
        faults = ["none", "server_killed", "server_killed"]
    elif number < 2 * len(FAULTS) and number % 2:
        faults = [FAULTS[number // 2]]  # each by itself once
    else:
        faults = draw.sample(FAULTS, 4)
    folder = asked.folder / f"{number}"
    folder.mkdir()
    _write_models(folder)
    arguments = [folder, draw.randrange(10**6), SECONDS, *faults]
    try:
        ended = run_child(command("pool_child.py", *arguments), 300, env=environment())
    finally:
        if sys.platform == "linux":
            subprocess.run(
                ["umount", "-l", str(folder / "prefixes")], capture_output=True, check=False
            )
        shutil.rmtree(folder, ignore_errors=True)
    detail = f"{' '.join(map(str, arguments[1:]))}\n"
    doing = [line for line in ended.err.splitlines() if line.startswith("FAULT ")][-1:]
    for line in ended.out.splitlines():
        told = json.loads(line)
        for kind, count in told["counts"].items():
            notes[f"{told['fault']}: {kind}"] += count
        for wrong in told["wrong"]:
            kind = re.sub(r"/\S+/|\d+", "…", f"{told['fault']}: {wrong.splitlines()[0][:200]}")
            yield Failure(number, kind, f"{detail}{wrong}")
    for line in ended.err.splitlines():
        if line.startswith("SKIPPED"):
            notes[line] += 1
    if ended.status != 0:
        how = "hung" if "Timeout (" in ended.err else ended.words
        yield Failure(number, f"{how} at {' '.join(doing)}", f"{detail}{ended.err[-9000:]}")


def _write_models(folder: Path) -> None:
    sizes = {"n_embd": 64, "n_head": 1, "n_head_kv": 1, "n_ff": 128}
    synthetic.write_model(folder / "small.gguf", **sizes)
    synthetic.write_model(folder / "other.gguf", architecture="mamba", seed=1, n_embd=64)
    synthetic.write_model(folder / "third.gguf", seed=2, **sizes)
