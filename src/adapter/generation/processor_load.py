"""How many processors other work takes."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

FIRST_SECONDS, SECONDS = 0.1, 0.25
"""The time between the first two readings, and between later ones, at least.

The first answers should have the right number of threads soon, and so should the trial of how long
a batch takes. In less time a processor has too few ticks, of 10 ms each.
"""

STAT = Path("/proc/stat")
TASKS = Path("/proc/self/task")

ONE_TAKEN, ONE_FREE = 0.4, 0.15
"""The part of a processor above which other work takes it, and below which it is free again."""

USED = (1, 3, 6, 7, 8)
"""Fields of a processor's line in /proc/stat: user, system, irq, softirq, steal.

What is left out: idle, iowait, and guests, which are counted as user.
"""

NICED = 2
"""The field of work with a lower priority. It gives way to a process that has the usual one."""


class _Reading(NamedTuple):
    at: float
    busy: float  # seconds that the processors worked
    own: float  # seconds of them for this process
    threads: dict[int, float]  # seconds of each Python thread of this process


class ProcessorLoad:
    """The processors that are not free for a computation, while it runs.

    That is what other processes use, and Python threads of this process besides the calling one.
    It is read from Linux's ``/proc``; elsewhere nothing is known. One thread at a time uses it.
    """

    def __init__(self) -> None:
        self._last: _Reading | None = None
        self._next = 0.0  # when it is read again
        self._average: float | None = None

    def others(self, now: float, *, paused: bool = False) -> float | None:
        """How many processors other work takes: an average in which the latest time counts most.

        Args:
            now: by ``time.monotonic()``.
            paused: whether nothing was computed for a while. What was read before is forgotten.

        Returns:
            None if that is not known, or if it was read a moment ago.
        """
        if paused:
            self._last = self._average = None
        elif now < self._next:
            return None
        last, self._last = self._last, _read(now)
        self._next = now + (FIRST_SECONDS if last is None else SECONDS)
        if last is None or self._last is None:
            return None
        found = _used_by_others(last, self._last)
        if self._average is not None:
            found = (self._average + found) / 2
        self._average = found
        return found


def _used_by_others(last: _Reading, now: _Reading) -> float:
    """Processors between two readings."""
    here = threading.get_native_id()
    threads = sum(
        max(0.0, seconds - last.threads.get(tid, 0.0))
        for tid, seconds in now.threads.items()
        if tid != here
    )
    used = now.busy - last.busy - (now.own - last.own) + threads
    return max(0.0, used / (now.at - last.at))


def free_threads(most: int) -> int:
    """As many threads as other work leaves processors just now, but at least half of ``most``.

    It takes a quarter of a second to find that out.
    """
    if most == 1:
        return 1
    load = ProcessorLoad()
    load.others(time.monotonic())
    time.sleep(SECONDS)
    others = load.others(time.monotonic())
    return most if others is None else threads_beside(others - ONE_TAKEN, most)


def threads_beside(others: float, most: int) -> int:
    """The threads that have a processor of their own, but at least half of ``most``.

    Args:
        others: processors that other work takes; a part of one counts as one.
    """
    return min(max(n_processors() - math.ceil(others), most // 2, 1), most)


def n_processors() -> int:
    """How many processors this process may run on."""
    return len(_processors())


def _processors() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _read(at: float) -> _Reading | None:
    try:
        names = {f"cpu{number}" for number in _processors()}
        counted = (*USED, NICED) if os.nice(0) > 0 else USED
        ticks = 0
        for line in STAT.read_text("ascii").splitlines():
            fields = line.split()
            if not fields or not fields[0].startswith("cpu"):
                break
            if fields[0] in names:
                ticks += sum(int(fields[index]) for index in counted)
        busy = ticks / os.sysconf("SC_CLK_TCK")
        return _Reading(at, busy, time.process_time(), _thread_seconds())
    except (OSError, ValueError, IndexError, AttributeError, MemoryError):
        return None  # no request fails because of it


def _thread_seconds() -> dict[int, float]:
    """Processor time of each Python thread of this process."""
    found = {}
    for tid in (thread.native_id for thread in threading.enumerate()):
        if tid is not None:
            try:
                text = (TASKS / str(tid) / "schedstat").read_text("ascii")
                found[tid] = int(text.split()[0]) / 1e9
            except (OSError, ValueError, IndexError):  # it has ended
                continue
    return found
