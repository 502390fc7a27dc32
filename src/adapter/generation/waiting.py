"""The requests that wait for a slot, in order of arrival.

What a step of the scheduler does here takes the same time however many requests wait.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque

from adapter.generation.memory.blocks import BLOCK, CHUNK, BlockHashes
from adapter.generation.memory.prefix_files import Reading
from adapter.generation.sequence import ScheduledRequest

POLLED = 64
"""How many requests a step checks for callers that gave up. All get checked in turn."""

MOST_TAKEN_IN = 32
"""Requests that are put in order in a step, of those that have come."""

_STRIDE = CHUNK // BLOCK


class Waiting:
    """Requests that wait for their turn, or for a prompt that is being computed.

    Callers' threads use only ``append``, ``len`` and ``in``. All else is for the scheduler's
    thread.

    Args:
        count_borders: keep what ``parts_after`` needs.
    """

    def __init__(self, *, count_borders: bool) -> None:
        self._count_borders = count_borders
        self._lock = threading.Lock()
        self._arrived: deque[ScheduledRequest] = deque()
        self._orders: dict[ScheduledRequest, int] = {}
        self._n_taken_in = 0
        # These may contain requests that have left, which are skipped.
        self._ready: list[tuple[int, ScheduledRequest]] = []
        self._parked: dict[ScheduledRequest | Reading, list[tuple[int, ScheduledRequest]]] = {}
        self._deadlines: list[tuple[float, int, ScheduledRequest]] = []
        self._polled: deque[ScheduledRequest] = deque()
        self._borders: Counter[bytes] = Counter()

    def __len__(self) -> int:
        with self._lock:
            return len(self._orders) + len(self._arrived)

    def __contains__(self, sequence: ScheduledRequest) -> bool:
        with self._lock:
            return sequence in self._orders or sequence in self._arrived

    def append(self, sequence: ScheduledRequest) -> None:
        """Add a request at the end."""
        with self._lock:
            self._arrived.append(sequence)  # a single operation: the request is either in or not

    def first(self) -> ScheduledRequest | None:
        """The request whose turn it is; None if all wait for prompts."""
        while True:
            while self._ready:
                sequence = self._ready[0][1]
                if sequence in self._orders:
                    if sequence.state == "queued":
                        return sequence
                    self.leave(sequence)
                heapq.heappop(self._ready)
            if not self._arrived:
                return None
            self._take_in()

    def park(self, sequence: ScheduledRequest, owner: ScheduledRequest | Reading) -> None:
        """Let others pass the first request until what it waits for is computed or read."""
        entry = self._ready[0]
        assert entry[1] is sequence
        self._parked.setdefault(owner, []).append(entry)
        heapq.heappop(self._ready)

    def unpark(self) -> None:
        """Return requests to their places that need not wait for a prompt any more."""
        for owner in [owner for owner in self._parked if owner.state != "prefilling"]:
            self._ready += self._parked[owner]
            heapq.heapify(self._ready)
            del self._parked[owner]

    def leave(self, sequence: ScheduledRequest) -> None:
        """Remove a request that is admitted or has ended."""
        while self._arrived and sequence not in self._orders:
            self._take_in()
        with self._lock:
            if self._orders.pop(sequence, None) is None:
                return
        for block in _borders(sequence) if self._count_borders else ():
            self._borders[block] -= 1
            if not self._borders[block]:
                del self._borders[block]
        most = 2 * len(self._orders) + POLLED
        if len(self._ready) > most:
            self._ready = [entry for entry in self._ready if entry[1] in self._orders]
            heapq.heapify(self._ready)
        if len(self._deadlines) > most:
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._orders]
            heapq.heapify(self._deadlines)

    def drop_finished(self) -> None:
        """End the requests whose time is over or whose callers gave up."""
        self._take_in()
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] < now:
            _, _, sequence = heapq.heappop(self._deadlines)
            self._drop_if_finished(sequence)
        for _ in range(min(POLLED, len(self._polled))):
            sequence = self._polled.popleft()
            if sequence in self._orders and not self._drop_if_finished(sequence):
                self._polled.append(sequence)

    def fail(self, error: BaseException) -> int:
        """End all of them with an error, and return how many there were."""
        with self._lock:
            waiting = dict.fromkeys([*self._orders, *self._arrived])
        for sequence in waiting:
            sequence.fail(error)
        with self._lock:
            self._orders.clear()
            self._arrived.clear()
        self._ready.clear()
        self._parked.clear()
        self._deadlines.clear()
        self._polled.clear()
        self._borders.clear()
        return len(waiting)

    def parts_after(self, hashes: BlockHashes, n_blocks: int, n_most: int) -> bool:
        """Whether a waiting prompt begins with this many blocks of another, and no chunk more.

        Args:
            n_most: blocks after which the other may be cut at the latest.
        """
        if n_blocks % _STRIDE or not n_blocks:
            return False
        more = n_blocks + _STRIDE
        n_with_more = self._borders[hashes[more - 1]] if more <= n_most else 0
        return self._borders[hashes[n_blocks - 1]] > n_with_more

    def _take_in(self) -> None:
        for _ in range(min(MOST_TAKEN_IN, len(self._arrived))):
            sequence = self._arrived[0]  # it is removed last, so that no error can lose it
            self._n_taken_in = order = self._n_taken_in + 1  # never equal for two of them
            heapq.heappush(self._ready, (order, sequence))
            self._polled.append(sequence)
            timeout = sequence.request.timeout
            if timeout is not None:
                heapq.heappush(self._deadlines, (sequence.arrived + timeout, order, sequence))
            if self._count_borders:
                self._borders.update(_borders(sequence))
            with self._lock:
                self._orders[sequence] = order
                self._arrived.popleft()

    def _drop_if_finished(self, sequence: ScheduledRequest) -> bool:
        if sequence in self._orders and sequence.ended_by_caller_or_clock():
            self.leave(sequence)
        return sequence.state == "ended"


def _borders(sequence: ScheduledRequest) -> BlockHashes:
    """The blocks of a prompt after which it may be cut if states cannot be cut back."""
    return sequence.hashes[_STRIDE - 1 : sequence.n_to_border : _STRIDE]
