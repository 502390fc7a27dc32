"""Pools, handles and adapters that are dropped without close() free their models."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from shutil import copyfile

import dspy
import pytest
from fake_resident import FakeResident, machine, pool_of_fakes, wait_until  # noqa: F401

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool
from adapter.models import pool_thread
from adapter.models.machine_memory import machine as real_machine


@pytest.fixture
def folder(write_tiny_model, tmp_path):
    for seed, name in enumerate(("one", "two")):
        copyfile(write_tiny_model(seed=seed), tmp_path / f"{name}.gguf")
    return tmp_path


def model_of(loaded):
    with loaded.lease() as model:
        return weakref.ref(model)


def is_freed(model):
    def freed():
        gc.collect()
        found = model()
        return found is None or found.closed

    return wait_until(freed, seconds=5)


def test_what_dspy_used_is_freed_when_pool_adapter_and_lm_are_dropped(folder):
    before = threading.active_count()

    def use():
        pool = ModelPool(folder, context_length=256)
        loaded = pool.load_model("one")
        config = LlamaCppConfig("one", max_tokens=8, seed=1)
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        with dspy.context(lm=adapter.lm, adapter=adapter):
            adapter.lm("Hi")
            asyncio.run(adapter.lm.acall("Hello"))
        return model_of(loaded)

    held = +real_machine.read()[0]
    assert is_freed(use())
    assert wait_until(lambda: +real_machine.read()[0] == held)
    assert wait_until(lambda: threading.active_count() <= before)


def test_a_handle_keeps_its_model_usable_without_the_pool(folder):
    def load():
        pool = ModelPool(folder, context_length=64, max_models=1)
        return pool.load_model("one"), pool.load_model("two")

    one, two = load()
    gc.collect()
    for loaded in (one, two, one):  # each time it is loaded again
        assert loaded.tokenize("hello")
    model = model_of(one)
    del one, two, loaded
    assert is_freed(model)


def test_a_lease_keeps_its_model_in_memory_without_handle_and_pool(folder):
    lease = ModelPool(folder, context_length=64).load_model("one").lease()
    with lease as model:
        gc.collect()
        assert model.vocab.tokenize("hello")
    del lease
    assert is_freed(weakref.ref(model))


def test_a_stream_that_nobody_finishes_is_no_lease(folder):
    with ModelPool(folder, context_length=64) as pool:
        loaded = pool.load_model("one")

        def begin():
            with loaded.lease():
                yield

        stream = begin()
        next(stream)
        del stream
        gc.collect()
        pool.unload_model("one")


def test_a_pool_that_its_own_progress_callback_refers_to_is_freed(pool_of_fakes):  # noqa: F811
    def use():
        seen = []
        pool = pool_of_fakes(progress=lambda *_: seen.append(repr(pool)))
        pool.load_model("one")

    use()
    assert wait_until(lambda: gc.collect() is not None and FakeResident.made[0].closed)


def test_a_load_that_failed_does_not_keep_the_pool(folder):
    (folder / "broken.gguf").write_bytes(b"GGUF but nothing that follows")
    before = threading.active_count()

    def use():
        with pytest.raises(RuntimeError):
            ModelPool(folder).load_model("broken")

    use()
    assert wait_until(lambda: gc.collect() is not None and threading.active_count() <= before)


_LOADS = """
import sys, threading, time
from adapter import ModelPool

begun = threading.Event()


def progress(name, fraction):
    begun.set()
    time.sleep(0.05)


pool = ModelPool(sys.argv[1], context_length=64, progress=progress)
threading.Thread(target=pool.load_model, args=("one",), daemon=True).start()
begun.wait()
"""


def test_a_process_ends_in_the_middle_of_a_load(folder):
    ended = subprocess.run(
        [sys.executable, "-c", _LOADS, str(folder)], timeout=120, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("end", ["close", "unload_model"])
def test_a_lease_that_only_the_collector_ends_does_not_hold_up_the_end(
    pool_of_fakes,  # noqa: F811
    machine,  # noqa: F811
    monkeypatch,
    end,
):
    """It was dropped in a cycle, as with an exception that refers to its own frame."""
    monkeypatch.setattr(pool_thread, "_COLLECT", 0.1)
    pool = pool_of_fakes()
    lease = pool.load_model("one").lease()
    lease.__enter__()
    cycle = [lease]
    cycle.append(cycle)
    gc.disable()
    try:
        del lease, cycle
        arguments = ["one"] if end == "unload_model" else []
        ending = threading.Thread(target=getattr(pool, end), args=arguments, daemon=True)
        ending.start()
        ending.join(20)
        assert not ending.is_alive()
    finally:
        gc.enable()
    assert all(resident.closed for resident in FakeResident.made)
