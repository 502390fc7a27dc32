"""Memory stays flat, however long a process lives."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys

import fuzz
import pytest

import pyllama
from pyllama import Batch, Context

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# What may be left over. A leak of one kilobyte a cycle, or of a hundred bytes a token, is more.
BOUND = 1_000_000


def resident():
    """Bytes of memory that this process has, without what its allocators keep for later."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def growth(cycle, *, warmup, count):
    for _ in range(warmup):
        cycle()
    before = resident()
    for _ in range(count):
        cycle()
    return resident() - before


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

    assert growth(cycle, warmup=200, count=1000) < BOUND


def test_a_thousand_models_that_are_dropped(small_path):
    def cycle():
        model = pyllama.Model(small_path)
        model.kept = Context(model, n_ctx=64, n_threads=1)
        model.kept.decode_token(1, 0)

    assert growth(cycle, warmup=200, count=1000) < BOUND


def test_a_thousand_files_that_are_refused(small_path, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL, "pyllama.llama_cpp")  # pytest keeps what is logged
    path = tmp_path / "cut"
    path.write_bytes(small_path.read_bytes()[:-100])

    def cycle():
        with pytest.raises(pyllama.ModelLoadError):
            pyllama.Model(path)

    assert growth(cycle, warmup=200, count=1000) < BOUND


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

        assert growth(generation, warmup=500, count=10_000) < BOUND


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

        assert growth(cycle, warmup=200, count=1000) < BOUND


def test_chat_templates(tiny):
    def cycle():
        template = pyllama.ChatTemplate(tiny)
        rendered = template.apply([{"role": "user", "content": "Hello"}])
        rendered.parser.parse("Hello")

    assert growth(cycle, warmup=30, count=300) < BOUND
