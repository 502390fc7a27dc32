"""What the instruments share: how one is asked to run, what it tells, and children with a limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
#: Where children find the tests' own modules.
SEARCHED = os.pathsep.join([str(HERE), str(HERE.parent)])


@dataclass(frozen=True)
class Asked:
    """What to run."""

    seed: int
    #: Wall-clock time after which no new case is begun.
    seconds: float
    #: The most cases; None for as many as there is time for.
    count: int | None
    #: Run this one alone.
    case: int | None
    #: For files of the instrument's own.
    folder: Path

    def numbers(self, batch: int = 1) -> Iterator[range]:
        """The numbers of the cases to run, a batch at a time, until the time is over."""
        if self.case is not None:
            yield range(self.case, self.case + 1)
            return
        end, first = time.monotonic() + self.seconds, 0
        while time.monotonic() < end and (self.count is None or first < self.count):
            yield range(
                first, first + batch if self.count is None else min(first + batch, self.count)
            )
            first += batch


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong."""

    case: int
    #: What it was, in a line that is the same for failures of one kind.
    kind: str
    detail: str = ""


@dataclass
class Told:
    """What came of a run."""

    done: int = 0
    failures: list[Failure] = field(default_factory=list)
    #: What happened how often.
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status, minus the signal's number, or None if it had to be."""

    status: int | None
    out: str
    err: str

    @property
    def words(self) -> str:
        if self.status is None:
            return "hung"
        if self.status < 0:
            return f"died of {signal.Signals(-self.status).name}"
        return f"ended with {self.status}"


#: How glibc's loader and OpenMP end a process that has no memory for a new thread's variables, or
#: for a few hundred bytes. docs/limits.md says where nothing can prevent it.
_ENDED_BY_OTHERS = {
    "ended with 127": "cannot allocate memory for thread-local data",
    "ended with 1": "libgomp: ",
}


def is_ended_by_others(words: str, err: str) -> bool:
    """Whether libraries that nobody can keep from it ended a child for want of memory."""
    return words in _ENDED_BY_OTHERS and _ENDED_BY_OTHERS[words] in err


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-X", "faulthandler", str(HERE / script), *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """A child's environment: it finds the tests' modules, and its idle threads sleep."""
    given = {**os.environ, "PYTHONPATH": SEARCHED, "PYTHONUNBUFFERED": "1"}
    return {**given, "OMP_WAIT_POLICY": "passive", **more}


def checking_allocator() -> dict[str, str]:
    """What makes glibc's allocator look for a damaged heap; nothing where it is not to be had."""
    for library in Path("/lib").glob("*/libc_malloc_debug.so.0"):
        return {"LD_PRELOAD": str(library), "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    return {}


def run_child(
    arguments: Sequence[str],
    seconds: float,
    *,
    stdin: str = "",
    env: dict[str, str] | None = None,
    during: Callable[[subprocess.Popen[str]], None] | None = None,
) -> Ended:
    """Run a child to its end, which comes after so many seconds at the latest.

    A child that hangs is asked by SIGABRT to tell where all of its threads are.

    :param during: called once it has been started.
    """
    child = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=env or environment(),
        start_new_session=True,
    )
    try:
        if during is not None:
            during(child)
        out, err = child.communicate(stdin if not child.stdin.closed else None, timeout=seconds)
        return Ended(child.returncode, out, err)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = child.communicate(timeout=10)
            return Ended(None, out, err)
        child.kill()
        out, err = child.communicate()
        return Ended(None, out, err)
    finally:
        # What the child started and left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def side_by_side(asked: Asked, run: Callable[[range], Iterable[Failure]], batch: int = 1) -> Told:
    """Run cases in as many threads as there are processors."""
    n_jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    told = Told()
    running: dict[Future[Iterable[Failure]], range] = {}

    def take(finished: Iterable[Future[Iterable[Failure]]]) -> None:
        for future in list(finished):
            told.failures += future.result()
            told.done += len(running.pop(future))

    with ThreadPoolExecutor(n_jobs) as jobs:
        for numbers in asked.numbers(batch):
            running[jobs.submit(run, numbers)] = numbers
            while len(running) >= n_jobs:
                take(wait(running, return_when=FIRST_COMPLETED).done)
        take(wait(running).done)
    return told
