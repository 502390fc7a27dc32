"""Ctrl-C at every point of a pool's code: the next request works, and nothing is left behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_resident import FakeResident, machine, pool_of_fakes, wait_until  # noqa: F401

import adapter
from adapter.errors import ModelNotLoadedError, PoolFullError, ResourceError
from adapter.models import pool_thread
from adapter.models.hardware import HOST
from adapter.models.pool_requests import PoolRequest

_FOLDER = str(Path(adapter.__file__).parent)


class Interrupt:
    """Raises KeyboardInterrupt in this thread at one event of the package's code.

    An event is a call, a line, a return, or any single operation of the interpreter. Every one is
    taken: more than a signal's handler can meet, which runs only between some operations.
    """

    def __init__(self, at):
        self.left = at
        self.raised = False
        self.where = ""

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(_FOLDER):
            return None
        frame.f_trace_opcodes = True
        if self.left == 0:
            self.raised, self.where = True, frame.f_code.co_name
            raise KeyboardInterrupt
        self.left -= 1
        return self.trace


def load(pool, loaded):
    pool.load_model("one")


def load_another(pool, loaded):
    pool.load_model("two")


def lease(pool, loaded):
    with loaded.lease():
        pass


def nested(pool, loaded):
    with loaded.lease(), loaded.lease():
        pass


def load_without_blocking(pool, loaded):
    asyncio.run(pool.aload_model("two"))


def unload(pool, loaded):
    pool.unload_model("one")


def close(pool, loaded):
    pool.close()


def pin(pool, loaded):
    pool.pin_model("one")


def look(pool, loaded):
    pool.get_loaded_model("one")
    pool.models()
    pool.metrics()
    repr(pool)


def replace_failed(pool, loaded):
    FakeResident.made[0].failed = True
    with loaded.lease():
        pass


PROGRAMS = [
    load, load_another, lease, nested, load_without_blocking, unload, close, pin, look,
    replace_failed,
]  # fmt: skip
CASES = [(program, False) for program in PROGRAMS] + [(load, True), (lease, True), (unload, True)]


def use_as_others_do(pool):
    """What another thread does afterwards."""
    pool.load_model("one")
    pool.unpin_model("one")
    for name in ("one", "two", "one"):
        with pool.load_model(name).lease():
            pass
    pool.unload_model("one")
    with pool.load_model("one").lease():
        pass


@pytest.mark.parametrize(
    ("program", "evicted"),
    CASES,
    ids=[f"{program.__name__}{', evicted' * evicted}" for program, evicted in CASES],
)
def test_an_interrupted_pool_works_and_keeps_nothing(pool_of_fakes, machine, program, evicted):  # noqa: F811
    before = threading.active_count()
    for at in range(100_000):
        pool = pool_of_fakes(max_models=1)
        loaded = pool.load_model("one")
        if evicted:
            pool.load_model("two")
        interrupt = Interrupt(at)
        try:
            with interrupt:
                program(pool, loaded)
        except KeyboardInterrupt:
            pass
        check(pool, machine, closed=program is close, where=at)
        del loaded, pool
        FakeResident.made.clear()
        if not interrupt.raised:
            break
    assert at > 10
    assert wait_until(lambda: threading.active_count() <= before)


GIVING_BACK = {"_drop", "tell_of_a_lease_that_ended"}


def test_a_lease_that_is_interrupted_twice_is_not_held(pool_of_fakes, monkeypatch):  # noqa: F811
    """While it is waited for, and at any point after that; somebody keeps the lease."""
    pool, tried = pool_of_fakes(max_models=1), set()
    loaded = pool.load_model("one")
    waits = []

    def interrupted(request, look):
        waits.append(request)
        raise KeyboardInterrupt

    for at in range(100_000):
        in_a_thread(pool.load_model, "two")  # which evicts the other: the lease is waited for
        lease, interrupt = loaded.lease(), Interrupt(at)
        waits.clear()
        with monkeypatch.context() as patched:
            patched.setattr(PoolRequest, "wait", interrupted)
            with suppress(KeyboardInterrupt), interrupt, lease:
                pass
        if waits and interrupt.where not in GIVING_BACK:  # else it is one for as long as it is kept
            tried.add(interrupt.where)
            assert in_a_thread(pool.load_model, "one") == []
            assert not held(pool), (at, interrupt.where)
        if not interrupt.raised:
            break
    assert tried == {"_ask", "look", "lease", "_take", "__enter__", ""}


def held(pool):
    return [lease for slot in pool._loader.slots() for lease in slot.lessees()]


def check(pool, machine, *, closed, where):  # noqa: F811
    for thread in threading.enumerate():
        if thread.name == "model-pool-load":  # an asynchronous load goes on
            thread.join(20)
    if not closed:
        assert wait_until(
            lambda: not any(slot.lessees() or slot.closing for slot in pool._loader.slots())
        ), where
        problems = in_a_thread(use_as_others_do, pool)
        assert problems == [], where
    assert in_a_thread(type(pool).close, pool) == [], where
    assert wait_until(lambda: machine.read()[0][HOST] == 0), where
    assert all(resident.closed for resident in FakeResident.made), where


def in_a_thread(function, *arguments):
    """What goes wrong in a thread of its own that calls a function, which must end."""
    problems = []

    def run():
        try:
            function(*arguments)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    return [*problems, *["it hangs"] * thread.is_alive()]


def test_a_pool_whose_making_is_interrupted_leaves_no_thread(pool_of_fakes):  # noqa: F811
    before = threading.active_count()
    for at in range(100_000):
        interrupt = Interrupt(at)
        try:
            with interrupt:
                pool_of_fakes()
        except KeyboardInterrupt:
            pass
        if not interrupt.raised:
            break
    gc.collect()
    assert at > 10
    assert wait_until(lambda: threading.active_count() <= before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lack_of_memory_in_threads_of_the_pool_leaves_nothing(
    pool_of_fakes,  # noqa: F811
    machine,  # noqa: F811
    monkeypatch,
):
    """MemoryError at every line that they run, while another thread uses the pool."""
    monkeypatch.setattr(pool_thread, "_LOOK", 0.001)
    fault = Fault()
    threading.settrace(fault.trace)
    try:
        for at in range(10_000):
            fault.left, fault.raised = at, False
            pool = pool_of_fakes(max_models=1)
            problems = in_a_thread(use_as_others_do, pool)
            assert all(isinstance(error, (MemoryError, ResourceError)) for error in problems), at
            assert not problems or fault.raised, (at, problems)
            raised, fault.raised = fault.raised, True
            check(pool, machine, closed=False, where=at)
            del pool
            FakeResident.made.clear()
            if not raised:
                break
    finally:
        threading.settrace(None)
    assert at > 100


def test_a_lack_of_memory_that_lasts_does_not_keep_a_processor_busy(pool_of_fakes, monkeypatch):  # noqa: F811
    """The pool's thread waits before it tries again."""
    calls, came = [], threading.Event()

    class Running(set):
        def add(self, pool):
            calls.append("add")
            if len(calls) > 10:
                came.set()
                super().add(pool)
            else:
                raise MemoryError

    def sleep(seconds):
        calls.append("sleep")

    monkeypatch.setattr(pool_thread, "_running", Running())
    fake_time = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr(pool_thread, "time", fake_time)
    pool = pool_of_fakes()
    assert came.wait(60)
    assert calls[:11] == ["add", "sleep"] * 5 + ["add"]
    assert in_a_thread(type(pool).close, pool) == []


