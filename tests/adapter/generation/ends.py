"""A program that ends in many ways while a scheduler is at work: one child of fork() for each.

    python ends.py MODEL RUNS SEED

prints what each child's end was, as JSON: the way, its seed, the wait status, and what it wrote.
The children are made before any model is loaded, which is when a fork is allowed.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dspy.lm15 import Config, Message, Request
from schedules import endless, isolated_of, request_of, scheduler_of, tokens

import pyllama
from adapter import LlamaCppConfig, LlamaCppEngine, ModelPool
from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.errors import LlamaCppError
from adapter.generation import scheduler as scheduler_module
from adapter.generation.memory.prefix_folder import PrefixFolder
from adapter.generation.scoring import ScoringRequest

PATIENCE = 60.0
"""Seconds that an exit may take."""


def report(text):
    os.write(1, f"{text}\n".encode())


def long_request(seed):
    return request_of(tokens(seed, 700), max_tokens=1000, seed=seed)


def call_for_ever(scheduler, seed):
    """What a user's thread may do: call again whatever it is told."""
    while True:
        with contextlib.suppress(LlamaCppError):
            scheduler.generate(long_request(seed))


def score_for_ever(scheduler, seed):
    continuations = tuple(tokens(seed + n, 3) for n in range(40))
    while True:
        with contextlib.suppress(LlamaCppError):
            scheduler.score(ScoringRequest(tokens(seed, 600), continuations, (2,)))


def started(scheduler):
    scheduler.start()
    return scheduler


def kill_after(wait, number):
    """Send this process a signal.

    The timer is kept: if this thread dropped it last, functions of threading would be called for it
    in a callback of a weak reference, where an exception of the signal's handler is lost.
    """
    if number == signal.SIGINT:  # which a shell has programs in the background ignore
        signal.signal(number, signal.default_int_handler)
    globals()["timer"] = timer = threading.Timer(wait, os.kill, (os.getpid(), number))
    timer.start()


def in_daemons(target, *owners):
    for seed, owner in enumerate(owners):
        threading.Thread(target=target, args=(owner, seed), daemon=True).start()


# The ways. Each gets the model's path, and when to end.


def daemons(path, wait):
    scheduler = scheduler_of(pyllama.Model(path))
    in_daemons(call_for_ever, *[scheduler] * 4)
    time.sleep(wait)


def isolated_daemons(path, wait):
    scheduler = isolated_of(pyllama.Model(path))
    in_daemons(call_for_ever, *[scheduler] * 2)
    in_daemons(score_for_ever, scheduler)
    time.sleep(wait)


def scoring_daemons(path, wait):
    scheduler = scheduler_of(pyllama.Model(path))
    in_daemons(score_for_ever, *[scheduler] * 3)
    time.sleep(wait)


def mixed_daemons(path, wait):
    """Several schedulers on one model, one of them as on a GPU."""
    model = pyllama.Model(path)
    mixed = scheduler_of(model, shared_memory=True, reproducible=False, chunk=512)
    in_daemons(call_for_ever, scheduler_of(model), mixed, mixed, isolated_of(model))
    time.sleep(wait)


def unfinished_stream(path, wait):
    """No thread of the user's at all."""
    globals()["kept"] = stream = scheduler_of(pyllama.Model(path)).stream(endless(1))
    next(stream)
    time.sleep(wait)


def unread_streams(path, wait):
    """With an iterator that nobody holds, and one that lies in a cycle."""
    scheduler = scheduler_of(pyllama.Model(path))
    streams = [scheduler.stream(endless(seed)) for seed in range(3)]
    for stream in streams:
        next(stream)
    streams[0].close()
    streams.append(streams)
    time.sleep(wait)


def exit_in_a_thread(path, wait):
    scheduler = scheduler_of(pyllama.Model(path))
    in_daemons(call_for_ever, scheduler)

    def leave():
        next(scheduler.stream(endless(3)))
        sys.exit(3)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    time.sleep(wait)


def exit_with_a_code(path, wait):
    in_daemons(call_for_ever, *[scheduler_of(pyllama.Model(path))] * 2)
    time.sleep(wait)
    sys.exit(7)


def unhandled_error(path, wait):
    in_daemons(call_for_ever, *[scheduler_of(pyllama.Model(path))] * 2)
    time.sleep(wait)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the traceback
    raise RuntimeError("unhandled")


def workers_end_first(path, wait):
    """Threads that are no daemons have their answers: the interpreter waits for them."""
    scheduler = started(scheduler_of(pyllama.Model(path)))

    def work(seed):
        time.sleep(wait)
        report(scheduler.generate(request_of(tokens(seed, 300), seed=seed)).finish_reason)

    for seed in range(3):
        threading.Thread(target=work, args=(seed,)).start()


def executor_ends_first(path, wait):
    scheduler = started(scheduler_of(pyllama.Model(path)))
    threads = ThreadPoolExecutor(4)
    for seed in range(6):
        future = threads.submit(scheduler.generate, request_of(tokens(seed, 300), seed=seed))
        future.add_done_callback(lambda done: report(done.result().finish_reason))
    time.sleep(wait)


def first_requests_after_the_main_thread(path, wait):
    """Python 3.12 starts no thread then."""
    pool = ModelPool(Path(path).parent, n_gpu_layers=0, context_length=2048)
    loaded = pool.load_model(Path(path).stem)

    def ask(execution):
        threading.main_thread().join()
        prompt = loaded.tokenize(loaded.render([{"role": "user", "content": "Hi"}]))
        report(loaded.generators[execution].generate(request_of(prompt)).finish_reason)

    for execution in ("batched", "isolated"):
        threading.Thread(target=ask, args=(execution,)).start()


