"""Requests to the models of a pool, from threads and tasks, and what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dspy.lm15 import Config, LM15Error, Message, Request, StreamDeltaEvent
from dspy.lm15 import TimeoutError as RequestTimeout

from adapter import AsyncLlamaCppEngine, LlamaCppConfig, LlamaCppEngine, LlamaCppError, ModelPool

N_REQUESTS = 12


def request(engine: LlamaCppEngine, number: int) -> Request:
    """One of the requests that are made: the same number gives the same bytes."""
    draw = random.Random(number)
    text = "hello world " * draw.choice([0, 1, 5, 30]) + f"{number}"
    messages = (Message.user(text),)
    if draw.random() < 0.3:
        messages = (Message.user("hello"), Message.assistant("world"), *messages)
    config = Config(max_tokens=draw.choice([1, 8, 40]), temperature=0.9, seed=number)
    return Request(engine.model, messages, config=config)


def answer(engine: LlamaCppEngine, number: int) -> str:
    return str(engine.complete(request(engine, number)).text)


#: At once, in the thread with an event loop.
N_TASKS = 4


@dataclass
class Outcomes:
    """What requests ended with while one fault was there."""

    #: Names of the errors that tell the truth about it.
    allowed: tuple[str, ...]
    #: Whether bytes are those of the request alone.
    exact: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def error(self, error: BaseException, *more: str) -> None:
        name = type(error).__name__
        self.counts[name] += 1
        if name not in (*self.allowed, *more):
            lines = traceback.format_exception(error)
            self.wrong.append(f"{name}: {str(error)[:300]}\n{''.join(lines)[-2500:]}")

    def text(self, found: str, expected: str, *, whole: bool = True) -> None:
        self.counts["answers" if whole else "beginnings"] += 1
        if not self.exact:
            return
        if found != expected if whole else not expected.startswith(found):
            self.wrong.append(f"other bytes than alone\n{found!r}\nnot\n{expected!r}")


class Load:
    """Threads and tasks that make requests until they are stopped."""

    def __init__(
        self, pool: ModelPool, expected: dict[tuple[str, int], str], seed: int, n_threads: int = 3
    ) -> None:
        self._pool = pool
        self._expected = expected
        self._seed = seed
        self._stop = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self.outcomes = Outcomes(())
        self._threads = [
            threading.Thread(target=self._thread, args=(number,), name=f"load-{number}")
            for number in range(n_threads)
        ]
        self._threads.append(threading.Thread(target=self._tasks, name="load-tasks"))
        self._helpers = ThreadPoolExecutor(N_TASKS)

    def start(self) -> None:
        # All now: Python waits for ever for a thread that has not the memory to begin.
        ready = threading.Barrier(N_TASKS + 1)
        for _ in range(N_TASKS):
            self._helpers.submit(ready.wait)
        ready.wait()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._helpers.shutdown()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Begin no more requests in a block."""
        self._go.clear()
        try:
            yield
        finally:
            self._go.set()

    def _engine(self, draw: random.Random, **settings: Any) -> LlamaCppEngine:
        name = draw.choice(sorted({name for name, _ in self._expected}))
        try:
            loaded = self._pool.load_model(name)
        except (LlamaCppError, MemoryError):
            raise
        except Exception as error:
            raise RuntimeError(f"load_model() raised {error!r}") from error
        execution = draw.choice(["batched", "batched", "batched", "isolated"])
        config = LlamaCppConfig(loaded.name, execution=execution, initial_backoff_ms=0, **settings)
        return LlamaCppEngine(loaded, config)

    def _thread(self, number: int) -> None:
        draw = random.Random(f"{self._seed}/{number}")
        while not self._stop.is_set():
            self._go.wait()
            outcomes = self.outcomes
            sys.settrace(threading.gettrace())  # an exception has ended it
            try:
                self._one(draw, outcomes)
            except LM15Error as error:
                outcomes.error(error)
            except Exception as error:
                outcomes.error(_as_engines_tell(error))
                time.sleep(0.01)

    def _one(self, draw: random.Random, outcomes: Outcomes) -> None:
        number, how = draw.randrange(N_REQUESTS), draw.random()
        if how < 0.1:
            engine = self._engine(draw, timeout_secs=draw.choice([0.001, 0.01, 5.0]))
            try:
                outcomes.text(answer(engine, number), self._expected[engine.loaded.name, number])
            except RequestTimeout as error:
                outcomes.error(error, "TimeoutError")
            return
        engine = self._engine(draw)
        expected = self._expected[engine.loaded.name, number]
        if how < 0.6:
            outcomes.text(answer(engine, number), expected)
            return
        stream, text = engine.stream(request(engine, number)), ""
        most = draw.choice([0, 1, 3, 1000])
        for event in stream:
            if isinstance(event, StreamDeltaEvent):
                text += getattr(event.delta, "text", "")
                most -= 1
            if most <= 0:
                stream.close()
                outcomes.text(text, expected, whole=False)
                return
        outcomes.text(text, expected)

    def _tasks(self) -> None:
        asyncio.run(self._loop())

    async def _loop(self) -> None:
        draw = random.Random(f"{self._seed}/tasks")
        while not self._stop.is_set():
            self._go.wait()
            tasks = [asyncio.create_task(self._task(draw)) for _ in range(N_TASKS)]
            await asyncio.sleep(draw.choice([0, 0.01, 0.05]))
            for task in tasks:
                if draw.random() < 0.4:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _task(self, draw: random.Random) -> None:
        outcomes = self.outcomes
        twin = None
        try:
            number = draw.randrange(N_REQUESTS)
            loop = asyncio.get_running_loop()
            engine = await loop.run_in_executor(self._helpers, self._engine, draw)
            twin = AsyncLlamaCppEngine(engine)
            response = await twin.complete(request(engine, number))
            outcomes.text(str(response.text), self._expected[engine.loaded.name, number])
        except asyncio.CancelledError:
            outcomes.counts["cancelled"] += 1
            raise
        except LM15Error as error:
            outcomes.error(error)
        except Exception as error:
            outcomes.error(_as_engines_tell(error))
        finally:
            if twin is not None:
                await twin.aclose()


def _as_engines_tell(error: Exception) -> BaseException:
    """What an engine makes of the error of a load: an lm15 error, or the error itself."""
    from adapter.engine.lm15_errors import lm15_errors

    try:
        with lm15_errors():
            raise error
    except Exception as told:
        return told
