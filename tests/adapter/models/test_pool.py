"""A pool loads models by name, once, and lets go of them when it is asked to."""

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
from fake_device import gpu

import pyllama
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.errors import (
    ConfigurationError,
    InvalidModelNameError,
    InvalidParameterError,
    ModelFileError,
    ModelInUseError,
    ModelNotFoundError,
    ModelNotLoadedError,
)
from adapter.generation.metrics import Metrics
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.models import resident
from adapter.models.hardware import HardwareManager, Placement
from adapter.models.parts import parts
from adapter.models.pool import ModelPool


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
        with pytest.raises(ModelFileError, match="broken") as caught:
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


@pytest.mark.parametrize("width", [0, 1, 5, 20, "8"])
def test_a_batch_width_that_no_kernel_has_is_refused(tmp_path, width):
    with pytest.raises(InvalidParameterError, match="batch_width"):
        ModelPool(tmp_path, batch_width=width)


def test_a_batch_width_is_part_of_what_decides_the_bytes(tiny_model_path):
    """Both ways to execute have it; where bytes need not stay, none has."""

    def what_decides(**options):
        folder = tiny_model_path.parent
        with ModelPool(folder, n_gpu_layers=0, context_length=64, **options) as pool:
            loaded = pool.load_model(tiny_model_path.stem)
            request = GenerationRequest((5, 6, 7), 8, Sampling(temperature=1.0), 1, logprobs=1)
            found = [each.generate(request).logprobs for each in loaded.generators.values()]
            assert found[0] == found[1]
            return loaded.computation

    assert what_decides(batch_width=4) != what_decides()
    assert what_decides(batch_width=4, reproducible=False) == what_decides(reproducible=False)


def test_padded_batches_on_cuda_need_graphs_to_be_off(tiny_model_path, monkeypatch):
    """Refused before anything is loaded; without a width, graphs may be on."""
    plan = HardwareManager(devices=()).plan(tiny_model_path, context_length=64)
    placement = replace(plan, devices=(gpu("CUDA0"),), batch_width=16)
    monkeypatch.delenv(resident.NO_GRAPHS, raising=False)
    loaded = []
    monkeypatch.setattr(Placement, "load", lambda *_: loaded.append(True) or 1 / 0)
    with pytest.raises(ConfigurationError, match="GGML_CUDA_DISABLE_GRAPHS=1"):
        resident.ResidentModel(tiny_model_path, placement, lambda _: None, Metrics())
    assert not loaded
    for width, value in ((1, None), (16, "1")):
        if value:
            monkeypatch.setenv(resident.NO_GRAPHS, value)
        with pytest.raises(ZeroDivisionError):
            resident.ResidentModel(
                tiny_model_path, replace(placement, batch_width=width), lambda _: None, Metrics()
            )
    assert len(loaded) == 2


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


def test_a_cancelled_load_continues_for_others(pool):
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
