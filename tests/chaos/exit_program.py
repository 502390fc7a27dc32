"""A program that is at work when it ends; exits.py says when and how.

    python exit_program.py FOLDER KIND ENDING SECONDS SEED
    python exit_program.py

What its threads must not see is printed as WRONG. Without arguments it is a server, which has
imported what takes long to import: for each line of arguments on stdin it forks, tells the child's
pid, and then its status. The child's output goes to files, whose names end the line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dspy
from dspy.lm15 import Config, LM15Error, Message, Request

import pyllama
from adapter import (
    AsyncLlamaCppEngine,
    LlamaCppAdapter,
    LlamaCppConfig,
    LlamaCppEngine,
    LlamaCppError,
    LoadedModel,
    ModelPool,
)


def serve() -> list[str]:
    """Fork for each line, and return its arguments in the child."""
    while line := sys.stdin.readline():
        *arguments, out, err = line.split()
        if pid := os.fork():
            print(pid, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        os.setsid()
        for number, name in ((1, out), (2, err)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        return arguments
    os._exit(0)


arguments = sys.argv[1:] or serve()
FOLDER, KIND, ENDING, SECONDS, SEED = (
    Path(arguments[0]),
    *arguments[1:3],
    *map(float, arguments[3:]),
)
BY_SIGNAL = ENDING.startswith("SIG")
draw = random.Random(SEED)
kept: list[object] = []  # until the interpreter ends
ending = threading.Event()
end_at = time.monotonic() + (120 if BY_SIGNAL else SECONDS)


class Planned(Exception):
    """What a program ends with that has a fault of its own."""


def over() -> bool:
    return ending.is_set() or time.monotonic() > end_at


def end() -> None:
    """End as was asked for, but by a signal."""
    ending.set()
    if ENDING == "sys.exit":
        sys.exit(3)
    if ENDING == "exception":
        raise Planned
    if ENDING == "os._exit":
        os._exit(7)


def wait() -> None:
    while not over():
        time.sleep(min(0.05, max(0, end_at - time.monotonic())))


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Errors that may come once the program ends, and no others."""
    try:
        yield
    except (LM15Error, LlamaCppError, pyllama.LlamaError) as error:
        if not ending.is_set():
            wrong(error)
    except RuntimeError as error:  # Python's own, of executors
        if "after interpreter shutdown" not in str(error) or not ending.is_set():
            wrong(error)
    except Exception as error:
        wrong(error)


def wrong(error: Exception) -> None:
    sys.stderr.write(f"WRONG {error!r}\n{''.join(traceback.format_exception(error))}\n")


# Models


def pool() -> ModelPool:
    """A pool, which nobody closes but where its owner does."""
    made = ModelPool(
        FOLDER,
        context_length=draw.choice([256, 1024]),
        max_contexts=draw.choice([None, 2]),
        reproducible=draw.random() < 0.8,
    )
    if draw.random() < 0.7:
        kept.append(made)
    return made


def load(made: ModelPool) -> LoadedModel:
    return made.load_model(draw.choice(["small", "slow"]))


def engine_of(loaded: LoadedModel) -> LlamaCppEngine:
    # Streams that nobody reads on would keep all contexts of isolated requests for ever.
    execution = draw.choice(["batched", "isolated"] if KIND != "streams" else ["batched"])
    return LlamaCppEngine(loaded, LlamaCppConfig(loaded.name, execution=execution, max_tokens=200))


def request(engine: LlamaCppEngine) -> Request:
    text = "hello world " * draw.choice([1, 10, 40])
    return Request(
        engine.model, (Message.user(text),), config=Config(max_tokens=draw.choice([5, 100]))
    )


# Programs


def sync() -> None:
    engine = engine_of(load(pool()))
    while not over():
        with working():
            engine.complete(request(engine))
    end()


def closing() -> None:
    """Ends within the block that closes the pool, while others work."""
    with pool() as made:
        try:
            engine = engine_of(load(made))
            threads(lambda: engine.complete(request(engine)))
            wait()
            end()
        finally:
            ending.set()


def threaded() -> None:
    engine = engine_of(load(pool()))
    threads(lambda: engine.complete(request(engine)))
    wait()
    end()


