"""Memory stays flat, however long a process lives.

Resident memory alone does not tell: by how far the heaps have come apart it goes up and down by
megabytes, more so after many other tests. What the allocators have given out is exact.
"""

from __future__ import annotations

import ctypes
import logging

import fuzz
import pytest
from memory import MEASURABLE, MemoryUse, earlier_objects_apart, memory_in_use

import pyllama
from pyllama import Batch, Context

ROUNDS = 5
"""Of what leaks, every round leaves more. Caches, fragments and the like end within a few."""

FRAGMENTS = 4_000_000
"""Bytes that resident memory may grow by in a round: what leaked would show in the others."""

pytestmark = pytest.mark.skipif(not MEASURABLE, reason="asks glibc 2.33 or later")


@pytest.fixture(autouse=True)
def _earlier_objects_apart():
    """What other tests left is not looked at: Python collects the later, the more there is."""
    with earlier_objects_apart():
        yield


def assert_flat(cycle, *, warmup, count):
    """No round of ``count`` cycles may leave more, each after the one before.

    Less than a kilobyte or half an object a cycle is noise.
    """
    most = MemoryUse(count * 1000, count // 2, max(count * 4096, FRAGMENTS))
    for _ in range(warmup):
        cycle()
    before, grown = memory_in_use(), []
    for _ in range(ROUNDS):
        for _ in range(count):
            cycle()
        after = memory_in_use()
        grown.append(after.since(before))
        before = after
        least = MemoryUse(*map(min, zip(*grown, strict=True)))
        if all(growth < bound for growth, bound in zip(least, most, strict=True)):
            return
    pytest.fail(f"every round leaves more: {grown}, at most {most}")


def test_what_leaks_is_seen():
    kept = []
    with pytest.raises(pytest.fail.Exception, match="leaves more"):
        assert_flat(lambda: kept.append([]), warmup=10, count=1000)
    with pytest.raises(pytest.fail.Exception, match="leaves more"):
        assert_flat(lambda: ctypes.CDLL(None).malloc(1100), warmup=10, count=100)


@pytest.fixture(scope="module")
def small_path(write_tiny_model):
    return write_tiny_model(**fuzz.SMALL, n_layer=1)


def test_a_thousand_models_that_are_loaded_used_and_closed(small_path):
    def cycle():
        with (
            pyllama.Model(small_path) as model,
            Context(model, n_ctx=64, n_threads=1) as context,
            pyllama.SamplerChain([pyllama.Sampler.dist(1)]) as chain,
        ):
            context.decode(Batch.from_tokens([1, 10, 20]))
            model.vocab.token_to_piece(chain.sample(context))

    assert_flat(cycle, warmup=200, count=1000)


def test_a_thousand_models_that_are_dropped(small_path):
    def cycle():
        model = pyllama.Model(small_path)
        model.kept = Context(model, n_ctx=64, n_threads=1)
        model.kept.decode_token(1, 0)

    assert_flat(cycle, warmup=200, count=1000)


def test_a_thousand_files_that_are_refused(small_path, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "pyllama.llama_cpp")  # pytest keeps what is logged
    path = tmp_path / "cut"
    path.write_bytes(small_path.read_bytes()[:-100])

    def cycle():
        with pytest.raises(pyllama.ModelLoadError):
            pyllama.Model(path)

    assert_flat(cycle, warmup=200, count=1000)


def test_ten_thousand_generations(small_path):
    """Each a prompt, a few tokens one after the other, and their text."""
    with (
        pyllama.Model(small_path) as model,
        Context(model, n_ctx=64, n_threads=1) as context,
    ):
        prompt = Batch.from_tokens([1, 10, 20])

        def generation():
            context.memory.clear()
            context.decode(prompt)
            chain = pyllama.SamplerChain([pyllama.Sampler.top_k(40), pyllama.Sampler.dist(1)])
            text = pyllama.Detokenizer(model.vocab)
            for pos in range(3, 6):
                token = chain.sample(context)
                text.push(token)
                context.decode_token(token, pos)
            context.logits()

        assert_flat(generation, warmup=500, count=10_000)


def test_a_thousand_states_and_adapters(small_path, tmp_path):
    adapter_path = fuzz.lora(tmp_path / "lora")
    with pyllama.Model(small_path) as model, Context(model, n_ctx=64, n_threads=1) as context:
        context.decode(Batch.from_tokens([1, 10, 20]))

        def cycle():
            state = context.state.get_data()
            with pyllama.LoraAdapter(model, adapter_path) as adapter:
                pyllama.set_adapters_lora(context, {adapter: 0.5})
                context.decode_token(1, 3)
            context.state.set_data(state)

        assert_flat(cycle, warmup=200, count=1000)


def test_chat_templates(tiny):
    def cycle():
        template = pyllama.ChatTemplate(tiny)
        rendered = template.apply([{"role": "user", "content": "Hello"}])
        rendered.parser.parse("Hello")

    assert_flat(cycle, warmup=30, count=300)