class Fault:
    """Raises MemoryError once, at one line of the package's code in a thread of a pool's."""

    def __init__(self):
        self.left = 0
        self.raised = True

    def trace(self, frame, event, argument):
        code = frame.f_code
        if not threading.current_thread().name.startswith("model-pool"):
            return None
        if not code.co_filename.startswith(_FOLDER) or code.co_name == "_run":
            return None
        if event == "line" and not self.raised:
            if self.left == 0:
                self.raised = True
                raise MemoryError("out of nothing")
            self.left -= 1
        return self.trace


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_many_threads_that_are_interrupted_at_random_leave_nothing(pool_of_fakes, machine):  # noqa: F811
    """Exceptions out of nothing, in eight threads that use one pool which is too small for them."""
    before = threading.active_count()
    pool = pool_of_fakes(max_models=2)
    workers = [Worker(pool, seed) for seed in range(8)]
    for worker in workers:
        worker.start()
    choose = random.Random(0)
    for _ in range(2000):
        raise_in(choose.choice(workers))
        time.sleep(0.0005)
    for worker in workers:
        worker.pool = None
    for worker in workers:
        worker.join(30)
    assert not any(worker.is_alive() for worker in workers)
    happened = sum((worker.happened for worker in workers), Counter())
    assert min(happened[kind] for kind in ("done", "Interrupted", "PoolFullError")) > 20, happened
    check(pool, machine, closed=False, where=happened)
    del pool
    assert wait_until(lambda: threading.active_count() <= before)


class Interrupted(BaseException):
    """What a thread is interrupted with."""


class Worker(threading.Thread):
    """Uses a pool at random, until it has none any more."""

    def __init__(self, pool, seed):
        super().__init__(daemon=True)
        self.pool = pool
        self.random = random.Random(seed)
        self.happened = Counter()

    def run(self):
        with suppress(Interrupted):
            while (pool := self.pool) is not None:
                self.happened[self.act(pool)] += 1

    def act(self, pool):
        try:
            use_at_random(pool, self.random)
        except (Interrupted, PoolFullError, ModelNotLoadedError) as error:
            return type(error).__name__
        return "done"


def raise_in(thread):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted)
    )


def use_at_random(pool, choose):
    name = choose.choice(("one", "two", "three"))
    match choose.randrange(8):
        case 0:
            pool.unload_model(name)
        case 1:
            pool.pin_model(name)
            pool.unpin_model(name)
        case 2:
            with pool.load_model(name).lease():
                FakeResident.made[-1].failed = True
        case 3:
            pool.models()
            pool.metrics()
        case _:
            loaded = pool.load_model(name)
            with loaded.lease(), loaded.lease():
                time.sleep(0)
