"""A pool and what goes wrong: callbacks, models that fail, Ctrl-C, and processes that fork."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import threading
from shutil import copyfile

import pytest
from fake_resident import wait_until

from adapter.errors import (
    ModelFileError,
    ModelInUseError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
    ResourceError,
    TransientError,
)
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.models.hardware import HardwareManager
from adapter.models.machine_memory import machine
from adapter.models.pool import ModelPool
from adapter.models.resident import ResidentModel


@pytest.fixture
def pool(write_tiny_model, tmp_path):
    for seed, name in enumerate(("one", "two", "three")):
        copyfile(write_tiny_model(chat_template=None, seed=seed), tmp_path / f"{name}.gguf")
    with ModelPool(tmp_path, context_length=64) as pool:
        yield pool


def interrupt_soon():
    """Send this process what Ctrl-C sends, while the main thread waits."""
    # Kept: an interrupt is lost where this thread drops another last.
    globals()["timer"] = timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()


# What a progress callback may do


@pytest.mark.parametrize(
    "use",
    [
        lambda pool, _: pool.load_model("one"),
        lambda pool, _: pool.load_model("two"),
        lambda _, loaded: loaded.tokenize("hello"),
        lambda pool, _: asyncio.run(asyncio.wait_for(pool.aload_model("one"), 0.1)),
    ],
    ids=["the same", "another", "an evicted one", "without blocking"],
)
def test_a_progress_callback_that_would_wait_for_its_own_load_is_refused(pool, use):
    raised = []

    def progress(_name, _done):
        if loaded and not raised:
            raised.append(None)
            try:
                use(other, loaded[0])
            except (ModelInUseError, asyncio.TimeoutError) as error:
                raised[0] = error

    loaded = []
    with ModelPool(pool.model_dir, progress=progress, max_models=1) as other:
        loaded.append(other.load_model("three"))
        assert other.load_model("one").tokenize("the load went on")
        assert isinstance(raised[0], (ModelInUseError, asyncio.TimeoutError))
        assert other.load_model("two").tokenize("and so do others")


def test_a_progress_callback_may_use_what_is_in_memory(pool):
    seen = []

    def progress(name, _done):
        if name == "two":
            seen.append(one.tokenize("hello"))

    with ModelPool(pool.model_dir, progress=progress) as other:
        one = other.load_model("one")
        other.load_model("two")
    assert seen


@pytest.mark.parametrize("error", [OSError("no space"), KeyError("x"), KeyboardInterrupt()])
def test_what_a_progress_callback_raises_stops_the_load_and_is_raised(pool, error):
    def progress(_name, _done):
        if fails:
            raise error

    fails = True
    with ModelPool(pool.model_dir, progress=progress) as other:
        with pytest.raises(type(error)) as caught:
            other.load_model("one")
        assert caught.value is error
        fails = False
        assert other.load_model("one").tokenize("hello")


@pytest.mark.parametrize("end", [ModelPool.close, lambda pool: pool.unload_model("one")])
def test_a_progress_callback_may_end_its_load(pool, end):
    def progress(_name, _done):
        if ends:
            end(other)

    ends = True
    with ModelPool(pool.model_dir, progress=progress) as other:
        with pytest.raises(ModelNotLoadedError, match=r"closed|while it was being loaded"):
            other.load_model("one")
        ends = False
        if end is not ModelPool.close:
            assert other.load_model("one").tokenize("hello")


# Models that fail


def test_a_failed_scheduler_is_replaced_at_its_next_use(pool):
    loaded = pool.load_model("one")
    generator = loaded.generators["batched"]
    request = GenerationRequest((5, 6, 7), 4, Sampling(temperature=0.0), seed=1)
    expected = generator.generate(request).token_ids
    with loaded.lease() as model:
        slot = pool._loader.slot(loaded.path)
        scheduler = slot.residency.resident._scheduler
        failing = MemoryError("none left")

        def fail_anyhow(*_error):
            raise failing

        scheduler._core.step = scheduler._core.recover = fail_anyhow
        with pytest.raises((MemoryError, ResourceError), match="none left"):
            generator.generate(request)
        assert generator.generate(request).token_ids == expected
        assert len(slot.residencies) == 2  # the lease is on the old one
        assert not model.closed
    assert pool.load_model("one") is loaded
    assert wait_until(lambda: model.closed and len(slot.residencies) == 1)


def test_a_replaced_model_counts_as_long_as_it_is_used(pool):
    path = pool.model_dir / "one.gguf"
    plan = HardwareManager(devices=()).plan(path, context_length=64, n_contexts=2)
    [needed] = plan.memory.values()
    options = {"context_length": 64, "max_contexts": 2, "n_gpu_layers": 0, "max_models": 1}
    with ModelPool(pool.model_dir, memory_budget=2 * needed - 1, **options) as small:
        loaded = small.load_model("one")
        with loaded.lease() as model:
            model._lose("the server went away")
            with pytest.raises(PoolFullError, match="'one' is replaced, but still in use"):
                loaded.tokenize("hello")
        assert loaded.tokenize("hello")
    with ModelPool(pool.model_dir, memory_budget=2 * needed, **options) as larger:
        loaded = larger.load_model("one")
        with loaded.lease() as model:
            model._lose("the server went away")
            assert loaded.tokenize("hello")


def test_a_load_that_fails_late_frees_what_it_took(pool, monkeypatch):
    models = []
    real = ResidentModel._make_scheduler

    def fail(self, *arguments):
        models.append(self.model)
        raise MemoryError("none left")

    monkeypatch.setattr(ResidentModel, "_make_scheduler", fail)
    before = +machine.read()[0]
    with pytest.raises(MemoryError):
        pool.load_model("one")
    assert models[0].closed
    assert +machine.read()[0] == before
    monkeypatch.setattr(ResidentModel, "_make_scheduler", real)
    assert pool.load_model("one").tokenize("hello")


def test_a_file_that_is_replaced_while_it_is_read_is_refused(pool, write_tiny_model):
    other_file = write_tiny_model(chat_template=None, seed=9)

    def progress(_name, done):
        if done == 1.0 and replaces:
            copyfile(other_file, pool.model_dir / "new.gguf")
            (pool.model_dir / "new.gguf").replace(pool.model_dir / "one.gguf")

    replaces = True
    with ModelPool(pool.model_dir, progress=progress) as other:
        with pytest.raises(ModelFileError, match="while it was read"):
            other.load_model("one")
        replaces = False
        assert other.load_model("one").tokenize("hello")


def test_a_file_that_is_deleted_while_it_is_read_is_not_found(pool):
    def progress(_name, done):
        if done == 1.0:
            (pool.model_dir / "one.gguf").unlink(missing_ok=True)

    with ModelPool(pool.model_dir, progress=progress) as other:
        with pytest.raises(ModelNotFoundError, match=r"one\.gguf"):
            other.load_model("one")
        assert other.load_model("two").tokenize("hello")


# Threads and processes


def test_a_thread_with_the_identity_of_an_earlier_one_has_not_its_lease(pool):
    loaded = pool.load_model("one")
    stack = contextlib.ExitStack()
    identities = []

    def hold():
        stack.enter_context(loaded.lease())
        identities.append(threading.get_ident())

    def unload():
        identities.append(threading.get_ident())
        pool.unload_model("one")

    for work in (hold, unload):
        thread = threading.Thread(target=work)
        thread.start()
        if work is unload:  # it waits for the lease, and is not told that it is its own
            thread.join(0.2)
            assert thread.is_alive()
            stack.close()
        thread.join(60)
        assert not thread.is_alive()


def test_an_interrupted_unload_leaves_the_model_to_others(pool):
    loaded = pool.load_model("one")
    waits, ended = threading.Event(), threading.Event()

    def hold():
        with loaded.lease():
            waits.set()
            assert ended.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert waits.wait(60)
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        pool.unload_model("one")
    assert wait_until(lambda: not pool._loader.slot(loaded.path).closing)
    assert loaded.tokenize("it stays")
    ended.set()
    thread.join(60)
    pool.unload_model("one")


def test_an_interrupted_load_stops_unless_others_wait_for_it(pool):
    seen, go_on = [], threading.Event()

    def progress(_name, done):
        seen.append(done)
        assert go_on.wait(60)

    with ModelPool(pool.model_dir, progress=progress) as other:
        interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            other.load_model("one")
        go_on.set()
        assert wait_until(lambda: other._loader._thread._load is None)
        assert other._loader.slot(pool.model_dir / "one.gguf").residency is None
        assert other.load_model("one").tokenize("hello")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_fork_is_refused_and_may_close_and_drop(pool):
    loaded = pool.load_model("one")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            uses = (lambda: loaded.tokenize("hello"), lambda: pool.load_model("two"), pool.metrics)
            for use in uses:
                with pytest.raises(ModelNotLoadedError, match="fork"):
                    use()
            pool.close()
            del pool, loaded
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loaded.tokenize("hello")


# What passes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no such limit")
def test_a_load_that_lacks_descriptors_says_so_and_works_later(pool):
    import resource

    pool.load_model("two")  # what is opened once is open
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
    try:
        for free in (0, 1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + free, before[1]))
            try:
                with pytest.raises(TransientError, match="Too many open files"):
                    pool.load_model("one")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert pool.load_model("one").tokenize("hello")


def test_a_load_whose_template_gets_no_process_says_so_and_works_later(
    tiny_model_path, tmp_path, monkeypatch
):
    copyfile(tiny_model_path, tmp_path / "tiny.gguf")

    def refuse(*args, **kwargs):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with ModelPool(tmp_path, context_length=64) as pool:
        with monkeypatch.context() as patched:
            patched.setattr(subprocess.Popen, "__init__", refuse)
            with pytest.raises(TransientError, match=r"'tiny'.* cannot start: .*unavailable"):
                pool.load_model("tiny")
        assert pool.load_model("tiny").capabilities
