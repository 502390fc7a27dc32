"""Requests without end on one pool, and pools without end; what memory they keep.

    python soak_child.py FOLDER SEED SECONDS REQUESTS DROPS

Prints a line of JSON: what was done, what was wrong, and the memory measured on the way.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import itertools
import json
import logging
import os
import random
import statistics
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

from dspy.lm15 import Config, Message, Request
from dspy.lm15 import TimeoutError as RequestTimeout
from memory import MEASURABLE, memory_in_use, resident_bytes

import pyllama
from adapter import AsyncLlamaCppEngine, LlamaCppAdapter, LlamaCppConfig, LlamaCppEngine, ModelPool

#: Requests after which memory stays, and pools, each of which has threads of its own for which
#: the allocator has memory; the most that it may grow from there.
WARM_UP, WARM_UP_DROPS, MOST_GROWN = 1000, 100, 0.02
#: Pools between two measurements.
DROPS_APART = 5
#: Texts of prompts: what is kept of them is all there after the warm-up.
N_TEXTS = 40
N_THREADS = 4


class Soak:
    """Requests of all kinds, from several threads."""

    def __init__(self, pool: ModelPool, seed: str, seconds: float, count: int) -> None:
        self._pool = pool
        self._seed = seed
        self._end = time.monotonic() + seconds
        self._numbers = itertools.takewhile(lambda n: n < count, itertools.count())
        self._lock = threading.Lock()
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.memory: list[tuple[int, int]] = []
        self.wrong: list[str] = []

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(n,)) for n in range(N_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, number: int) -> None:
        draw = random.Random(f"{self._seed}/{number}")
        loaded = self._pool.load_model("small")
        engines = [
            LlamaCppEngine(loaded, LlamaCppConfig("small", timeout_secs=limit, execution=execution))
            for limit, execution in ((None, "batched"), (0.01, "batched"), (None, "isolated"))
        ]
        while time.monotonic() < self._end and self._next() is not None:
            try:
                how = self._one(draw, draw.choice([engines[0], *engines]))
            except RequestTimeout:
                how = "timeouts"
            except Exception as error:
                self.wrong.append(f"a request raised {error!r}"[:300])
                return
            with self._lock:
                self.counts[how] += 1
                self.done += 1
                if self.done % 50 == 0:
                    self.memory.append((self.done, resident_bytes()))

    def _next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def _one(self, draw: random.Random, engine: LlamaCppEngine) -> str:
        text = "hello world " * draw.choice([0, 1, 3, 10, 40]) + str(draw.randrange(N_TEXTS // 5))
        config = Config(max_tokens=draw.choice([1, 4, 16, 64]), temperature=0.9)
        request = Request(engine.model, (Message.user(text),), config=config)
        how = draw.choice(["whole", "whole", "streamed", "closed", "cancelled", "async"])
        if how == "whole":
            engine.complete(request)
        elif how == "streamed":
            list(engine.stream(request))
        elif how == "closed":
            stream = engine.stream(request)
            next(stream)
            next(stream, None)
            stream.close()
        elif how == "cancelled":
            cancelled = threading.Event()
            timer = threading.Timer(draw.uniform(0, 0.02), cancelled.set)
            timer.start()
            engine.complete_unless(cancelled, request)
            timer.cancel()
            timer.join()
        else:
            asyncio.run(self._in_tasks(engine, request))
        return how

    @staticmethod
    async def _in_tasks(engine: LlamaCppEngine, request: Request) -> None:
        twin = AsyncLlamaCppEngine(engine)
        tasks = [asyncio.create_task(twin.complete(request)) for _ in range(2)]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await twin.aclose()


def drops(folder: Path, seed: str, seconds: float, count: int) -> dict[str, Any]:
    """Pools made, used and closed, or only dropped."""
    draw, end = random.Random(f"{seed}/drops"), time.monotonic() + seconds
    memory, wrong, counts = [], [], Counter[str]()
    for number in range(count):
        if time.monotonic() > end:
            break
        how = "closed" if number % 2 else "dropped"
        model = _one_pool(folder, draw, close=how == "closed")
        waited = time.monotonic()
        while model() is not None and time.monotonic() < waited + 5:
            gc.collect()
            time.sleep(0.01)
        if model() is not None:
            wrong.append(f"a pool that was {how} keeps its model")
        counts[how] += 1
        if (number + 1) % DROPS_APART == 0:
            memory.append((number + 1, kept_bytes()))
    return {"done": sum(counts.values()), "wrong": wrong, "memory": memory, "counts": counts}


def kept_bytes() -> int:
    """Resident memory, without what malloc() has free.

    A pool may be the first to need one helper thread more. The thread stays for later pools, and
    glibc makes an arena for it, which keeps some 4 MiB of what was freed in it.
    """
    return memory_in_use().resident if MEASURABLE else resident_bytes()


def _one_pool(folder: Path, draw: random.Random, *, close: bool) -> weakref.ref[pyllama.Model]:
    pool = ModelPool(folder, context_length=256)
    loaded = pool.load_model("large")
    with loaded.lease() as model:
        found = weakref.ref(model)
    adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig("large", max_tokens=4))
    if draw.random() < 0.5:
        adapter.lm("hello", cache=False)
    if draw.random() < 0.3:
        engine = LlamaCppEngine(loaded, LlamaCppConfig("large"))
        next(engine.stream(Request(engine.model, (Message.user("hello"),), config=Config())))
    if close:
        pool.close()
    return found


def grown(memory: list[tuple[int, int]], warm_up: int) -> tuple[float, str] | None:
    """How much memory has grown since the warm-up, as a share of it; None before that."""
    after = [size for number, size in memory if number > warm_up]
    if len(after) < 10:
        return None
    tenth = max(1, len(after) // 10)
    first, last = statistics.median(after[:tenth]), statistics.median(after[-tenth:])
    words = f"{first / 2**20:.1f} MiB after {warm_up}, {last / 2**20:.1f} MiB after {memory[-1][0]}"
    return last / first - 1, words


def main() -> None:
    faulthandler.enable()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    folder, seed, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    n_requests, n_drops = map(int, sys.argv[4:])
    faulthandler.dump_traceback_later(2 * seconds + 120, exit=True)
    with ModelPool(folder, context_length=512) as pool:
        soak = Soak(pool, seed, 0.6 * seconds, n_requests)
        soak.run()
    dropped = drops(folder, seed, 0.4 * seconds, n_drops)
    wrong, notes = soak.wrong + dropped["wrong"], {**soak.counts, **dropped["counts"]}
    for what, memory, warm_up in (
        ("requests", soak.memory, WARM_UP),
        ("pools", dropped["memory"], WARM_UP_DROPS),
    ):
        growth = grown(memory, warm_up)
        if growth is None:
            notes[f"{what}: too few to measure their memory ({len(memory)} measurements)"] = 1
            continue
        notes[f"{what}: memory grew by {growth[0]:.2%} ({growth[1]})"] = 1
        if growth[0] > MOST_GROWN:
            wrong.append(f"memory of {what} grew by {growth[0]:.1%}: {growth[1]}")
    done = soak.done + dropped["done"]
    print(json.dumps({"done": done, "wrong": wrong, "notes": notes}), flush=True)
    faulthandler.cancel_dump_traceback_later()
    os.write(2, json.dumps(soak.memory[:: max(1, len(soak.memory) // 20)]).encode() + b"\n")


if __name__ == "__main__":
    main()
