"""Every order of closing and dropping what stands on something else; see docs/ownership.md."""

from __future__ import annotations

import gc
import itertools
import weakref

import fuzz
import pytest

import pyllama
from pyllama import Batch, Context


@pytest.fixture(autouse=True)
def nothing_else_to_collect():
    """Collecting is then a matter of microseconds, whatever other tests have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def paths(write_tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ownership")
    return write_tiny_model(**fuzz.SMALL), fuzz.lora(folder / "lora")


def make_all(paths):
    """A model, and one of everything that stands on it, all in use."""
    model_path, lora_path = paths
    model = pyllama.Model(model_path)
    context = Context(model, n_ctx=64, n_threads=1)
    adapter = pyllama.LoraAdapter(model, lora_path)
    pool = pyllama.Threadpool(1)
    chain = pyllama.SamplerChain([pyllama.Sampler.penalties(model.vocab), pyllama.Sampler.greedy()])
    pyllama.set_adapters_lora(context, {adapter: 1.0})
    context.attach_threadpool(pool)
    context.decode(Batch.from_tokens([1, 10, 20]))
    chain.sample(context)
    return {"model": model, "context": context, "adapter": adapter, "pool": pool, "chain": chain}


NAMES = ("model", "context", "adapter", "pool", "chain")


@pytest.mark.parametrize("first", NAMES)
def test_every_order_of_closing(paths, first):
    for others in itertools.permutations(set(NAMES) - {first}):
        made = make_all(paths)
        for name in (first, *others):
            made[name].close()
            made[name].close()
        assert all(thing.closed for thing in made.values())


@pytest.mark.parametrize("first", NAMES)
def test_what_is_still_open_can_be_used(paths, first):
    made = make_all(paths)
    made[first].close()
    works = {
        "context": lambda: made["context"].decode_token(1, 3),
        "adapter": lambda: pyllama.set_adapters_lora(made["context"], {made["adapter"]: 0.5}),
        "pool": lambda: made["context"].attach_threadpool(made["pool"]),
        "chain": lambda: made["chain"].sample(made["context"]),
        "model": lambda: made["model"].vocab.tokenize("hello"),
    }
    closed = {
        "model": {"model", "context", "adapter", "pool", "chain"},  # the others need the context
        "context": {"context", "adapter", "pool", "chain"},
    }.get(first, {first})
    for name, work in works.items():
        if name in closed:
            with pytest.raises(pyllama.ClosedError):
                work()
        else:
            work()
    for thing in made.values():
        thing.close()


@pytest.mark.parametrize("cycle", [False, True])
def test_every_order_of_dropping(paths, cycle):
    for order in itertools.permutations(NAMES, 3):
        made = make_all(paths)
        seen = [weakref.ref(thing) for thing in made.values()]
        released = [thing._handle._finalizer for thing in made.values()]
        if (
            cycle
        ):  # the collector then finds them all at once, and takes them in an order of its own
            for thing in made.values():
                thing.all = list(made.values())
        for name in order:
            del made[name]
            if not cycle:
                gc.collect()
        made.clear()
        if cycle:
            del thing
        gc.collect()  # the context, and then what it had kept alive
        gc.collect()
        assert not any(reference() for reference in seen)
        assert not any(release.alive for release in released)


def test_parts_of_a_model_keep_it_alive(paths):
    """What is read from an object works for as long as it is kept, or says that it is closed."""
    vocab = pyllama.Model(paths[0]).vocab
    memory = Context(pyllama.Model(paths[0]), n_ctx=64).memory
    state = Context(pyllama.Model(paths[0]), n_ctx=64).state
    gc.collect()
    assert vocab.tokenize("hello")
    assert memory.seq_pos_max(0) == -1
    assert state.get_size() > 0


def test_what_outlives_the_model(paths):
    """Templates, samplers and arrays have nothing of it."""
    with pyllama.Model(paths[0]) as model, Context(model, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_tokens([1, 10, 20]))
        logits, view = context.logits(), context.logits_view()
        template = pyllama.ChatTemplate(model)
        detokenizer = pyllama.Detokenizer(model.vocab)
    rendered = template.apply([{"role": "user", "content": "Hello"}])
    assert rendered.parser.parse("Hello").content == "Hello"
    assert (view[-1] == logits).all()
    with pytest.raises(pyllama.ClosedError):
        detokenizer.push(1)


def test_closing_from_a_finalizer(paths):
    """close() may run at any moment, on any thread that happens to collect garbage."""

    class Closes:
        def __init__(self, things):
            self.things, self.me = things, self

        def __del__(self):
            for thing in self.things:
                thing.close()

    model = pyllama.Model(paths[0])
    for _ in range(20):
        context = Context(model, n_ctx=64, n_threads=1)
        Closes([context, model.vocab._model] if _ == 19 else [context])
        context = None
        gc.collect()
    assert model.closed
