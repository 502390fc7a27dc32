"""LoRA adapters that are loaded, used and freed by several threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from decoding import PROMPT, logits_of, slow_batch, slow_context, until_decoding
from synthetic_files import write_lora

import pyllama


@pytest.fixture
def lora_path(tmp_path):
    random = np.random.default_rng(1)
    factors = tuple(random.standard_normal(shape, np.float32) for shape in ((4, 64), (64, 4)))
    return write_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": factors})


def test_loading_and_closing_wait_for_a_decode(tiny, lora_path):
    """llama.cpp's set of adapters has no lock of its own."""
    with slow_context(tiny) as context:
        done = threading.Event()

        def decode():
            with pytest.raises(pyllama.DecodeCancelled):
                context.decode(slow_batch())
            done.set()

        thread = threading.Thread(target=decode)
        thread.start()
        until_decoding(context, thread)
        loaded = []
        loading = threading.Thread(
            target=lambda: loaded.append((pyllama.LoraAdapter(tiny, lora_path), done.is_set()))
        )
        loading.start()
        loading.join(0.2)
        assert loading.is_alive()
        context.cancel()
        loading.join()
        thread.join()
        assert loaded[0][1]
        loaded[0][0].close()


MAKE = "guarded_init_from_model"
LOAD = "guarded_adapter_lora_init"
FREE = "guarded_adapter_lora_free"


@pytest.mark.parametrize(
    ("first", "second"), [(MAKE, LOAD), (MAKE, MAKE), (LOAD, MAKE), (FREE, MAKE)]
)
def test_contexts_and_adapters_are_made_and_freed_one_at_a_time(
    tiny, lora_path, monkeypatch, first, second
):
    """Making a context walks through the model's adapters, and may change its n_ctx_train."""
    lib = pyllama.context.lib
    calls = []

    class Calls:
        def __getattr__(self, name):
            if name in (MAKE, LOAD, FREE):
                calls.append(name)
                if name == first and not other.ident:
                    other.start()
                    other.join(0.2)  # it waits by now
                    calls.append("goes on")
            return getattr(lib, name)

    def work(call):
        if call == MAKE:
            pyllama.Context(tiny, n_ctx=256, n_threads=1).close()
        else:
            pyllama.LoraAdapter(tiny, lora_path).close()

    for module in ("context", "lora", "model"):
        monkeypatch.setattr(f"pyllama.{module}.lib", Calls())
    other = threading.Thread(target=work, args=(second,))
    work(first)
    other.join()
    assert calls.index("goes on") == calls.index(first) + 1


def in_a_sampler(tiny, work):
    """Do something within a sampler's function, which has the locks of its chain and context."""
    with pyllama.Context(tiny, n_ctx=256, n_threads=1) as context:
        context.decode(pyllama.Batch.from_tokens(PROMPT))

        def function(candidates):
            work()
            return candidates

        chain = pyllama.SamplerChain([pyllama.Sampler.python(function), pyllama.Sampler.greedy()])
        return chain.sample(context)


def test_a_sampler_makes_a_context_while_an_adapter_is_loaded(tiny, lora_path):
    made = []

    def load():
        with pyllama.LoraAdapter(tiny, lora_path):
            made.append("adapter")

    def work():
        loading.start()
        loading.join(0.2)  # it waits for this context by now
        with pyllama.Context(tiny, n_ctx=256, n_threads=1):
            made.append("context")

    loading = threading.Thread(target=load)
    in_a_sampler(tiny, work)
    loading.join()
    assert made == ["context", "adapter"]


def test_a_sampler_loads_no_adapter(tiny, lora_path):
    with pytest.raises(pyllama.AdapterError, match="by a sampler's method"):
        in_a_sampler(tiny, lambda: pyllama.LoraAdapter(tiny, lora_path))
    adapter = pyllama.LoraAdapter(tiny, lora_path)
    in_a_sampler(tiny, adapter.close)
    assert adapter.closed


def test_adapters_from_many_threads(tiny, lora_path, expected):
    def work():
        with pyllama.Context(tiny, n_ctx=256, n_threads=1) as own:
            for _ in range(4):
                with pyllama.LoraAdapter(tiny, lora_path) as adapter:
                    pyllama.set_adapters_lora(own, {adapter: 1.0})
                    results.append(logits_of(own, PROMPT))
                assert np.array_equal(logits_of(own, PROMPT), expected)

    results = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    assert all(np.array_equal(result, results[0]) for result in results)
