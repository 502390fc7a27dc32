"""Cases that each run in a fork of a child that has imported what they need, and nothing more."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from instruments import (
    Asked,
    Failure,
    Told,
    command,
    environment,
    is_ended_by_others,
    run_child,
    side_by_side,
)

import pyllama

#: Cases of one child; it takes half a second to start.
BATCH = 25
#: Seconds that a case may take; it takes milliseconds.
BOUND = 60
#: What a case may end with that neither succeeds nor dies: it was told that it cannot be done.
_REFUSED = 4


def run(asked: Asked, script: str, env: dict[str, str]) -> Told:
    """Have the script, which calls work_off(), do the cases; what died or hung is a failure."""
    told = Told()
    outcomes = told.notes

    def batch(numbers: range) -> list[Failure]:
        return list(failures(numbers))

    def failures(numbers: range) -> Iterator[Failure]:
        arguments = (asked.folder, asked.seed, numbers.start, numbers.stop)
        ended = run_child(command(script, *arguments), BOUND * BATCH, env=environment(**env))
        lines = [json.loads(line) for line in ended.out.splitlines()]
        for number, kind, outcome, detail in lines:
            outcomes[f"{kind}: {outcome}"] += 1
            if is_ended_by_others(outcome, detail):
                continue
            if outcome not in ("done", "refused"):
                yield Failure(number, f"{kind}: {outcome}", detail)
        if ended.status != 0 or len(lines) != len(numbers):
            yield Failure(numbers.start, f"the child {ended.words}", ended.err[-3000:])

    ran = side_by_side(asked, batch, BATCH)
    ran.notes = outcomes
    return ran


def work_off(case: Callable[[Path, random.Random], tuple[str, Callable[[], None]]]) -> None:
    """A child's main program.

    :param case: makes a case: its kind and details in words, and what to do.
    """
    folder, seed, start, stop = Path(sys.argv[1]), *map(int, sys.argv[2:])
    for number in range(start, stop):
        words, work = case(folder, random.Random(f"{seed}.{number}"))
        outcome, said = _fork(work)
        detail = f"{words}\n{said[-1500:]}"  # in it may be what some would take for ends of lines
        print(json.dumps([number, words.split(",")[0], outcome, detail]), flush=True)


def _fork(work: Callable[[], None]) -> tuple[str, str]:
    """What came of it, and what it wrote to stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(writing, 2)
        signal.alarm(BOUND)
        os._exit(_status(work))
    os.close(writing)
    with open(reading, "rb") as stream:
        said = stream.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("hung" if number == signal.SIGALRM else signal.Signals(number).name), said
    code = os.WEXITSTATUS(status)
    return {0: "done", _REFUSED: "refused"}.get(code, f"ended with {code}"), said


def _status(work: Callable[[], None]) -> int:
    try:
        work()
    except pyllama.NativeAssertionError as error:
        os.write(2, f"{error}".encode())
        return 5
    except (pyllama.LlamaError, MemoryError, ValueError) as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
        return _REFUSED
    except BaseException:
        unlimited()
        traceback.print_exc()
        return 3
    finally:
        unlimited()
    return 0


def unlimited() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def limit(room: int) -> None:
    """From now on the process can have so many bytes more than it has."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_used_bytes() + room, hard))


def attempt(call: Callable[[], Any]) -> Any:
    """Make a call that may fail for want of memory; None if it did."""
    try:
        return call()
    except (pyllama.LlamaError, MemoryError, OSError):
        return None
    except SystemError as error:  # Python itself lost an error for want of memory
        if "without exception set" not in str(error):
            raise
        return None
    except RuntimeError as error:
        if not any(words in str(error) for words in ("start new thread", "allocate lock")):
            raise
        return None


def _used_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