def first_load_after_the_main_thread(path, wait):
    """It is done, or refused with the reason."""
    pool = ModelPool(Path(path).parent, n_gpu_layers=0, context_length=512)

    def ask():
        threading.main_thread().join()
        try:
            pool.load_model(Path(path).stem)
            report("loaded")
        except LlamaCppError as error:
            report(type(error).__name__)

    threading.Thread(target=ask).start()


def called_by_exit_handlers(path, wait):
    """One that was registered later still gets its answer; an earlier one is told why not."""
    model = pyllama.Model(path)

    def ask():
        try:
            report(scheduler.generate(request_of(tokens(1, 100))).finish_reason)
        except LlamaCppError as error:
            report(type(error).__name__)

    atexit.register(ask)
    scheduler = scheduler_of(model)
    next(scheduler.stream(endless(1)))
    atexit.register(ask)
    time.sleep(wait)


def interrupted(path, wait):
    scheduler = scheduler_of(pyllama.Model(path))
    in_daemons(call_for_ever, scheduler)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the traceback
    kill_after(wait, signal.SIGINT)
    for _ in scheduler.stream(endless(5)):
        pass
    time.sleep(PATIENCE)


def terminated(path, wait):
    in_daemons(call_for_ever, scheduler_of(pyllama.Model(path)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    kill_after(wait, signal.SIGTERM)
    time.sleep(PATIENCE)


def killed(path, wait):
    """By the default of SIGTERM, which runs nothing."""
    in_daemons(call_for_ever, scheduler_of(pyllama.Model(path)))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(wait)
    os.kill(os.getpid(), signal.SIGTERM)


def forked_children(path, wait):
    """A child of the working program ends too, whatever locks were held when it was made."""
    scheduler = scheduler_of(pyllama.Model(path))
    in_daemons(call_for_ever, *[scheduler] * 3)
    for _ in range(5):
        time.sleep(wait / 5)
        child = os.fork()
        if child == 0:
            return  # it runs the handlers of the parent
        report(os.waitpid(child, 0)[1])


def prefix_folder(path, wait):
    folder = PrefixFolder(Path(tempfile.mkdtemp()), "key", max_bytes=2**24)
    in_daemons(call_for_ever, *[scheduler_of(pyllama.Model(path), prefix_folder=folder)] * 3)
    time.sleep(wait)


def engine_of(path):
    pool = ModelPool(Path(path).parent, n_gpu_layers=0, context_length=2048)
    loaded = pool.load_model(Path(path).stem)
    return LlamaCppEngine(loaded, LlamaCppConfig(loaded.name, max_tokens=1500, seed=1))


def request_for(engine, text="Hi"):
    bias = {"logit_bias": {"2": -100.0, "4": -100.0}}
    return Request(engine.model, (Message.user(text),), config=Config(extensions=bias))


def pool_in_daemons(path, wait):
    engine = engine_of(path)

    def ask(_, seed):
        while True:
            with contextlib.suppress(Exception):
                engine.complete(request_for(engine, f"Hi {seed}"))

    in_daemons(ask, *[engine] * 3)
    time.sleep(wait)


def async_program(path, wait):
    engine = engine_of(path)
    asynchronous = AsyncLlamaCppEngine(engine)

    async def main():
        streams = [asynchronous.stream(request_for(engine)) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        tasks = [
            asyncio.ensure_future(asynchronous.complete(request_for(engine, f"Hi {n}")))
            for n in range(3)
        ]
        await asyncio.sleep(wait)
        return tasks  # unfinished, and the streams too

    asyncio.run(main())


def async_loop_left_open(path, wait):
    """No asyncio.run(): nobody cancels the tasks, and nobody closes the loop."""
    engine = engine_of(path)
    asynchronous = AsyncLlamaCppEngine(engine)

    async def main():
        stream = asynchronous.stream(request_for(engine))
        await anext(stream)
        await asyncio.sleep(wait)
        globals()["kept"] = stream

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())


EXPECTED = {
    daemons: 0,
    isolated_daemons: 0,
    scoring_daemons: 0,
    mixed_daemons: 0,
    unfinished_stream: 0,
    unread_streams: 0,
    exit_in_a_thread: 0,
    exit_with_a_code: 7,
    unhandled_error: 1,
    workers_end_first: 0,
    executor_ends_first: 0,
    first_requests_after_the_main_thread: 0,
    first_load_after_the_main_thread: 0,
    called_by_exit_handlers: 0,
    interrupted: -signal.SIGINT,
    terminated: 9,
    killed: -signal.SIGTERM,
    forked_children: 0,
    prefix_folder: 0,
    pool_in_daemons: 0,
    async_program: 0,
    async_loop_left_open: 0,
}
"""Each way with the code that the process ends with; a negative one is a signal."""


def run(way, path, wait, grace):
    """Run a way in a child; return how it ended and what it wrote.

    :param grace: seconds that a step has to end in before it is cancelled.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(writer, 1)
        os.close(writer)
        scheduler_module.GRACE_SECONDS = grace
        way(path, wait)
        return None
    os.close(writer)
    timer = threading.Timer(PATIENCE, os.kill, (child, signal.SIGKILL))
    timer.start()
    with open(reader, "rb") as output:
        written = output.read().decode().split()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    timer.cancel()
    return status, written


def main(path, runs, seed):
    chosen = random.Random(seed)
    for _ in range(runs):
        for way in EXPECTED:
            wait = chosen.choice([0, 0.001, 0.01, 0.05, 0.1, 0.3]) * chosen.random() * 2
            ended = run(way, path, wait, chosen.choice([0.0, 1.0]))
            if ended is None:
                return  # the child goes on to its end
            report(json.dumps([way.__name__, wait, *ended]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
