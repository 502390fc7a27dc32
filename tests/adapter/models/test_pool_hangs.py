"""What hangs, or ended without a word, keeps nobody waiting who can be told."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from fake_resident import BYTES, FakeResident, machine, pool_of_fakes, wait_until  # noqa: F401

from adapter.errors import ModelNotLoadedError, PoolFullError, ResourceError, TransientError
from adapter.models import loading
from adapter.models import pool as pool_module
from adapter.models.hardware import HOST


@pytest.fixture
def hanging(monkeypatch):
    """Have the freeing of a model hang, until this is set."""
    go_on, close = threading.Event(), FakeResident.close

    def hang(resident):
        go_on.wait(60)
        close(resident)

    monkeypatch.setattr(FakeResident, "close", hang)
    monkeypatch.setattr(loading, "HANG_SECONDS", 0.05)
    yield go_on
    go_on.set()


def test_a_model_that_cannot_be_freed_keeps_nobody_waiting(pool_of_fakes, machine, hanging):  # noqa: F811
    pool = pool_of_fakes()
    loaded = pool.load_model("one")
    for use in (
        lambda: pool.unload_model("one"),
        lambda: pool.load_model("one"),
        lambda: pool.unload_model("one"),
    ):
        with pytest.raises(ResourceError, match="'one' is not freed yet"):
            use()
    with pytest.raises(ModelNotLoadedError), loaded.lease():
        pass
    assert machine.read()[0][HOST] == BYTES
    pool.load_model("two")
    hanging.set()
    wait_until(lambda: len(pool._loader.slots()) == 1)
    pool.load_model("one")
    pool.close()
    assert machine.read()[0][HOST] == 0


def test_what_cannot_be_freed_makes_no_room(pool_of_fakes, machine, hanging):  # noqa: F811
    pool = pool_of_fakes(max_models=1)
    pool.load_model("one")
    with pytest.raises(PoolFullError, match="'one' is not freed yet"):
        pool.load_model("two")
    hanging.set()
    wait_until(lambda: machine.read()[0][HOST] == 0)
    pool.load_model("two")
    pool.close()


def test_closing_reports_what_it_cannot_free(pool_of_fakes, machine, hanging):  # noqa: F811
    pool = pool_of_fakes()
    pool.load_model("one")
    for _ in range(2):
        with pytest.raises(ResourceError, match="'one' is not freed yet"):
            pool.close()
    with pytest.raises(ModelNotLoadedError):
        pool.load_model("two")
    hanging.set()
    wait_until(lambda: machine.read()[0][HOST] == 0)
    wait_until(lambda: not pool._loader.slots())
    pool.close()


@pytest.mark.parametrize("end", ["unload_model", "close"])
def test_a_load_that_waits_for_one_that_hangs_can_be_stopped(pool_of_fakes, end):  # noqa: F811
    begun, go_on = threading.Event(), threading.Event()

    def hang(_name, _fraction):
        begun.set()
        go_on.wait(60)

    hung, other = pool_of_fakes(progress=hang), pool_of_fakes()
    raised = []

    def load(pool):
        try:
            pool.load_model("one")
        except ModelNotLoadedError as error:
            raised.append(error)

    threads = [threading.Thread(target=load, args=[pool]) for pool in (hung, other)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    try:
        wait_until(lambda: other._loader.slots())
        stop = getattr(other, end)
        stopping = threading.Thread(target=stop, args=["one"] if end == "unload_model" else [])
        stopping.start()
        stopping.join(60)
        threads[1].join(60)
        assert not stopping.is_alive()
        assert len(raised) == 1
    finally:
        go_on.set()
        threads[0].join()


def raising(error):
    def fail(*_args):
        raise error

    return fail


@pytest.fixture
def ending(monkeypatch):
    """The names of threads that end before they come to any code of this package."""
    names, run = [], threading.Thread.run
    monkeypatch.setattr(
        threading.Thread, "run", lambda thread: None if thread.name in names else run(thread)
    )
    return names


def test_a_pools_thread_that_ended_is_replaced(pool_of_fakes, ending):  # noqa: F811
    ending.append("model-pool")
    before = set(threading.enumerate())
    pool = pool_of_fakes()
    ending.clear()
    pool.load_model("one")
    new = set(threading.enumerate()) - before
    assert sum(thread.name == "model-pool" for thread in new) == 1
    pool.close()


def test_a_pools_thread_that_ends_while_it_is_waited_for_is_replaced(pool_of_fakes, monkeypatch):  # noqa: F811
    pool = pool_of_fakes()
    thread = pool._loader._thread
    ended, patch = thread._thread, pytest.MonkeyPatch()

    def end():
        patch.undo()
        raise SystemExit

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    patch.setattr(thread, "_try_to_work", end)
    patch.setattr(thread, "_look", raising(MemoryError()))
    thread.inbox.put(None)
    pool.load_model("one")
    assert not ended.is_alive()
    pool.close()


def test_a_load_without_blocking_whose_thread_ended_says_so(pool_of_fakes, ending, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pool_module, "_LOOK", 0.01)
    pool = pool_of_fakes()
    ending.append("model-pool-load")
    with pytest.raises(TransientError, match="no memory for a thread to load model 'one'"):
        asyncio.run(pool.aload_model("one"))
    ending.clear()
    asyncio.run(pool.aload_model("one"))
    pool.close()
    gc.collect()
