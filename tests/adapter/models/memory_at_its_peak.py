"""A child's program: takes all that a model's plan reserves, and prints plan and use in bytes.

python memory_at_its_peak.py FOLDER NAME SETTINGS
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import pyllama
from adapter import ModelPool
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.scoring import ScoringRequest
from adapter.models.hardware import HOST


def peak_bytes() -> int:
    """The most memory that this process held so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status")


def main(folder: str, name: str, settings: str) -> None:
    random = np.random.default_rng(0)

    def request(n_prompt: int, max_tokens: int) -> GenerationRequest:
        prompt = tuple(int(token) for token in random.integers(20, 200, n_prompt))
        endless = Sampling(temperature=1.0, logit_bias=dict.fromkeys(ends, -100.0))
        return GenerationRequest(prompt, max_tokens, endless, 1, logprobs=5)

    pyllama.devices()  # what backends and their drivers take is no part of a model's plan
    before = peak_bytes()
    with ModelPool(folder, n_gpu_layers=0, **json.loads(settings)) as pool:
        loaded = pool.load_model(name)
        placement = pool._loader.slot(loaded.path).placement
        ends = loaded.turn_ends
        length = placement.context_length
        batched, isolated = (loaded.generators[kind] for kind in ("batched", "isolated"))

        # Prompts that leave the context are kept elsewhere.
        kept = [request(min(200, length - 9), 2) for _ in range(8)]
        for one in kept:
            batched.generate(one)
        # Short ones go on in a small context while larger ones are made for longer ones.
        with ExitStack() as streams:

            def begin(count: int, max_tokens: int) -> None:
                opened = [batched.stream(request(40, max_tokens)) for _ in range(count)]
                for stream in opened:
                    streams.callback(stream.close)
                threads = [threading.Thread(target=next, args=(stream,)) for stream in opened]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            begin(2, min(500, length - 50))
            begin(4, min(900, length - 50))
            if placement.n_contexts > 6:
                begin(placement.n_contexts - 6, length - 50)
            text = request(length * 2 // 3, 1).prompt
            others = [
                lambda: batched.score(ScoringRequest(text, ((21,), (22, 23), (24, 25, 26)), (2,))),
                lambda: isolated.generate(request(length * 2 // 3, 4)),
            ]
            running = [threading.Thread(target=call) for call in others]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
        for one in kept:
            batched.generate(one)
        cells = pool.metrics()[name].kv_cells
    found = [placement.memory[HOST], peak_bytes() - before, cells, placement.n_contexts]
    sys.stdout.write(json.dumps(found))


main(*sys.argv[1:])
