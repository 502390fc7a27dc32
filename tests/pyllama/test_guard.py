"""The guard: what fails inside llama.cpp arrives as a Python exception, and the process lives.

The public methods check their arguments, so these tests go below them, to the raw calls.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

import pyllama
from pyllama import Batch, Context, Sampler, SamplerChain, _object
from pyllama._guard import CAUGHT, check, raise_caught
from pyllama._native._binding import ffi, lib

PROMPT = [1, 10, 20, 30, 40]


@pytest.fixture
def poisoned(tiny):
    """A context in which an assertion has fired: more tokens at once than its n_batch."""
    with Context(tiny, n_ctx=256, n_batch=32, n_threads=1) as context:
        context.n_batch = 256  # past the check
        with pytest.raises(pyllama.NativeAssertionError, match=r"n_tokens_all <= cparams\.n_batch"):
            context.decode(Batch.from_tokens([1] * 33))
        yield context


def test_an_assertion_is_an_exception(poisoned):
    assert issubclass(pyllama.NativeAssertionError, pyllama.NativeError)
    assert issubclass(pyllama.NativeAssertionError, AssertionError)


def test_an_assertion_poisons_its_context(poisoned):
    assert not poisoned.usable
    with SamplerChain([Sampler.greedy()]) as chain:
        uses = [
            lambda: poisoned.decode(Batch.from_tokens([1])),
            lambda: poisoned.decode_token(1, 0),
            lambda: poisoned.logits(),
            lambda: poisoned.memory.clear(),
            lambda: poisoned.memory.seq_pos_max(0),
            lambda: chain.sample(poisoned),
        ]
        for use in uses:
            with pytest.raises(
                pyllama.PoisonedError, match=r"failed half way.*n_batch.*make a new one"
            ):
                use()
        # The chain was never touched.
        assert not chain.closed
    poisoned.cancel()
    poisoned.close()
    assert poisoned.closed
    with pytest.raises(pyllama.ClosedError):
        poisoned.logits()


def test_a_poisoned_context_that_is_dropped_is_not_freed(tiny):
    context = Context(tiny, n_ctx=256, n_batch=32, n_threads=1)
    frees = context._open()._finalizer
    context.n_batch = 256  # past the check
    assert frees.alive
    with pytest.raises(pyllama.NativeAssertionError):
        context.decode(Batch.from_tokens([1] * 33))
    assert not frees.alive
    assert not context.usable


@pytest.mark.parametrize("kind", [lib.PYLLAMA_CAUGHT_ASSERTION, lib.PYLLAMA_CAUGHT_OUT_OF_MEMORY])
def test_a_context_is_poisoned_where_there_is_no_memory_to_say_why(tiny, monkeypatch, kind):
    class Lib:
        def pyllama_caught(self):
            return kind

    def fail(what):
        raise MemoryError

    context = Context(tiny, n_ctx=256, n_threads=1)
    frees = context._open()._finalizer
    with monkeypatch.context() as patch:
        patch.setattr(_object, "lib", Lib())
        patch.setattr(_object, "raise_caught", fail)
        with pytest.raises(MemoryError):
            context._check(CAUGHT, "decode")
    assert not context.usable
    assert not frees.alive


def test_a_poisoned_context_leaves_its_model_as_it_was(tiny, poisoned):
    with Context(tiny, n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_tokens(PROMPT))
        first = context.logits()
    poisoned.close()
    with Context(tiny, n_ctx=256, n_threads=1) as context:
        context.decode(Batch.from_tokens(PROMPT))
        np.testing.assert_array_equal(context.logits(), first)


def test_assertions_in_many_threads_at_once(tiny):
    raised = []
    start = threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(5):
            with Context(tiny, n_ctx=256, n_batch=32, n_threads=1) as context:
                context.n_batch = 256
                try:
                    context.decode(Batch.from_tokens([1] * 33))
                except pyllama.NativeAssertionError as error:
                    raised.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(raised) == 20


def test_an_assertion_in_sampling_poisons_the_chain(context):
    context.decode(Batch.from_tokens(PROMPT))
    chain = SamplerChain([Sampler.top_k(3), Sampler.greedy()])
    other = SamplerChain([Sampler.greedy()])
    other._likeness = chain._likeness  # past the check that it is a clone
    with pytest.raises(pyllama.NativeAssertionError):
        chain.copy_state(other)
    with pytest.raises(pyllama.PoisonedError, match="SamplerChain"):
        chain.sample(context)
    with pytest.raises(pyllama.PoisonedError):
        chain.reset()
    chain.close()
    assert chain.closed
    other.sample(context)


def test_a_memory_assertion_poisons_the_context(tiny):
    with Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        context.decode(Batch.from_tokens(PROMPT))
        context.memory._kv_unified = True  # past the check
        with pytest.raises(pyllama.NativeAssertionError):
            context.memory.seq_cp(0, 1, 1, 3)
        with pytest.raises(pyllama.PoisonedError):
            context.memory.seq_pos_max(0)
        with pytest.raises(pyllama.PoisonedError):
            context.decode(Batch.from_tokens([1], pos=5))


def test_a_cpp_exception_is_a_native_error(tiny):
    outside = tiny.vocab.n_tokens
    with pytest.raises(pyllama.NativeError, match=f"asking: .*{outside}") as caught:
        check(lib.guarded_vocab_get_attr(tiny.vocab._pointer, outside), "asking")
    assert type(caught.value) is pyllama.NativeError
    assert lib.guarded_vocab_get_text(tiny.vocab._pointer, outside) == ffi.NULL
    with pytest.raises(pyllama.NativeError, match="asking"):
        raise_caught("asking")


def test_a_cpp_exception_of_the_template_engine(tiny):
    chat = lib.guarded_chat_init(b"{% for", b"", b"")
    assert chat == ffi.NULL
    with pytest.raises(pyllama.NativeError, match="parsing") as caught:
        raise_caught("parsing")
    assert type(caught.value) is pyllama.NativeError
    good = lib.guarded_chat_init(b"{{ 1 }}", b"", b"")
    try:
        assert lib.guarded_chat_apply(good, b"no json") == ffi.NULL
        with pytest.raises(pyllama.NativeError, match="applying"):
            raise_caught("applying")
    finally:
        assert lib.guarded_chat_free(good) == 0


def test_what_was_caught_belongs_to_its_thread(tiny):
    assert lib.guarded_vocab_get_attr(tiny.vocab._pointer, 10**9) == CAUGHT
    kinds = []

    def succeed():
        assert lib.guarded_vocab_get_attr(tiny.vocab._pointer, 1) != CAUGHT
        kinds.append(lib.pyllama_caught())

    thread = threading.Thread(target=succeed)
    thread.start()
    thread.join()
    assert kinds == [lib.PYLLAMA_CAUGHT_NOTHING]
    assert lib.pyllama_caught() != lib.PYLLAMA_CAUGHT_NOTHING


def test_the_next_guarded_call_starts_clean(tiny):
    assert lib.guarded_vocab_get_attr(tiny.vocab._pointer, 10**9) == CAUGHT
    assert lib.guarded_vocab_get_attr(tiny.vocab._pointer, 1) != CAUGHT
    assert lib.pyllama_caught() == lib.PYLLAMA_CAUGHT_NOTHING


def test_a_native_error_without_a_reason_says_that(tiny):
    check(lib.guarded_vocab_is_eog(tiny.vocab._pointer, 1), "asking")
    with pytest.raises(pyllama.NativeError, match=r"nothing happened: llama\.cpp gave no"):
        raise_caught("nothing happened")


def test_every_exception_is_a_llama_error_and_a_builtin():
    for name in pyllama.__all__:
        thing = getattr(pyllama, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, pyllama.LlamaError)
            if thing is not pyllama.LlamaError:
                builtins = (ValueError, RuntimeError, MemoryError, BufferError)
                assert issubclass(thing, builtins), name
