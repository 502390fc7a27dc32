r"""Bytes of answers on a real GPU, in padded batches.

GGML_CUDA_DISABLE_GRAPHS=1 GGML_CUDA_DISABLE_FUSION=1 PYLLAMA_BACKEND=cuda \
    pytest tests/adapter/generation/test_gpu_bytes.py

Without a GPU there is nothing to test here; test_anchors.py tests the same on the CPU.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from schedules import isolated_of, mixed_requests, same, scheduler_of, tokens

import pyllama
from adapter.models.resident import NO_GRAPHS

NO_FUSION = "GGML_CUDA_DISABLE_FUSION"
SHARED = tokens(0, 200)
OPTIONS = {"batch_width": 16, "anchored": True, "max_sequences": 64, "n_cells": 64 * 2048}


def gpus():
    chosen = pyllama.backend_devices()
    found = pyllama.devices() if chosen is None else chosen
    return [device for device in found if device.type in ("gpu", "igpu")]


pytestmark = pytest.mark.skipif(not gpus(), reason="no GPU of the chosen backend is here")


@pytest.fixture(scope="module", params=["Q4_0", "Q8_0", "Q4_K_M", "F16"])
def model(request, write_tiny_model, tmp_path_factory):
    if any(device.backend == "CUDA" for device in gpus()):
        assert NO_GRAPHS in os.environ, "graphs that hold cuBLAS fail: see docs/backends.md"
        if request.param == "F16":
            assert NO_FUSION in os.environ, "merged kernels change F16's bits: see scheduling.md"
    path = tmp_path_factory.mktemp("gpu") / f"{request.param}.gguf"
    wide = write_tiny_model(n_embd=512, n_ff=1024, n_head=8, n_head_kv=4, n_ctx_train=4096)
    pyllama.quantize(wide, path, request.param)
    with pyllama.Model(path, devices=gpus()[:1]) as made:
        yield made


def requests(seed, count):
    def prompt(chosen, index):
        beginning = SHARED[: chosen.choice([0, 0, 40, 200])]
        return beginning + tokens(index, chosen.choice([20, 100, 500, 1020, 1500]))

    return mixed_requests(seed, count, prompt, longest=40)


def test_requests_keep_their_bytes_at_any_load(model):
    """Of unequal lengths, with beginnings that they share, and text that a grammar forces."""
    asked = requests(1, 24)
    single = scheduler_of(model, **OPTIONS)
    expected = [single.generate(request) for request in asked]
    single.close()
    together = scheduler_of(model, **OPTIONS)
    for n_threads in (24, 5):
        with ThreadPoolExecutor(n_threads) as threads:
            found = list(threads.map(together.generate, asked))
        assert all(map(same, found, expected))
    sizes = together.metrics.snapshot().histograms["batch_size"]
    assert sizes.mean > 1  # they do share batches
    together.close()
    isolated = isolated_of(model, batch_width=16, anchored=True)
    assert all(map(same, map(isolated.generate, asked[:6]), expected))
    isolated.close()
