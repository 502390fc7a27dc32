"""How many sequences are decoded in one batch: what takes the least time of what may be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

CALL_SECONDS = 100e-6
"""What a call costs beside its computation."""


class BatchSizes:
    """The sizes that a batch may have, and how long each takes.

    A step of two sequences may take longer than two steps of one: a CPU may have a fast kernel for
    one row, and another for four rows and more.

    Args:
        seconds: what a batch took, by its size. Sizes between these are allowed, too, and are
            assumed to take a time between theirs. The size 1 is among them.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        sizes = sorted(seconds)
        #: What was measured.
        self.measured = dict(seconds)
        #: The largest that is allowed.
        self.largest = sizes[-1]
        every = np.arange(1, self.largest + 1)
        self._seconds = np.interp(every, sizes, [seconds[size] for size in sizes]) + CALL_SECONDS
        # By number of sequences: the time of all their batches, and the size of one of them.
        self._least = [(0.0, 0)]

    def split(self, items: list[Item]) -> Iterator[list[Item]]:
        """The items in batches that take the least time together."""
        left = iter(items)
        for size in self.sizes(len(items)):
            yield list(islice(left, size))

    def sizes(self, count: int) -> list[int]:
        """The sizes of the batches that compute this many sequences in the least time."""
        for n in range(len(self._least), count + 1):
            most = min(n, self.largest)
            # Beside a batch of each size, what the others take.
            others = [self._least[n - size][0] for size in range(1, most + 1)]
            totals = self._seconds[:most] + np.array(others)
            size = most - int(np.argmin(totals[::-1]))  # of equals the largest
            self._least.append((float(totals[size - 1]), size))
        found = []
        while count:
            found.append(self._least[count][1])
            count -= found[-1]
        return sorted(found, reverse=True)


ONE_BY_ONE = BatchSizes({1: 0.0})
"""What keeps the bytes of every model."""


class Windows:
    """Runs of a context's sequences that are decoded together, whether or not all have a token.

    Those that have none are padded, so that each batch is as wide as others of its size, and the
    bytes are the same at any load.

    Args:
        seconds: what a batch took, by its size. No other sizes are used.
        count: how many sequences the context has; at least as many as the smallest size.
    """

    def __init__(self, seconds: Mapping[int, float], count: int) -> None:
        self._seconds = {size: each + CALL_SECONDS for size, each in seconds.items()}
        self._count = count

    def cover(self, seq_ids: Iterable[int]) -> list[range]:
        """The windows that hold these sequences and take the least time."""
        ids = sorted(seq_ids)
        least: list[tuple[float, list[range]]] = [(0.0, [])]  # for the last of them, backwards
        for index in range(len(ids) - 1, -1, -1):
            ways = []
            for size, seconds in self._seconds.items():
                begin = min(ids[index], self._count - size)
                total, others = least[len(ids) - bisect_left(ids, begin + size)]
                ways.append((seconds + total, [range(begin, begin + size), *others]))
            least.append(min(ways, key=lambda way: (way[0], len(way[1]))))
        return least[-1][1]
