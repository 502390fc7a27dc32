"""One case of the pool under faults: a pool with requests on it, and one fault after the other.

    python pool_child.py FOLDER SEED SECONDS [FAULT …]

Prints a line of JSON for each fault, and one for what is left when the pool is closed.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memory import resident_bytes
from pool_faults import FAULTS, Scene, children, tracer
from pool_load import N_REQUESTS, Load, Outcomes, answer

import pyllama
from adapter import LlamaCppConfig, LlamaCppEngine, ModelPool

#: Nothing that is asked for takes as long, with all faults that there are.
BOUND = 30
#: What allocators, executors' threads and caches may keep.
MOST_LEFT = 64 << 20
#: Attempts that a request may take once a fault has gone: the next one works.
ATTEMPTS = 1

Expected = dict[tuple[str, int], str]


def main() -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder, seed, seconds, names = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
    if any(name.startswith("errors_in_") for name in names):
        threading.settrace(tracer.call)
    on_server = "server_killed" in names
    with _small_disk(folder / "prefixes"):
        server = pyllama.RpcServer(port=0, n_threads=1) if on_server else None
        settings: dict[str, Any] = {"max_models": 2, "max_contexts": 2, "context_length": 256}
        if server is not None:
            settings |= {"rpc": [server.endpoint], "n_gpu_layers": -1}
        else:
            settings["prefix_folder"] = folder / "prefixes"
        models = ["small"] if on_server else ["other", "small"]
        expected = _alone(folder, settings, models)
        before = _left()
        server = _case(folder, settings, expected, names, seed, seconds, server)
        if server is not None:
            server.close()
        else:
            print(json.dumps({"fault": "what is left", "wrong": _compare(before), "counts": {}}))


def _alone(folder: Path, settings: dict[str, Any], models: list[str]) -> Expected:
    """What each request is answered with when there is no other, and no fault."""
    with ModelPool(folder, **settings) as pool:
        return {
            (name, number): answer(_engine(pool, name), number)
            for name in models
            for number in range(N_REQUESTS)
        }


def _engine(pool: ModelPool, name: str) -> LlamaCppEngine:
    return LlamaCppEngine(pool.load_model(name), LlamaCppConfig(name, initial_backoff_ms=0))


def _case(
    folder: Path,
    settings: dict[str, Any],
    expected: Expected,
    names: list[str],
    seed: str,
    seconds: float,
    server: pyllama.RpcServer | None,
) -> pyllama.RpcServer | None:
    with ModelPool(folder, **settings) as pool:
        for name in sorted({name for name, _ in expected}):
            pool.load_model(name)  # a file that takes its place later is another model's
        for number, name in enumerate(names):
            faulthandler.dump_traceback_later(BOUND, exit=True)
            os.write(2, f"FAULT {name}\n".encode())
            draw = random.Random(f"{seed}/{number}/{name}")
            fault, allowed = FAULTS[name]
            load = Load(pool, expected, draw.randrange(10**6))
            load.outcomes = Outcomes(allowed, exact=server is None)
            scene = Scene(folder, pool, load, draw, seconds, server)
            load.start()
            try:
                time.sleep(draw.uniform(0, seconds / 2))
                with fault(scene):
                    time.sleep(draw.uniform(0, seconds))
            finally:
                load.stop()
            server = scene.server
            _next_request(pool, expected, load.outcomes)
            told = {"fault": name, "wrong": load.outcomes.wrong, "counts": load.outcomes.counts}
            print(json.dumps(told), flush=True)
        gc.collect()
    faulthandler.cancel_dump_traceback_later()
    return server


def _next_request(pool: ModelPool, expected: Expected, outcomes: Outcomes) -> None:
    """Once the fault has gone, the next request of each model works."""
    for name in sorted({name for name, _ in expected}):
        try:
            text = answer(_engine(pool, name), 3)
        except Exception as error:
            lines = "".join(traceback.format_exception(error))[-2500:]
            outcomes.wrong.append(f"the next request: {type(error).__name__}: {error}\n{lines}")
        else:
            outcomes.text(text, expected[name, 3])


def _left() -> dict[str, Any]:
    gc.collect()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(children("")),
        "memory": resident_bytes(),
    }


def _compare(before: dict[str, Any]) -> list[str]:
    """What is there that was not before, once threads have had the time to end."""
    end = time.monotonic() + 10
    while True:
        now = _left()
        wrong = [
            f"{kind}: {now[kind]}, before {before[kind]}"
            for kind in ("threads", "descriptors", "processes")
            if now[kind] != before[kind]
        ]
        if now["memory"] > before["memory"] + MOST_LEFT:
            wrong.append(f"memory: {now['memory'] >> 20} MiB, before {before['memory'] >> 20}")
        if not wrong or time.monotonic() > end:
            return wrong
        time.sleep(0.1)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A disk of two MiB, where this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    mounted = is_root and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        os.write(2, b"SKIPPED full_disk and unwritable_folder: this user cannot mount a tmpfs\n")
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


if __name__ == "__main__":
    main()
