"""Models on a real GPU: PYLLAMA_BACKEND=cuda pytest tests/pyllama/test_gpu.py (or vulkan, metal).

Without a GPU there is nothing to test here. Vulkan made of software (GGML_VK_VISIBLE_DEVICES=0)
does for all but the context that is larger than the memory, for which it takes minutes.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
from decoding import PROMPT, logits_of

import pyllama
from pyllama import Batch, Context, Model, Sampler, SamplerChain

logger = logging.getLogger(__name__)

MIB = 2**20
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Photosynthesis is the process by which",
)
NEAR_TIE = 1.0
"""Logits that two backends may order differently: each rounds activations in a way of its own, and
in a Q4_1 model of this size that adds up. Seen on an H100: 0.26 to 0.89 where texts part."""


def gpus():
    chosen = pyllama.backend_devices()
    found = pyllama.devices() if chosen is None else chosen
    return [device for device in found if device.type in ("gpu", "igpu")]


pytestmark = pytest.mark.skipif(not gpus(), reason="no GPU of the chosen backend is here")


def free_memory():
    """Bytes that are free on all GPUs, once their drivers have settled."""
    time.sleep(0.2)
    return sum(device.memory[0] for device in gpus())


def greedy(model, tokens, count):
    """Tokens, and the logits that each was taken from."""
    with Context(model, n_ctx=1024) as context, SamplerChain([Sampler.greedy()]) as chain:
        context.decode(Batch.from_tokens(tokens))
        out = []
        for pos in range(len(tokens), len(tokens) + count):
            logits = context.logits()
            token = chain.sample(context)
            out.append((token, logits))
            context.decode_token(token, pos)
        return out


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_the_same_greedy_tokens_as_the_cpu(smollm2, smollm2_path, text):
    tokens = smollm2.vocab.tokenize(text)
    here = greedy(smollm2, tokens, 32)
    with Model(smollm2_path, devices=[]) as on_cpu:
        there = greedy(on_cpu, tokens, 32)
    for step, ((token, _), (expected, logits)) in enumerate(zip(here, there, strict=True)):
        if token != expected:
            lost = float(logits[expected] - logits[token])
            logger.info("%r: apart at token %d, a tie within %.3f on the CPU", text, step, lost)
            assert lost < NEAR_TIE
            return


@pytest.mark.parametrize("architecture", ["llama", "mamba", "gemma2", "jamba"])
def test_the_logits_are_those_of_the_cpu(write_tiny_model, architecture):
    path = write_tiny_model(architecture=architecture)
    logits = []
    for devices in (gpus(), []):
        with Model(path, devices=devices) as model, Context(model, n_ctx=256) as context:
            logits.append(logits_of(context, PROMPT))
    assert np.abs(logits[0] - logits[1]).max() < 0.02 * np.abs(logits[1]).max()


def test_memory_is_given_back(tiny_model_path):
    def cycle():
        with Model(tiny_model_path) as model, Context(model, n_ctx=4096) as context:
            context.decode_token(1, 0)
            context.logits()

    for _ in range(5):  # the driver keeps some for itself
        cycle()
    before = free_memory()
    for _ in range(100):
        cycle()
    assert abs(free_memory() - before) <= 8 * MIB


def test_two_models_at_once(tiny_model_path, write_tiny_model):
    paths = [tiny_model_path, write_tiny_model(seed=1)]
    models = [Model(path) for path in paths]
    alone = [[token for token, _ in greedy(model, PROMPT, 32)] for model in models]
    together = [[], []]

    def run(index):
        for _ in range(5):
            together[index].append([token for token, _ in greedy(models[index], PROMPT, 32)])

    threads = [threading.Thread(target=run, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models:
        model.close()
    assert together == [[alone[0]] * 5, [alone[1]] * 5]


def test_a_model_that_does_not_fit_runs_in_parts(write_tiny_model):
    path = write_tiny_model(n_layer=8, n_embd=512, n_head=8, n_head_kv=8, n_ff=2048)
    (gpu, *_) = gpus()
    use = pyllama.memory_use(path, n_ctx=512, devices=[gpu])
    (on_gpu,) = use.devices
    margin = on_gpu.free - on_gpu.used + on_gpu.model // 2
    fit = pyllama.memory_fit(path, n_ctx=512, devices=[gpu], margin=margin)
    assert 0 <= fit.n_gpu_layers < use.n_layer or fit.tensor_buft_overrides
    with (
        Model(
            path,
            devices=[gpu],
            n_gpu_layers=fit.n_gpu_layers,
            tensor_buft_overrides=fit.tensor_buft_overrides or None,
        ) as model,
        Context(model, n_ctx=512) as context,
        Model(path, devices=[]) as on_cpu,
        Context(on_cpu, n_ctx=512) as expected,
    ):
        theirs, ours = logits_of(expected, PROMPT), logits_of(context, PROMPT)
    assert np.abs(theirs - ours).max() < 0.02 * np.abs(theirs).max()


def test_a_context_larger_than_the_memory_is_an_exception(write_tiny_model):
    path = write_tiny_model(n_layer=8, n_embd=1024, n_head=8, n_head_kv=8, n_ff=64)
    (gpu, *_) = gpus()
    free, _ = gpu.memory
    n_ctx = int(free * 1.1) // (8 * 2 * 1024 * 2)
    with Model(path, devices=[gpu]) as model:
        before = free_memory()
        for _ in range(3):
            with pytest.raises((pyllama.ContextError, pyllama.NativeMemoryError)):
                Context(model, n_ctx=n_ctx)
        assert free_memory() >= before - 64 * MIB
        with Context(model, n_ctx=256) as context:  # and everything goes on
            assert np.isfinite(logits_of(context, PROMPT)).all()


@pytest.mark.model
def test_the_memory_that_is_taken_is_what_was_predicted(smollm2_path):
    (gpu, *_) = gpus()
    options = {"n_ctx": 65_536, "n_batch": 512}
    with Model(smollm2_path, devices=[gpu]) as model, Context(model, n_ctx=256) as context:
        logits_of(context, PROMPT)  # what the backend takes once
    (predicted,) = pyllama.memory_use(smollm2_path, devices=[gpu], **options).devices
    before = free_memory()
    with Model(smollm2_path, devices=[gpu]) as model, Context(model, **options) as context:
        logits_of(context, PROMPT)
        taken = before - free_memory()
    logger.info("predicted %d MiB, taken %d MiB", predicted.used / MIB, taken / MIB)
    assert abs(taken - predicted.used) <= 0.1 * predicted.used


@pytest.mark.model
def test_sampling_on_the_device_selects_the_same_tokens(smollm2):
    tokens = smollm2.vocab.tokenize(TEXTS[0])
    expected = [token for token, _ in greedy(smollm2, tokens, 32)]
    chain = SamplerChain([Sampler.greedy()])
    with Context(smollm2, n_ctx=1024, samplers={0: chain}) as context:
        context.decode(Batch.from_tokens(tokens))
        found = []
        for pos in range(len(tokens), len(tokens) + 32):
            found.append(chain.sample(context))
            context.decode_token(found[-1], pos)
    assert found == expected
