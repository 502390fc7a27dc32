"""What a pool's models have done, for Prometheus. Needs the extra ``prometheus``.

from prometheus_client import REGISTRY
from adapter.prometheus import PoolCollector

REGISTRY.register(PoolCollector(pool))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client import Metric

    from adapter.generation.metrics import Histogram
    from adapter.models.pool import ModelPool

COUNTERS = {
    "prompt_tokens": "Tokens of prompts that were computed",
    "cached_tokens": "Tokens of prompts that were in memory",
    "idle_tokens": "Tokens computed for the next turn of a conversation while no request ran",
    "output_tokens": "Tokens that were sampled by requests that came to their end",
    "requests": "Requests that came to their end",
}
GAUGES = {
    "running": "Requests that have a sequence",
    "waiting": "Requests that wait for a sequence",
    "kv_tokens": "Tokens that sequences hold in memory",
    "kv_cells": "Tokens that there is memory for",
}
HISTOGRAMS = {
    "queue_seconds": "Time until a request got a sequence",
    "first_token_seconds": "Time until a request's first token",
    "request_seconds": "Time until a request's end",
    "tokens_per_second": "Tokens a second of a request, from its arrival on",
    "batch_size": "Sequences decoded at once",
}


class PoolCollector(Collector):
    """Reads a pool's metrics whenever Prometheus asks. Each name begins with ``pyllama_``.

    Every metric has the label ``model``, the model's name in its pool.
    """

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def describe(self) -> Iterable[Metric]:
        """Describe nothing in advance: the models are not known yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family for each count, level and histogram."""
        snapshots = self._pool.metrics()
        for kind, texts in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for key, text in texts.items():
                family = kind(f"pyllama_{key}", text, labels=["model"])
                for name, snapshot in snapshots.items():
                    family.add_metric([name], getattr(snapshot, key))
                yield family
        for key, text in HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"pyllama_{key}", text, labels=["model"])
            for name, snapshot in snapshots.items():
                found = snapshot.histograms[key]
                histogram.add_metric([name], _buckets(found), found.total)
            yield histogram


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Counts as Prometheus wants them: the number of values up to each bound."""
    total, buckets = 0, []
    bounds = [*map(str, histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
