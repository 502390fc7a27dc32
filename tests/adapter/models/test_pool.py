from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from shutil import copyfile

import pytest
from dspy import lm15
from dspy.lm15 import Message, Request

import pyllama
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.errors import (
    BackendError,
    InvalidModelNameError,
    InvalidParameterError,
    ModelChangedError,
    ModelInUseError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
)
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.models.hardware import HardwareManager
from adapter.models.parts import parts
from adapter.models.pool import ModelPool


@pytest.fixture
def pool(write_tiny_model, tmp_path):
    for seed, name in enumerate(("one", "two", "three")):
        copyfile(write_tiny_model(chat_template=None, seed=seed), tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but nothing that follows")
    with ModelPool(tmp_path, context_length=64) as pool:
        yield pool


def test_a_model_is_loaded_once(pool):
    assert pool.load_model("one") is pool.load_model("one")
    assert pool.get_loaded_model("one") is pool.get_loaded_model()


def test_threads_that_ask_at_once_wait_for_one_load(pool, monkeypatch):
    loads = []
    barrier = threading.Barrier(8)
    real = pyllama.Model

    def counted(*args, **kwargs):
        loads.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(pyllama, "Model", counted)

    def load(_):
        barrier.wait()
        return pool.load_model("one")

    with ThreadPoolExecutor(8) as threads:
        models = set(threads.map(load, range(8)))
    assert len(models) == len(loads) == 1


def test_a_load_that_failed_fails_again_and_can_be_mended(pool):
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="broken") as caught:
            pool.load_model("broken")
        assert caught.value.path == pool.model_dir / "broken.gguf"
    copyfile(pool.model_dir / "one.gguf", pool.model_dir / "broken.gguf")
    assert pool.load_model("broken").name == "broken"


@pytest.mark.parametrize(
    "name", ["", " ", "../one", "a/b", "/etc/passwd", "..", ".", "a\\b", "nul\0", "./one"]
)
def test_a_name_that_is_no_plain_file_name_is_refused(pool, name):
    with pytest.raises(InvalidModelNameError) as caught:
        pool.load_model(name)
    assert caught.value.name == name


def test_a_name_that_is_no_string_is_refused(pool):
    with pytest.raises(InvalidModelNameError, match="string"):
        pool.load_model(3)


def test_a_missing_model_names_the_file_that_was_looked_for(pool):
    with pytest.raises(ModelNotFoundError) as caught:
        pool.load_model("four")
    assert caught.value.path == pool.model_dir / "four.gguf"


def test_what_is_not_in_memory_cannot_be_had(pool):
    with pytest.raises(ModelNotLoadedError, match="none"):
        pool.get_loaded_model()
    pool.load_model("one")
    with pytest.raises(ModelNotLoadedError, match="two"):
        pool.get_loaded_model("two")
    pool.load_model("two")
    with pytest.raises(ModelNotLoadedError, match="one"):
        pool.get_loaded_model()


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        ModelPool(tmp_path / "nowhere")


def test_a_prefix_folder_that_is_gone_bad_keeps_no_model_from_loading(
    tiny_model_path, tmp_path, caplog
):
    folder = tmp_path / "prefixes"
    with ModelPool(tiny_model_path.parent, context_length=64, prefix_folder=folder) as pool:
        folder.rmdir()
        folder.write_text("a file")
        loaded = pool.load_model(tiny_model_path.stem)
        assert loaded.tokenize("a")
    assert "runs without prefix_folder" in caplog.text


@pytest.mark.parametrize("path", ["file", "file/inside"])
def test_a_prefix_folder_that_is_a_file_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="prefix_folder must be a folder"):
        ModelPool(tmp_path, prefix_folder=tmp_path / path)


