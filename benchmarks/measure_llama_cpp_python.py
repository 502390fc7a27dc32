"""The measurements of llama-cpp-python that overhead.py asks for: a JSON object on stdout.

Its documented loop: ``Llama.eval``, ``Llama.sample``, ``Llama.detokenize``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

begin_import = time.perf_counter()
from llama_cpp import Llama  # noqa: E402

IMPORT_SECONDS = time.perf_counter() - begin_import

N_PROMPT, N_DECODE = 512, 128
SIMPLE_THREADS = 4  # llama-simple's


def measure_load(prompt: str, path: str) -> dict[str, float]:
    """From nothing to the first logits."""
    begin = time.perf_counter()
    llama = Llama(path, n_ctx=256, n_threads=SIMPLE_THREADS, verbose=False)
    llama.eval(llama.tokenize(prompt.encode(), add_bos=False))
    return {"load": 1e3 * (time.perf_counter() - begin)}


def measure_speed(path: str, threads: int) -> dict[str, float]:
    figures = {}
    llama = Llama(
        path, n_ctx=N_PROMPT, n_batch=N_PROMPT, n_threads=threads, n_threads_batch=threads,
        verbose=False,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, llama.n_vocab(), N_PROMPT).tolist()

    def decode() -> None:
        for token in tokens[:N_DECODE]:
            llama.eval([token])

    def writer(**sampling: float) -> Callable[[], None]:
        def generate() -> None:
            token = 1
            for _ in range(N_DECODE):
                llama.eval([token])
                token = llama.sample(**sampling)
                llama.detokenize([token])

        return generate

    figures["prompt"] = N_PROMPT / timed(llama, lambda: llama.eval(tokens))
    figures["decode"] = N_DECODE / timed(llama, decode)
    figures["greedy"] = N_DECODE / timed(llama, writer(temp=0.0))
    sampling = {"top_k": 40, "top_p": 0.95, "min_p": 0.0, "typical_p": 1.0, "temp": 0.8}
    figures["sampled"] = N_DECODE / timed(llama, writer(**sampling, repeat_penalty=1.0))
    return figures


def timed(llama: Llama, run: Callable[[], None]) -> float:
    """Seconds of one run, after another to warm up, each from an empty memory."""
    for _ in range(2):
        llama.reset()
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
    return seconds


if __name__ == "__main__":
    what, prompt, path, threads = sys.argv[1:]
    if what == "import":
        measured = {"import": 1e3 * IMPORT_SECONDS}
    elif what == "load":
        measured = measure_load(prompt, path)
    else:
        measured = measure_speed(path, int(threads))
    json.dump(measured, sys.stdout)
