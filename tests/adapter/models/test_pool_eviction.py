"""Which models make room for others, and that they come back."""

from __future__ import annotations

from shutil import copyfile

import pytest

from adapter.errors import (
    ContextTooLongError,
    ModelChangedError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
    ResourceError,
)
from adapter.generation.pending import taken_from
from adapter.generation.request import GenerationRequest, GenerationResult
from adapter.generation.sampling import Sampling
from adapter.generation.scoring import ScoringRequest, ScoringResult
from adapter.models.hardware import HardwareManager
from adapter.models.pool import ModelPool


def in_memory(pool):
    return {info.name for info in pool.models() if info.loaded}


def test_the_least_recently_used_model_makes_room(pool):
    with ModelPool(pool.model_dir, max_models=2) as small:
        one, _ = small.load_model("one"), small.load_model("two")
        with one.lease() as model:
            pass
        small.load_model("three")
        assert in_memory(small) == {"one", "three"}
        assert not model.closed


def test_an_evicted_model_comes_back_when_it_is_used(pool):
    with ModelPool(pool.model_dir, max_models=1) as small:
        one = small.load_model("one")
        expected = one.tokenize("hello world")
        with one.lease() as model:
            pass
        small.load_model("two")
        assert model.closed
        assert in_memory(small) == {"two"}
        assert one.tokenize("hello world") == expected
        assert in_memory(small) == {"one"}
        assert small.load_model("one") is one


def test_a_model_is_not_evicted_from_under_a_request(pool):
    with ModelPool(pool.model_dir, max_models=1) as small:
        one = small.load_model("one")
        with one.lease() as model:
            with pytest.raises(PoolFullError, match="'one' is in use") as caught:
                small.load_model("two")
            assert not model.closed
        assert (caught.value.needed, caught.value.held, caught.value.limit) == (1, 1, 1)
        assert isinstance(caught.value, ResourceError)
        assert small.load_model("two").name == "two"


@pytest.mark.parametrize("execution", ["batched", "isolated"])
@pytest.mark.parametrize("kind", ["answer", "scores"])
def test_a_model_stays_until_a_request_that_nobody_waits_for_is_closed(pool, execution, kind):
    """Its caller may have a lease on a model that has failed since, and was replaced."""
    with ModelPool(pool.model_dir, max_models=1, context_length=64) as small:
        generator = small.load_model("one").generators[execution]
        if kind == "answer":
            request = GenerationRequest((5, 6, 7), 3, Sampling(), 1)
            pending = generator.submit(request)
        else:
            pending = generator.submit_scoring(ScoringRequest((5, 6), ((7,), (8,)), (2,)))
        with pytest.raises(PoolFullError, match="'one' is in use"):
            small.load_model("two")
        while not isinstance(result := taken_from(pending), (GenerationResult, ScoringResult)):
            assert result is not None
        with pytest.raises(PoolFullError, match="'one' is in use"):
            small.load_model("two")
        pending.close()
        pending.close()  # which does nothing
        assert small.load_model("two").name == "two"


def test_a_request_that_cannot_begin_keeps_no_model(pool):
    with ModelPool(pool.model_dir, max_models=1, context_length=64) as small:
        generator = small.load_model("one").generators["batched"]
        with pytest.raises(ContextTooLongError):
            generator.submit(GenerationRequest((5,) * 64, 3, Sampling(), 1))
        assert small.load_model("two").name == "two"


def test_a_pinned_model_stays(pool):
    with ModelPool(pool.model_dir, max_models=1) as small:
        assert small.pin_model("one") is small.load_model("one")
        assert [info.name for info in small.models() if info.pinned] == ["one"]
        with pytest.raises(PoolFullError, match="'one' is pinned"):
            small.load_model("two")
        small.unpin_model("one")
        small.load_model("two")
        assert in_memory(small) == {"two"}
        with pytest.raises(ModelNotLoadedError):
            small.unpin_model("three")


def test_a_pinned_model_can_be_unloaded(pool):
    pool.pin_model("one")
    pool.unload_model("one")
    assert in_memory(pool) == set()


