"""Many threads on one pool that is too small for them: nothing crashes, hangs, or is mixed up."""

from __future__ import annotations

import random
import threading
from collections import Counter
from shutil import copyfile

import pytest
from dspy import lm15
from fake_resident import wait_until

from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.errors import LlamaCppError, ModelInUseError, ModelNotLoadedError, PoolFullError
from adapter.generation.request import GenerationRequest, Sampling
from adapter.models.pool import ModelPool

NAMES = ("one", "two", "three", "four")
N_THREADS, N_ROUNDS = 16, 30


def request(seed):
    return GenerationRequest(prompt=(1, 70, 80, 90), max_tokens=4, sampling=Sampling(), seed=seed)


@pytest.fixture
def model_dir(write_tiny_model, tmp_path):
    for seed, name in enumerate(NAMES):
        copyfile(write_tiny_model(chat_template=None, seed=seed), tmp_path / f"{name}.gguf")
    return tmp_path


def answers(model_dir):
    """What each model answers when nothing else is going on."""
    with ModelPool(model_dir, context_length=64) as pool:
        return {
            (name, seed): pool.load_model(name)
            .generators["batched"]
            .generate(request(seed))
            .token_ids
            for name in NAMES
            for seed in range(3)
        }


class Worker(threading.Thread):
    """Uses the pool at random, and remembers what went wrong."""

    def __init__(self, number, pool, expected, rounds=N_ROUNDS):
        super().__init__(name=f"worker-{number}", daemon=True)
        self.rounds = rounds
        self.asked = threading.Event()
        self.random = random.Random(number)
        self.pool = pool
        self.expected = expected
        self.happened = Counter()
        self.problem = None

    def run(self):
        try:
            for _ in range(self.rounds):
                self.act()
        except BaseException as error:
            self.problem = error

    def act(self):
        name = self.random.choice(NAMES)
        action = self.random.choice([self.ask] * 6 + [self.stop, self.unload, self.pin, self.list])
        try:
            action(name)
            self.happened[action.__name__] += 1
        except (PoolFullError, ModelNotLoadedError) as error:
            # No room just now, or another thread unloaded it meanwhile.
            self.happened[type(error).__name__] += 1

    def ask(self, name):
        loaded, seed = self.pool.load_model(name), self.random.randrange(3)
        with loaded.lease() as model:
            assert loaded.tokenize("hello")
            answer = loaded.generators["batched"].generate(request(seed)).token_ids
            assert not model.closed
        assert answer == self.expected[name, seed]
        self.asked.set()

    def stop(self, name):
        stream = self.pool.load_model(name).generators["batched"].stream(request(0))
        next(stream)
        with pytest.raises(ModelInUseError):
            self.pool.unload_model(name)
        stream.close()

    def unload(self, name):
        self.pool.unload_model(name)

    def pin(self, name):
        self.pool.pin_model(name)
        self.pool.unpin_model(name)

    def list(self, name):
        assert [info.name for info in self.pool.models()] == sorted(NAMES)


def finish(workers):
    for worker in workers:
        worker.join(300)
    assert not [worker.name for worker in workers if worker.is_alive()]
    for worker in workers:
        if worker.problem is not None:
            raise worker.problem


def test_sixteen_threads_load_use_evict_and_unload(model_dir):
    expected = answers(model_dir)
    with ModelPool(model_dir, context_length=64, max_models=3, max_contexts=2) as pool:
        workers = [Worker(number, pool, expected) for number in range(N_THREADS)]
        for worker in workers:
            worker.start()
        finish(workers)
        assert sum(info.loaded for info in pool.models()) <= 3
        happened = sum((worker.happened for worker in workers), Counter())
        assert happened["ask"] > N_THREADS
        for name in NAMES:  # nothing that was left behind keeps a model
            assert (
                pool.load_model(name).generators["batched"].generate(request(0)).token_ids
                == (expected[name, 0])
            )
        assert all(not slot.lessees() for slot in pool._loader.slots())


def test_several_threads_close_a_pool_that_is_in_use(model_dir):
    expected = answers(model_dir)
    pool = ModelPool(model_dir, context_length=64, max_models=2)
    workers = [Worker(number, pool, expected) for number in range(N_THREADS)]
    closers = [threading.Thread(target=pool.close, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert workers[0].asked.wait(300)
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(300)
        assert not closer.is_alive()
    finish(workers)
    with pytest.raises(LlamaCppError, match="closed"):
        pool.load_model("one")
    assert not any(info.loaded for info in pool.models())


def test_pools_of_one_folder_do_not_disturb_each_other(model_dir):
    expected = answers(model_dir)
    with (
        ModelPool(model_dir, context_length=64, max_models=1) as one,
        ModelPool(model_dir, context_length=64, max_models=2) as other,
    ):
        workers = [Worker(number, (one, other)[number % 2], expected, 10) for number in range(8)]
        for worker in workers:
            worker.start()
        finish(workers)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_stream_that_continues_in_other_threads_keeps_its_model(model_dir, steps):
    with ModelPool(model_dir, context_length=64) as pool:
        engine = LlamaCppEngine(pool.load_model("one"), LlamaCppConfig("one"))
        request = lm15.Request(
            model=engine.model,
            messages=(lm15.Message.user("hello"),),
            config=lm15.Config(max_tokens=12, seed=1, temperature=1.0),
        )
        whole = engine.complete(request)
        stream, events = engine.stream(request), []

        def advance():
            events.extend(next(stream, None) for _ in range(steps))

        def advance_in_a_thread():
            thread = threading.Thread(target=advance)
            thread.start()
            thread.join()

        advance_in_a_thread()
        unload = threading.Thread(target=pool.unload_model, args=["one"])
        unload.start()
        assert wait_until(lambda: closing(pool))
        while events[-1] is not None:
            before = len(events)
            advance_in_a_thread()
            assert len(events) == before + steps  # nothing was raised
        unload.join(10)
        assert not unload.is_alive()
        text = "".join(event.delta.text for event in events if hasattr(event, "delta"))
        assert text == whole.message.text


def closing(pool):
    return any(slot.closing for slot in pool._loader.slots())
