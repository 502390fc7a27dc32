"""Counts and times of a scheduler, read as a snapshot."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Histogram:
    """How often a value was at most each bound. The last count is of values beyond all bounds."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; 0 if there are none."""
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True)
class MetricsSnapshot:
    """The counts and histograms of one moment.

    Attributes:
        prompt_tokens: tokens of prompts that were computed.
        cached_tokens: tokens of prompts that were not computed, because they were in memory.
        idle_tokens: tokens that were computed for the next turn of a conversation while no request
            ran. They are not among ``prompt_tokens``, and no request is charged for them.
        output_tokens: tokens that were sampled by requests that have ended.
        requests: how many have ended.
        running: requests that have a slot.
        waiting: requests that wait for one.
        kv_tokens: tokens that sequences hold in memory, for their requests or for later ones.
        kv_cells: tokens that there is memory for.
        queue_seconds: time until a request got a slot.
        first_token_seconds: time until its first token.
        request_seconds: time until its end.
        tokens_per_second: of a request, from its arrival on.
        batch_size: sequences decoded at once.
    """

    prompt_tokens: int
    cached_tokens: int
    idle_tokens: int
    output_tokens: int
    requests: int
    running: int
    waiting: int
    kv_tokens: int
    kv_cells: int
    histograms: Mapping[str, Histogram]


@dataclass
class _Counting:
    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def frozen(self) -> Histogram:
        return Histogram(self.bounds, tuple(self.counts), self.total)


class Metrics:
    """Counts what a scheduler does. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may read, too
        self._counts = dict.fromkeys(("prompt", "cached", "idle", "output", "requests"), 0)
        self._levels = dict.fromkeys(("running", "waiting", "kv_tokens", "kv_cells"), 0)
        self._histograms = {
            "queue_seconds": _Counting(SECONDS),
            "first_token_seconds": _Counting(SECONDS),
            "request_seconds": _Counting(SECONDS),
            "tokens_per_second": _Counting(RATES),
            "batch_size": _Counting(SIZES),
        }

    def admitted(self, seconds: float) -> None:
        """Count a request that got a sequence."""
        self._add(queue_seconds=seconds)

    def reused(self, tokens: int) -> None:
        """Count tokens of a prompt that were in memory."""
        with self._lock:
            self._counts["cached"] += tokens

    def computed(self, tokens: int) -> None:
        """Count tokens of a prompt that were computed."""
        with self._lock:
            self._counts["prompt"] += tokens

    def prefilled(self, tokens: int) -> None:
        """Count tokens that were computed for the next turn of a conversation."""
        with self._lock:
            self._counts["idle"] += tokens

    def began(self, seconds: float) -> None:
        """Count a first token."""
        self._add(first_token_seconds=seconds)

    def stepped(self, sequences: int) -> None:
        """Count a batch."""
        self._add(batch_size=sequences)

    def at(self, *, running: int, waiting: int, kv_tokens: int, kv_cells: int) -> None:
        """Note the current state."""
        levels = {
            "running": running, "waiting": waiting, "kv_tokens": kv_tokens, "kv_cells": kv_cells
        }  # fmt: skip
        with self._lock:
            self._levels = levels

    def ended(self, seconds: float, tokens: int) -> None:
        """Count a request that came to its end."""
        with self._lock:
            self._counts["requests"] += 1
            self._counts["output"] += tokens
        self._add(request_seconds=seconds, tokens_per_second=tokens / max(seconds, 1e-9))

    def seconds_per_request(self) -> float:
        """How long a request took on average; 1 before the first has ended."""
        with self._lock:
            histogram = self._histograms["request_seconds"].frozen()
        return histogram.mean or 1.0

    def snapshot(self) -> MetricsSnapshot:
        """All counts at this moment."""
        with self._lock:
            counts = self._counts
            return MetricsSnapshot(
                prompt_tokens=counts["prompt"],
                cached_tokens=counts["cached"],
                idle_tokens=counts["idle"],
                output_tokens=counts["output"],
                requests=counts["requests"],
                **self._levels,
                histograms=MappingProxyType(
                    {name: counting.frozen() for name, counting in self._histograms.items()}
                ),
            )

    def _add(self, **values: float) -> None:
        with self._lock:
            for name, value in values.items():
                self._histograms[name].add(value)