@pytest.mark.parametrize(
    "parameter", ["context_length", "max_contexts", "max_models", "memory_budget"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8"])
def test_a_number_out_of_range_is_refused(tmp_path, parameter, value):
    with pytest.raises(InvalidParameterError, match=parameter) as caught:
        ModelPool(tmp_path, **{parameter: value})
    assert caught.value.value == value


def test_progress_names_the_model_and_rises_to_one(pool):
    seen = []
    with ModelPool(pool.model_dir, progress=lambda name, done: seen.append((name, done))) as other:
        other.load_model("one")
    assert {name for name, _ in seen} == {"one"}
    fractions = [done for _, done in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_context_is_no_longer_than_asked_for(pool):
    assert pool.load_model("one").context_length == 64


def in_memory(pool):
    return {info.name for info in pool.models() if info.loaded}


# Letting go


def test_closing_frees_the_models_for_good(pool):
    loaded = pool.load_model("one")
    with loaded.lease() as model:
        pass
    pool.close()
    pool.close()
    assert model.closed
    for use in (lambda: loaded.tokenize("text"), lambda: pool.load_model("two")):
        with pytest.raises(ModelNotLoadedError, match="make a new ModelPool"):
            use()
    with pytest.raises(ModelNotLoadedError):
        pool.get_loaded_model("one")


def test_a_model_that_was_unloaded_says_so_and_can_be_loaded_again(pool):
    loaded = pool.load_model("one")
    with loaded.lease() as model:
        pass
    pool.unload_model("one")
    assert model.closed
    with pytest.raises(ModelNotLoadedError, match=r"load_model\('one'\) again"):
        loaded.tokenize("text")
    with pytest.raises(ModelNotLoadedError):
        pool.unload_model("one")
    again = pool.load_model("one")
    assert again is not loaded
    assert again.fingerprint == loaded.fingerprint
    assert again.tokenize("text")


@pytest.mark.parametrize("closing", [lambda pool: pool.unload_model("one"), ModelPool.close])
def test_unloading_waits_for_a_request_and_refuses_the_next(pool, closing):
    loaded = pool.load_model("one")
    refused, done = threading.Event(), threading.Event()

    def unload():
        closing(pool)
        done.set()

    def ask_until_refused():
        with contextlib.suppress(ModelNotLoadedError):
            while True:
                loaded.piece(5)
        refused.set()

    threads = [threading.Thread(target=target) for target in (unload, ask_until_refused)]
    with loaded.lease() as model:
        for thread in threads:
            thread.start()
        assert refused.wait(60)
        assert not done.is_set()
        assert not model.closed
        assert loaded.tokenize("the request that is running goes on")
    for thread in threads:
        thread.join(60)
    assert done.is_set()
    assert model.closed


def test_a_thread_cannot_wait_for_its_own_request(pool):
    loaded = pool.load_model("one")
    with loaded.lease():
        for attempt in (lambda: pool.unload_model("one"), pool.close):
            with pytest.raises(ModelInUseError, match="one"):
                attempt()
    assert loaded.tokenize("it was left as it was")


def test_an_engine_holds_a_lease_from_the_first_event_to_the_last(pool):
    loaded = pool.load_model("one")
    engine = LlamaCppEngine(loaded, LlamaCppConfig("one", max_tokens=4, seed=1))
    request = Request(model=engine.model, messages=(Message.user("Hi"),))
    events = engine.stream(request)
    assert next(events).type == "start"
    with pytest.raises(ModelInUseError):
        pool.unload_model("one")
    rest = list(events)
    assert rest[-1].type == "end"
    pool.unload_model("one")
    with pytest.raises(lm15.ConfigurationError, match="unloaded"):
        engine.complete(request)


def test_unloading_stops_a_load(pool):
    loading, stopped = threading.Event(), threading.Event()

    def progress(_name, _done):
        loading.set()
        while not stopped.is_set() and not other._loader.slot(pool.model_dir / "one.gguf").closing:
            time.sleep(0.001)

    with (
        ThreadPoolExecutor(2) as threads,
        ModelPool(pool.model_dir, progress=progress) as other,
    ):
        load = threads.submit(other.load_model, "one")
        assert loading.wait(60)
        unload = threads.submit(other.unload_model, "one")
        with pytest.raises(ModelNotLoadedError, match="while it was being loaded"):
            load.result(60)
        unload.result(60)
        stopped.set()
        assert other.load_model("one").tokenize("it can be loaded again")


# Evicting


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
        assert isinstance(caught.value, BackendError)
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


# Names


def test_aliases_share_one_model_and_keep_their_names(pool):
    (pool.model_dir / "below").mkdir()
    copyfile(pool.model_dir / "two.gguf", pool.model_dir / "below" / "deep.gguf")
    aliases = {"first": "one", "deep": "below/deep.gguf"}
    with ModelPool(pool.model_dir, aliases=aliases, max_models=1) as other:
        first, one = other.load_model("first"), other.load_model("one")
        assert (first.name, one.name) == ("first", "one")
        assert first.fingerprint == one.fingerprint
        assert other.load_model("first") is first
        with first.lease() as model, one.lease() as same:
            assert model is same
        assert other.load_model("deep").path == pool.model_dir / "below" / "deep.gguf"
        other.unload_model("first")
        with pytest.raises(ModelNotLoadedError):
            one.tokenize("it was unloaded by its other name")


def test_a_split_model_is_loaded_by_its_name(pool, write_tiny_model):
    first = write_tiny_model(split_max_tensors=6)
    for part in parts(first):
        copyfile(part, pool.model_dir / part.name.replace(first.name.split("-0000")[0], "many"))
    loaded = pool.load_model("many")
    assert loaded.name == "many"
    assert loaded.path.name.startswith("many-00001-of-")
    with loaded.lease() as model:
        assert model.n_params > 0


# Asynchronous loading


def test_a_model_is_loaded_without_blocking_the_event_loop(pool):
    turns = threading.Event()

    def progress(_name, _done):
        assert turns.wait(60)  # set by the loop, which is free to do so

    async def load():
        task = asyncio.create_task(other.aload_model("one"))
        await asyncio.sleep(0)
        turns.set()
        return await task

    with ModelPool(pool.model_dir, progress=progress) as other:
        assert asyncio.run(load()) is other.load_model("one")


def test_a_cancelled_load_goes_on_for_others(pool):
    loading, go_on = threading.Event(), threading.Event()

    def progress(_name, _done):
        loading.set()
        assert go_on.wait(60)

    async def cancel():
        task = asyncio.create_task(other.aload_model("one"))
        await asyncio.to_thread(loading.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    with ModelPool(pool.model_dir, progress=progress) as other:
        asyncio.run(cancel())
        assert other.load_model("one").tokenize("whole")


def test_a_closed_pool_loads_nothing_asynchronously(pool):
    pool.close()
    with pytest.raises(ModelNotLoadedError, match="closed"):
        asyncio.run(pool.aload_model("one"))


@pytest.mark.parametrize("reproducible", [True, False])
def test_answers_are_reused_where_bytes_need_not_stay(pool, reproducible):
    folder, hardware = pool.model_dir, HardwareManager(backend="cpu")
    with ModelPool(folder, reproducible=reproducible, hardware=hardware) as other:
        generator = other.load_model("one").generators["batched"]
        prompt = tuple(range(5, 105))
        request = GenerationRequest(prompt, 40, Sampling(temperature=1.0), seed=1)
        answer = generator.generate(request).token_ids
        assert len(answer) >= 16
        turn = replace(request, prompt=(*prompt, *answer, *range(5, 25)), max_tokens=1)
        reused = generator.generate(turn).cache_read_tokens
    assert (reused > len(prompt)) is not reproducible