def test_a_budget_of_bytes_is_kept(pool):
    path = pool.model_dir / "one.gguf"
    plan = HardwareManager(devices=()).plan(path, context_length=64, n_contexts=1)
    [needed] = plan.memory.values()
    options = {"context_length": 64, "max_contexts": 1, "n_gpu_layers": 0}
    with ModelPool(pool.model_dir, memory_budget=2 * needed, **options) as small:
        for name in ("one", "two", "three"):
            small.load_model(name)
        assert in_memory(small) == {"two", "three"}
    with ModelPool(pool.model_dir, memory_budget=needed - 1, **options) as smaller:
        with pytest.raises(PoolFullError, match="smaller quantization") as caught:
            smaller.load_model("one")
        assert (caught.value.needed, caught.value.held) == (needed, 0)
        assert caught.value.limit == needed - 1
        assert caught.value.unit == "bytes"


def test_a_budget_of_bytes_is_for_the_models_of_one_pool(pool):
    plan = HardwareManager(devices=()).plan(
        pool.model_dir / "one.gguf", context_length=64, n_contexts=1
    )
    [needed] = plan.memory.values()
    options = {"context_length": 64, "max_contexts": 1, "n_gpu_layers": 0}
    with (
        ModelPool(pool.model_dir, memory_budget=2 * needed, **options) as other,
        ModelPool(pool.model_dir, memory_budget=2 * needed, **options) as small,
    ):
        for name in ("one", "two"):
            other.load_model(name)
            small.load_model(name)
        assert in_memory(other) == in_memory(small) == {"one", "two"}


def test_within_a_small_budget_fewer_requests_run_at_once(pool):
    """They are what is left open; the length of a request is not made shorter."""
    path, options = pool.model_dir / "one.gguf", {"n_gpu_layers": 0}
    plan = HardwareManager(devices=()).plan(path, context_length=1024)
    with ModelPool(pool.model_dir, context_length=1024, **options) as large:
        large.load_model("one")
        assert large.metrics().keys() == {"one"}
    budget = sum(plan.memory.values()) - 1
    with ModelPool(pool.model_dir, memory_budget=budget, context_length=1024, **options) as small:
        loaded = small.load_model("one")
        assert loaded.context_length == 1024
        assert sum(small._loader.slot(path).placement.memory.values()) <= budget


def test_nothing_is_evicted_for_what_cannot_fit_anyway(pool, write_tiny_model):
    copyfile(write_tiny_model(n_layer=8), pool.model_dir / "large.gguf")
    plan, options = HardwareManager(devices=()).plan, {"context_length": 64}
    small, large = (
        sum(plan(pool.model_dir / f"{name}.gguf", **options, n_contexts=1).memory.values())
        for name in ("one", "large")
    )
    assert small < large
    with ModelPool(
        pool.model_dir, memory_budget=large - 1, max_contexts=1, n_gpu_layers=0, **options
    ) as full:
        full.load_model("one")
        with pytest.raises(PoolFullError):
            full.load_model("large")
        assert in_memory(full) == {"one"}


def test_a_file_that_changed_while_its_model_was_evicted_is_refused(pool, write_tiny_model):
    with ModelPool(pool.model_dir, max_models=1) as small:
        one = small.load_model("one")
        small.load_model("two")
        copyfile(write_tiny_model(chat_template=None, seed=9), pool.model_dir / "one.gguf")
        for use in (lambda: one.tokenize("hello"), lambda: small.load_model("one")):
            with pytest.raises(ModelChangedError, match="unload_model"):
                use()
        small.unload_model("one")
        assert small.load_model("one").fingerprint != one.fingerprint


def test_a_file_that_is_gone_while_its_model_was_evicted_is_missing(pool):
    with ModelPool(pool.model_dir, max_models=1) as small:
        one = small.load_model("one")
        small.load_model("two")
        (pool.model_dir / "one.gguf").unlink()
        with pytest.raises(ModelNotFoundError):
            one.tokenize("hello")
        small.unload_model("one")
