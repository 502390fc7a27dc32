"""How many threads compute: fewer while other work takes the processors."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapter.generation.failures import note
from adapter.generation.processor_load import ONE_FREE, ONE_TAKEN, ProcessorLoad, threads_beside

logger = logging.getLogger(__name__)

N_COMPARED = 4
"""Calls of one size by whose time two numbers of threads are compared."""

FIRST_WAIT, LONGEST_WAIT = 16, 512
"""Calls between two comparisons. It doubles each time that all numbers changed nothing."""

PAUSE = 0.25
"""Seconds without a call after which nothing is known about the present load."""

PATIENCE = 32
"""Calls after which a comparison is given up if too few of them had its size."""

GAIN = 0.93
"""The part of the time that another number of threads must need at most to be used."""

STARVED = 0.9
"""The part of its calls' time below which the calling thread had too little of its processor."""

REMEMBERED = 15 / 16
"""What the time of earlier calls counts after each call, as one call proves no other work."""


class ThreadTuner:
    """Compares numbers of threads while they compute. Only the scheduler's thread uses it.

    All threads wait for the slowest, so one that shares its processor with other work makes a call
    many times as long. Where it is known how many processors other work takes, the threads get
    those that are left, or half of their number if that is more.

    What that cannot tell is found by trial, in calls of one size while others go on as before. On
    an idle machine fewer threads are never tried: the calling thread computes all the time there.
    If it does not, other work has its processor, or that of a thread that it waits for, and fewer
    threads may be faster.

    Args:
        most: the number to begin with.
        exact: whether other numbers of threads leave the bytes the same, or None while that is not
            known. Asked before any other is tried.
        load: says how many processors other work takes; None if nothing does.
    """

    def __init__(
        self,
        most: int,
        exact: Callable[[int], bool | None],
        load: ProcessorLoad | None = None,
    ) -> None:
        #: Threads that compute, but for calls in which another number is tried.
        self.n_threads = most
        self._most = most
        self._exact = exact
        self._load = load
        self._used_at = 0.0
        self._free = most  # threads that have a processor of their own, as far as is known
        self._seconds: dict[int, deque[float]] = {}  # by size of the call, with the usual number
        self._compared: int | None = None  # the size whose calls are compared now
        self._tried = most
        self._found: list[float] = []
        self._took = self._had = 0.0  # seconds of late calls, and those with a processor
        self._refused = most == 1
        self._n_calls = 0
        self._wait = FIRST_WAIT
        self._turn = 0  # comparisons since the usual number changed
        self._n_ways = 1

    @contextmanager
    def measured(self, size: int) -> Iterator[int]:
        """Measure a call in the block. Yields the number of threads to use for it.

        Args:
            size: its tokens.
        """
        self.look()
        begin, begin_used = time.perf_counter(), time.thread_time()
        yield self.threads_for(size)
        self._used_at = time.monotonic()
        self.took(size, time.perf_counter() - begin, time.thread_time() - begin_used)

    def threads_for(self, size: int) -> int:
        """The number of threads for the next call, if it has this many tokens."""
        return self._tried if size == self._compared else self.n_threads

    def look(self) -> int:
        """Adapt the number of threads to what other work takes now. Returns the number."""
        if self._load is not None and not self._refused:
            now = time.monotonic()
            others = self._load.others(now, paused=now > self._used_at + PAUSE)
            self._used_at = now
            if others is not None:
                self._adapt(others)
        return self.n_threads

    def _adapt(self, others: float) -> None:
        """Use as many threads as other work leaves. Fewer that a trial found faster stay.

        Args:
            others: processors that it takes.
        """
        surely = threads_beside(others - ONE_FREE, self._most)
        perhaps = threads_beside(others - ONE_TAKEN, self._most)
        free = min(max(self._free, surely), perhaps)
        if free == self._free or not self._may_differ():
            return
        before, self._free = self._free, free
        if self.n_threads > free or self.n_threads == before:
            note(logger, logging.INFO, "computing with %d threads beside other work", free)
            self._use(free)

    def _may_differ(self) -> bool:
        """Whether another number of threads than all may be used."""
        exact = self._exact(self._most)
        self._refused = exact is False
        return bool(exact)

    def _use(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._wait, self._turn = FIRST_WAIT, 0
        self._compared, self._n_calls = None, 0
        self._seconds.clear()

    def took(self, size: int, seconds: float, used: float) -> None:
        """Record a call.

        Args:
            used: seconds that the calling thread had a processor.
        """
        if self._refused:
            return
        self._n_calls += 1
        self._took = self._took * REMEMBERED + seconds
        self._had = self._had * REMEMBERED + used
        if self._compared is not None:
            if size == self._compared:
                self._found.append(seconds)
            too_long = sum(self._found) >= GAIN * sum(self._seconds[self._compared])
            if too_long or len(self._found) == N_COMPARED:
                self._decide(not too_long)
            elif self._n_calls > PATIENCE:
                self._decide(False)
            return
        usual = self._seconds.setdefault(size, deque(maxlen=N_COMPARED))
        usual.append(seconds)
        if self._n_calls >= self._wait and len(usual) == N_COMPARED:
            self._begin(size)

    def _begin(self, size: int) -> None:
        """Try another number of threads in calls of this size, if there is a reason to."""
        self._n_calls = 0
        starved = self._had < STARVED * self._took
        ways = (self._fewer() if starved else []) + self._more()
        if ways and self._may_differ():
            self._tried = ways[self._turn % len(ways)]
            self._turn += 1
            self._n_ways = len(ways)
            self._compared, self._found = size, []

    def _fewer(self) -> list[int]:
        """Numbers below the present one: the next, parts of it, and one, which waits for nobody."""
        now = self.n_threads
        ways = dict.fromkeys([now - 1, now * 3 // 4, now // 2, now // 4, 1])
        return [n for n in ways if 1 <= n < now]

    def _more(self) -> list[int]:
        """Numbers above the present one, up to all that are free: one more alone gains too little
        to be seen.
        """
        now, most = self.n_threads, self._free
        ways = dict.fromkeys([most, now + 1, now * 5 // 4, now * 3 // 2])
        return [n for n in ways if now < n <= most]

    def _decide(self, better: bool) -> None:
        if better:
            note(logger, logging.INFO, "computing with %d threads", self._tried)
            self._use(self._tried)
            return
        if self._turn % self._n_ways == 0:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        self._compared, self._n_calls = None, 0
        self._seconds.clear()