def threads(work: Callable[[], object], most: int = 8) -> None:
    """Several threads that do it again and again."""

    def loop() -> None:
        while not over():
            with working():
                work()

    daemon = draw.random() < 0.5
    for _ in range(min(most, draw.choice([1, 2, 8]))):
        threading.Thread(target=loop, daemon=daemon).start()


def executor() -> None:
    engine = engine_of(load(pool()))
    executor = ThreadPoolExecutor(4)

    def once() -> None:
        with working():
            engine.complete(request(engine))

    for _ in range(8):
        executor.submit(once)
    kept.append(executor)
    wait()
    end()


def tasks() -> None:
    loaded = load(pool())

    async def work(engine: AsyncLlamaCppEngine) -> None:
        while not over():
            with working():
                if draw.random() < 0.5:
                    await engine.complete(request(engine.engine))
                else:
                    async for _ in engine.stream(request(engine.engine)):
                        if draw.random() < 0.02:
                            break

    async def main() -> None:
        engine = AsyncLlamaCppEngine(engine_of(loaded))
        kept.extend(asyncio.create_task(work(engine)) for _ in range(draw.choice([1, 4, 16])))
        while not over():
            await asyncio.sleep(0.01)
        end()

    asyncio.run(main())


def streams() -> None:
    """Streams that nobody finishes."""
    engine = engine_of(load(pool()))

    def one() -> None:
        stream = engine.stream(request(engine))
        for _ in range(draw.choice([0, 1, 3, 20])):
            next(stream, None)
        how = draw.randrange(3)
        if how == 0:
            kept.append(stream)
        elif how == 1:
            cycle: list[object] = [stream]
            cycle.append(cycle)

    def several() -> None:
        for _ in range(6):
            one()
        time.sleep(0.05)

    if draw.random() < 0.5:
        threads(several)
    else:
        with working():
            several()
    wait()
    end()


def binding() -> None:
    """Threads that go on whatever a decode raises."""
    model = pyllama.Model(FOLDER / f"{draw.choice(['small', 'slow'])}.gguf")
    contexts = [pyllama.Context(model, n_ctx=1024, n_threads=1) for _ in range(draw.choice([1, 3]))]
    batch = pyllama.Batch.from_tokens([70] * draw.choice([1, 100, 1000]))

    def work() -> None:
        context = draw.choice(contexts)
        context.memory.clear(data=False)
        context.decode(batch)
        chain = pyllama.SamplerChain([pyllama.Sampler.dist(1)])
        chain.sample(context)

    def loop() -> None:
        while not (over() and draw.random() < 0.3):
            with contextlib.suppress(pyllama.LlamaError):
                work()

    for _ in range(draw.choice([1, 4])):
        threading.Thread(target=loop, daemon=True).start()
    if draw.random() < 0.5:
        kept.append(contexts)
    wait()
    end()


def loading() -> None:
    """Threads that load and unload."""
    made = pool()

    def work() -> None:
        name = draw.choice(["small", "slow"])
        loaded = made.load_model(name)
        if draw.random() < 0.3:
            with contextlib.suppress(LlamaCppError):
                made.unload_model(name)
        else:
            engine = engine_of(loaded)
            with contextlib.suppress(LM15Error):  # unloaded by another thread
                engine.complete(request(engine))

    def loop() -> None:
        while not over():
            with contextlib.suppress(LlamaCppError):
                work()

    for _ in range(3):
        threading.Thread(target=loop, daemon=draw.random() < 0.5).start()
    wait()
    end()


def programs() -> None:
    """DSPy's own threads."""
    loaded = load(pool())
    config = LlamaCppConfig(loaded.name, max_tokens=20, enable_cache=False)
    adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
    dspy.configure(lm=adapter.lm, adapter=adapter)
    predict = dspy.Predict("question -> answer: bool")
    parallel = dspy.Parallel(num_threads=4, disable_progress_bar=True, max_errors=1000)

    def work() -> None:
        parallel([(predict, {"question": str(number)}) for number in range(8)])

    threads(work, most=1)  # its progress bars do not stand several
    wait()
    end()


print("ready", flush=True)
try:
    globals()[KIND]()
finally:
    ending.set()
