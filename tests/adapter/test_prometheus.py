"""What Prometheus is told of a pool."""

from __future__ import annotations

import time

import pytest
import synthetic
from prometheus_client import CollectorRegistry, generate_latest

from adapter import ModelPool
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.prometheus import PoolCollector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    synthetic.write_model(folder / "tiny.gguf")
    return folder


def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def request(n_prompt, max_tokens=4):
    return GenerationRequest(tuple(range(3, 3 + n_prompt)), max_tokens, Sampling(), seed=1)


def test_counts_levels_and_histograms_are_reported_by_model(folder):
    registry = CollectorRegistry()
    with ModelPool(folder) as pool:
        registry.register(PoolCollector(pool))
        generator = pool.load_model("tiny").generators["batched"]
        for _ in range(2):
            result = generator.generate(request(30))

        def value(name, **labels):
            return registry.get_sample_value(f"pyllama_{name}", {"model": "tiny", **labels})

        # The scheduler counts once the caller has its answer.
        assert eventually(lambda: (value("requests_total"), value("running")) == (2, 0))
        assert value("waiting") == 0
        assert value("prompt_tokens_total") + value("cached_tokens_total") == 60
        assert value("cached_tokens_total") == result.cache_read_tokens > 0
        assert value("first_token_seconds_count") == 2
        assert value("request_seconds_bucket", le="+Inf") == 2
        assert value("kv_cells") >= value("kv_tokens") > 0
        assert b"# TYPE pyllama_batch_size histogram" in generate_latest(registry)


def test_counts_outlive_an_eviction(folder):
    with ModelPool(folder, max_models=1, aliases={}) as pool:
        loaded = pool.load_model("tiny")
        loaded.generators["batched"].generate(request(20))
        synthetic.write_model(folder / "other.gguf", seed=2)
        pool.load_model("other")
        loaded.generators["batched"].generate(request(20))
        assert eventually(lambda: pool.metrics()["tiny"].requests == 2)
