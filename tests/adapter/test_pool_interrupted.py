"""Ctrl-C at every point of a pool's code: the next request works, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from pathlib import Path

import pytest
from fake_resident import FakeResident, machine, pool_of_fakes, wait_until  # noqa: F401

import adapter
from adapter.hardware import HOST

_FOLDER = str(Path(adapter.__file__).parent)


class Interrupt:
    """Raises KeyboardInterrupt in this thread at one event of the package's code.

    An event is a call, a line, a return, or any single operation of the interpreter. Every one is
    taken: more than a signal's handler can meet, which runs only between some operations.
    """

    def __init__(self, at):
        self.left = at
        self.raised = False

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(_FOLDER):
            return None
        frame.f_trace_opcodes = True
        if self.left == 0:
            self.raised = True
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
