"""One measurement of pyllama, in a process of its own, for overhead.py: a JSON object on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

begin_import = time.perf_counter()
import pyllama  # noqa: E402

IMPORT_SECONDS = time.perf_counter() - begin_import

from pyllama._native._binding import lib  # noqa: E402

N_PROMPT, N_DECODE = 512, 128
N_RUNS = 1000  # of measure_python
TEXT = "hello world, and the rest of it: 3.14"
SIMPLE_THREADS = 4  # llama-simple's


def measure_load(prompt: str, path: str) -> dict[str, float]:
    """From nothing to the first logits, as llama-simple counts its load time."""
    pyllama.load_backends()
    begin = time.perf_counter()
    with pyllama.Model(path) as model:
        tokens = model.vocab.tokenize(prompt, parse_special=True)
        with pyllama.Context(
            model, n_ctx=len(tokens), n_batch=len(tokens), n_threads=SIMPLE_THREADS
        ) as context:
            context.decode(pyllama.Batch.from_tokens(tokens))
            context.logits()
            return {"load": 1e3 * (time.perf_counter() - begin)}


def measure_speed(path: str, threads: int) -> dict[str, float]:
    """As llama-bench does it: a context for each test, one run to warm up, random tokens."""
    figures = {}
    sampler = pyllama.Sampler
    samplers = {
        "greedy": [sampler.greedy()],
        "sampled": [sampler.top_k(40), sampler.top_p(0.95), sampler.temp(0.8), sampler.dist(1)],
    }
    with pyllama.Model(path) as model:
        tokens = np.random.default_rng(0).integers(0, len(model.vocab), N_PROMPT, dtype=np.int32)
        with pyllama.Context(model, n_ctx=N_PROMPT, n_threads=threads) as context:

            def process() -> None:
                context.decode(pyllama.Batch.from_tokens(tokens))

            figures["prompt"] = N_PROMPT / timed(context, process)
        with pyllama.Context(model, n_ctx=N_DECODE, n_threads=threads) as context:

            def decode() -> None:
                for pos, token in enumerate(tokens[:N_DECODE].tolist()):
                    context.decode_token(token, pos)

            figures["decode"] = N_DECODE / timed(context, decode)
            for name, steps in samplers.items():
                with pyllama.SamplerChain(steps) as chain:
                    generate = writer(context, chain, pyllama.Detokenizer(model.vocab))
                    figures[name] = N_DECODE / timed(context, generate)
    return figures


def measure_python(path: str) -> dict[str, float]:
    """Microseconds of Python in each token.

    The loop that users write, less the same C calls made from a bare loop, which is given back
    what calling C from Python takes. All run on one thread, whose processor time is taken, and of
    many short runs the fastest of each counts: what disturbs a run only makes it longer.
    """
    with (
        pyllama.Model(path) as model,
        pyllama.Context(model, n_ctx=N_DECODE, n_threads=1) as context,
        pyllama.SamplerChain([pyllama.Sampler.greedy()]) as chain,
    ):
        raw_context, raw_chain = context._open().pointer, chain._open().pointer
        decode, sample = lib.guarded_decode_token, lib.guarded_chain_sample
        nothing = lib.llama_max_devices

        detokenizer = pyllama.Detokenizer(model.vocab)
        # A tiny model writes noise; what is turned into text is what a real one writes.
        text = model.vocab.tokenize(TEXT, add_special=False)

        def written() -> None:
            token = 1
            for pos, written_token in enumerate(text):
                context.decode_token(token, pos)
                token = chain.sample(context)
                detokenizer.push(written_token)

        def bare() -> None:
            token = 1
            for pos in range(len(text)):
                decode(raw_context, token, pos, 0)
                token = sample(raw_chain, raw_context, -1)

        def calls() -> None:
            for _ in text:
                nothing()
                nothing()

        runs = (written, bare, calls)
        rounds = [[timed(context, run, time.thread_time) for run in runs] for _ in range(N_RUNS)]
        fastest = [min(seconds) for seconds in zip(*rounds, strict=True)]
        return {"python": 1e6 * (fastest[0] - fastest[1] + fastest[2]) / len(text)}


def writer(
    context: pyllama.Context, chain: pyllama.SamplerChain, detokenizer: pyllama.Detokenizer
) -> Callable[[], None]:
    """The loop that users write."""

    def generate() -> None:
        token = 1
        for pos in range(N_DECODE):
            context.decode_token(token, pos)
            token = chain.sample(context)
            detokenizer.push(token)

    return generate


def timed(
    context: pyllama.Context,
    run: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one run, after another to warm up, each from an empty memory."""
    for _ in range(2):
        context.memory.clear(data=False)
        begin = clock()
        run()
        seconds = clock() - begin
    return seconds


if __name__ == "__main__":
    what, prompt, path, threads, *tiny = sys.argv[1:]
    if what == "import":
        measured = {"import": 1e3 * IMPORT_SECONDS}
    elif what == "load":
        measured = measure_load(prompt, path)
    elif what == "speed":
        measured = measure_speed(path, int(threads))
    else:
        measured = measure_python(*tiny)
    json.dump(measured, sys.stdout)
