"""With flash attention, which quantized values need, a request's bytes stay all the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from schedules import request_of, scheduler_of, sizes_of_calls, tokens

import pyllama
from adapter.generation.contexts import with_flash_attention
from adapter.generation.exactness import Exactness


@pytest.mark.parametrize("asked", ["auto", "disabled", "enabled"])
def test_what_the_user_says_of_it_comes_first(asked):
    params = pyllama.ContextParams(flash_attn=asked)
    kept = with_flash_attention(params, reproducible=True)
    assert kept.flash_attn == ("disabled" if asked == "auto" else asked)
    assert with_flash_attention(params, reproducible=False) == params
    quantized = replace(params, type_v="q8_0")
    kept = with_flash_attention(quantized, reproducible=True)
    assert kept.flash_attn == ("enabled" if asked == "auto" else asked)


def test_nothing_is_tried():
    """From 512 cells on its sums differ between batches, which a short trial does not see."""
    exactness = Exactness(None, reproducible=True, flash_attention=True)
    assert exactness.batch_sizes(8).largest == 1
    assert not exactness.cuts_anywhere


def test_sequences_are_decoded_one_by_one(write_tiny_model, tmp_path, monkeypatch):
    pyllama.quantize(write_tiny_model(), tmp_path / "tiny.gguf", "Q4_0")
    with pyllama.Model(tmp_path / "tiny.gguf") as model:
        scheduler = scheduler_of(model, context=pyllama.ContextParams(flash_attn="enabled"))
        requests = [request_of(tokens(seed, 20), seed=seed) for seed in range(4)]
        expected = [scheduler.generate(request).text for request in requests]
        sizes = sizes_of_calls(monkeypatch)
        with ThreadPoolExecutor(4) as threads:
            found = [result.text for result in threads.map(scheduler.generate, requests)]
        scheduler.close()
    assert found == expected
    assert set(sizes) == {1, 20}  # tokens, and prompts
