"""How many processors other work takes."""

from __future__ import annotations

import math
import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

FIRST_SECONDS, SECONDS = 0.1, 0.25
"""The least time between the first two readings of a computation, and between later ones.

The first answers should soon have the right number of threads, and so should the trial of how long
a batch takes. A shorter time would tell too little: Linux gives idle time in steps of 10 ms.
"""

STAT = Path("/proc/stat")
TASKS = Path("/proc/self/task")

ONE_TAKEN, ONE_FREE = 0.4, 0.15
"""The part of a processor above which it counts as taken by other work, and below which as free."""

COUNTED = slice(1, 9)
"""Fields of a processor's line in /proc/stat that add up to all its time.

The fields after them, guest and guest_nice, are parts of user and nice.
"""

RESTED = (4, 5)
"""The fields of time in which a processor had nothing to do: idle, iowait.

Linux measures these. What a processor did in the rest of the time is a guess: a tick comes some
hundred times a second, and all the time since the last one counts for what runs at that moment.
For threads that sleep and wake between two ticks this is wrong: over a tenth of a second, by more
than a whole processor.
"""

NICED = 2
"""The field of work with a lower priority, which gives way to a process with the usual one."""


class _Reading(NamedTuple):
    at: float
    processors: set[int]
    counted: int  # ticks of all their time
    rested: float  # seconds in which they were free for this process
    own: float  # seconds of processor time that this process used
    threads: dict[int, float]  # the same of each Python thread of this process


class ProcessorLoad:
    """How many processors are not free for a computation, while it runs.

    Other processes use them, or Python threads of this process other than the calling one. This is
    read from Linux's ``/proc``; elsewhere nothing is known. One thread at a time uses an object.
    """

    def __init__(self) -> None:
        self._last = _read(time.monotonic())
        self._next = 0.0  # when it is read again
        self._average: float | None = None

    def others(self, now: float, *, paused: bool = False) -> float | None:
        """How many processors other work takes: an average in which the latest time counts most.

        Args:
            now: by ``time.monotonic()``.
            paused: whether nothing was computed for a while. The average then begins anew, and the
                first answer is what other processes used during the pause. Python threads of this
                process are left out of it: most of those that worked then now wait for the
                computation.

        Returns:
            None if that is not known, or if it was read a moment ago.
        """
        if paused:
            self._average = None
            self._next = 0.0
        if self._last is not None:
            self._next = max(self._next, self._last.at + FIRST_SECONDS)
        if now < self._next:
            return None
        last, self._last = self._last, _read(now)
        self._next = now + (FIRST_SECONDS if paused or last is None else SECONDS)
        if last is None or self._last is None:
            return None
        found = _used_by_others(last, self._last, with_threads=not paused)
        if found is None or paused:
            return found
        if self._average is not None:
            found = (self._average + found) / 2
        self._average = found
        return found


def _used_by_others(last: _Reading, now: _Reading, *, with_threads: bool) -> float | None:
    """Processors that other work used between two readings. None if the readings do not compare."""
    if now.processors != last.processors or now.counted <= last.counted:
        return None
    seconds = now.at - last.at
    used = seconds * len(now.processors) - (now.rested - last.rested) - (now.own - last.own)
    if with_threads:
        here = threading.get_native_id()
        used += sum(
            max(0.0, at - last.threads.get(tid, 0.0))
            for tid, at in now.threads.items()
            if tid != here
        )
    return max(0.0, used / seconds)


def free_threads(most: int) -> int:
    """A thread for each processor that is free just now, but at least half of ``most``.

    Finding that out takes a quarter of a second.
    """
    if most == 1:
        return 1
    load = ProcessorLoad()
    time.sleep(SECONDS)
    others = load.others(time.monotonic())
    return most if others is None else threads_beside(others - ONE_TAKEN, most)


def threads_beside(others: float, most: int) -> int:
    """How many threads get a processor of their own, but at least half of ``most``.

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
        processors = _processors()
        names = {f"cpu{number}" for number in processors}
        free = RESTED if os.nice(0) > 0 else (*RESTED, NICED)
        listed = counted = rested = 0
        for line in STAT.read_text("ascii").splitlines():
            fields = line.split()
            if not fields or not fields[0].startswith("cpu"):
                break
            if fields[0] in names:
                listed += 1
                counted += sum(map(int, fields[COUNTED]))
                rested += sum(int(fields[index]) for index in free)
        if listed < len(processors):  # as in some containers
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        own = time.process_time()
        return _Reading(at, processors, counted, rested / ticks, own, _thread_seconds())
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
