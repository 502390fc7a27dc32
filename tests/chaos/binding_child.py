"""Runs cases of the binding's fuzzer that it reads from stdin, one JSON text a line.

    python binding_child.py FILES LOG

Before each call the log is told of it, so that it is known what a process that died was doing. For
each case a line of JSON on stdout says what was wrong. With PYLLAMA_CHAOS_TRACE in the environment
stderr is told of every call of pyllama with its arguments.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import binding_more_calls  # noqa: F401  (registers its calls)
import numpy as np
from binding_calls import CALLS
from binding_world import Interrupted, Planned, Skipped, World

import pyllama
from pyllama._callbacks import raise_polled

# numpy imports it when it is first used, and a signal's handler can part an import from its lock.
_ = np.random

#: What pyllama's documentation lets leave a call.
DOCUMENTED = (pyllama.LlamaError, ValueError, TypeError, IndexError, OSError)
#: Of Python's own RuntimeErrors, and of what a sampler in Python is told that uses its own chain.
TOLERATED = ("start new thread", "is at work")
#: A case takes a tenth of a second, and a hundred times that on a machine that does much else.
CASE_SECONDS = 120
#: Bytes of address space: a case must not take the whole machine's memory. Each processor adds
#: threads, with their stacks and heaps, to each thread that computes.
MOST_MEMORY = (6 << 30) + (512 << 20) * (os.cpu_count() or 1)


class Lines(logging.StreamHandler[TextIO]):
    """As Python's from 3.13 on, whose lock a signal's handler cannot part from the block."""

    def handle(self, record: logging.LogRecord) -> bool:
        assert self.lock is not None
        with self.lock:
            self.emit(record)
        return True


class Runner:
    """Runs cases, one after the other."""

    def __init__(self, files: Path, log: int) -> None:
        self._files = files
        self._log = log
        self._out = threading.Lock()
        self._armed = False
        self._reference = pyllama.Model(files / "llama.gguf")
        self._expected = self._compute()
        signal.signal(signal.SIGALRM, self._interrupt)

    def run(self, case: dict[str, Any]) -> dict[str, Any]:
        """Make all calls of a case, and say what was wrong and what happened how often."""
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        self._wrong: list[str] = []
        self._notes: Counter[str] = Counter()
        self._case = case
        folder = Path(tempfile.mkdtemp(dir=self._files))
        world = World(self._files, folder, self._shorten, CALLS)
        self._world = world
        try:
            self._shorten(None)
            self._calls(world, 0, case["begin"])
            threads = [
                threading.Thread(target=self._calls, args=(world, number, calls))
                for number, calls in enumerate(case["threads"][1:], 2)
            ]
            # KiB; documented as enough for everything.
            threading.stack_size(case["stack"] << 10)
            started = []
            for thread in threads:
                try:
                    thread.start()
                except RuntimeError:  # no memory for a stack
                    self._notes["a thread that could not start"] += 1
                else:
                    started.append(thread)
            threading.stack_size(0)
            if case["interrupted"]:
                signal.setitimer(signal.ITIMER_REAL, 0.003, 0.005)
            self._calls(world, 1, case["threads"][0])
            signal.setitimer(signal.ITIMER_REAL, 0)
            for thread in started:
                thread.join()
            self._shorten(None)
            self._end(world)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._shorten(None)
            shutil.rmtree(folder, ignore_errors=True)
        try:
            with suppress(Interrupted):  # came while the last call logged a line
                raise_polled()
            if self._compute() != self._expected:
                self._wrong.append("other logits after the case than before it")
        except Exception as error:
            self._wrong.append(f"a new context after the case: {error!r}")
        faulthandler.cancel_dump_traceback_later()
        return {"number": case["number"], "wrong": self._wrong, "notes": self._notes}

    def _calls(self, world: World, thread: int, calls: list[tuple[str, int]]) -> None:
        number = self._case["number"]
        if "PYLLAMA_CHAOS_TRACE" in os.environ:
            sys.setprofile(self._trace)
        for index, (name, seed) in enumerate(calls):
            os.write(self._log, b"%d %d %d %s\n" % (number, thread, index, name.encode()))
            try:
                try:
                    self._armed = thread == 1
                    CALLS[name](world, random.Random(seed))
                    self._notes[f"{name} done"] += 1
                finally:
                    if thread == 1:
                        self._armed = False
            except (Skipped, Planned, Interrupted) as error:
                self._notes[type(error).__name__] += 1
            except BaseException as error:
                self._judge(name, error)
        os.write(self._log, b"%d %d -1 end\n" % (number, thread))

    def _trace(self, frame: FrameType, event: str, _: object) -> None:
        back = frame.f_back
        if event != "call" or back is None or "binding_" not in back.f_code.co_filename:
            return
        code = frame.f_code
        if f"{os.sep}pyllama{os.sep}" in code.co_filename:
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            given = ", ".join(f"{name}={_words(frame.f_locals[name])}" for name in names)
            with self._out:
                sys.stderr.write(f"[{threading.get_ident() % 1000}] {code.co_name}({given})\n")

    def _judge(self, name: str, error: BaseException) -> None:
        """Sort what left a call."""
        self._notes[type(error).__name__] += 1
        if isinstance(error, pyllama.NativeAssertionError):
            self._notes[str(error)[:160]] += 1
        if isinstance(error, DOCUMENTED) or "Unable to allocate" in str(error):
            return  # numpy's own MemoryError, for an array of the size that was asked for
        if isinstance(error, (MemoryError, ImportError)) and self._case["short"]:
            return
        if name == "copy_object" and isinstance(error, (AttributeError, RecursionError)):
            return  # a view of another module's, such as numpy's
        if isinstance(error, RuntimeError) and any(word in str(error) for word in TOLERATED):
            return
        where = traceback.format_tb(error.__traceback__)[-1].strip().splitlines()[0]
        self._wrong.append(f"{name} raised {type(error).__name__}: {str(error)[:300]} ({where})")

    def _end(self, world: World) -> None:
        """Close everything in a thread that holds no lock, in one order or another."""

        def close() -> None:
            for kind in random.Random(self._case["number"]).sample(
                ["context", "chain", "model"], 3
            ):
                for made in world._made[kind]:
                    try:
                        made.close()
                    except BaseException as error:
                        self._judge(f"close of a {kind}", error)

        os.write(self._log, b"%d 9 0 closing\n" % self._case["number"])
        if self._case["number"] % 2:
            thread = threading.Thread(target=close)
            thread.start()
            thread.join()
        world.forget()
        gc.collect()
        os.write(self._log, b"%d 9 -1 end\n" % self._case["number"])

    def _compute(self) -> bytes:
        with pyllama.Context(self._reference, n_ctx=64, n_threads=1) as context:
            context.decode(pyllama.Batch.from_tokens([1, 20, 30, 40]))
            return np.asarray(context.logits()).tobytes()

    def _interrupt(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise Interrupted

    def _shorten(self, room: int | None) -> None:
        most = MOST_MEMORY
        if room is not None:
            if not self._case["short"]:
                raise Skipped("this case has memory")
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + room
        # Sanitizers take terabytes of addresses.
        preloaded = os.environ.get("LD_PRELOAD", "")
        if sys.platform == "linux" and not re.search("lib[at]san", preloaded):
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _words(value: object) -> str:
    try:
        return f"{value!r:.160}".replace("\n", " ")
    except Exception:  # half made
        return f"<{type(value).__name__}>"


def main() -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    logging.getLogger().addHandler(Lines())
    runner = Runner(Path(sys.argv[1]), log)
    for line in sys.stdin:
        print(json.dumps(runner.run(json.loads(line))))


if __name__ == "__main__":
    main()
