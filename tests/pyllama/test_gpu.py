"""Models on a real GPU: PYLLAMA_BACKEND=cuda pytest tests/pyllama/test_gpu.py (or vulkan, metal).

Without a GPU there is nothing to test here. Vulkan made of software (GGML_VK_VISIBLE_DEVICES=0)
does too, but takes minutes for the context that is larger than the memory and for the texts.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import NamedTuple

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
    "The history of computing began with",
)
N_TOKENS = 32
ROUGHER = 2.7
"""How many times the CPU's error another backend's may be. Both round a block of activations to 8
bits; for the part of the weights that all of a block have in common (Q4_1's minimum) the CPU takes
the sum of what was rounded, and CUDA that of what was not, so that its errors do not cancel. By the
weights of this model that makes them 2.3 to 2.7 times as large."""
DEVIATIONS = 4
"""How far apart two logits may be, in standard deviations of what rounding does to their
difference on the CPU, and a GPU still put the other one first."""


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
    with Context(model, n_ctx=1024) as context, SamplerChain([Sampler.greedy()]) as chain:
        context.decode(Batch.from_tokens(tokens))
        out = []
        for pos in range(len(tokens), len(tokens) + count):
            out.append(chain.sample(context))
            context.decode_token(out[-1], pos)
        return out


def logits_along(model, texts, **options):
    """The logits from which each token of these texts, given as (prompt, rest), is to be taken."""
    out = []
    for prompt, rest in texts:
        with Context(model, n_ctx=256, **options) as context:
            out.append(logits_of(context, prompt))
            for pos, token in enumerate(rest[:-1], len(prompt)):
                context.decode_token(token, pos)
                out.append(context.logits())
    return np.array(out)


class Compared(NamedTuple):
    """Logits along the texts that the CPU writes greedily: a row for each token, on each device.

    Backends round what they multiply quantized weights with, each in its own way; the reference
    holds the same weights in F32, so that nothing is rounded there.
    """

    reference: np.ndarray
    cpu: np.ndarray
    gpu: np.ndarray
    gpu_f32: np.ndarray

    def error(self, logits):
        """Of each row: how far it is from the reference, beyond what all tokens have in common."""
        off = logits - self.reference
        return np.sqrt(np.square(off - off.mean(axis=1, keepdims=True)).mean(axis=1))


@pytest.fixture(scope="module")
def compared(smollm2, smollm2_path, tmp_path_factory):
    f32 = tmp_path_factory.mktemp("f32") / "model.gguf"
    pyllama.quantize(smollm2_path, f32, "F32", allow_requantize=True)
    with Model(smollm2_path, devices=[]) as model:
        prompts = [model.vocab.tokenize(text) for text in TEXTS]
        texts = [(prompt, greedy(model, prompt, N_TOKENS)) for prompt in prompts]
        cpu = logits_along(model, texts)
    with Model(f32, devices=[]) as model:
        exact = {"flash_attn": "disabled", "type_k": "f32", "type_v": "f32"}
        reference = logits_along(model, texts, **exact)
    with Model(f32) as model:
        gpu_f32 = logits_along(model, texts)
    made = Compared(reference, cpu, logits_along(smollm2, texts), gpu_f32)
    for name in ("cpu", "gpu", "gpu_f32"):
        error, off = made.error(getattr(made, name)), np.abs(getattr(made, name) - reference)
        logger.info("%s: error %.4f, worst row %.4f, logit %.3f", name, *summary(error), off.max())
    return made


def summary(error):
    return np.sqrt(np.square(error).mean()), error.max()


@pytest.mark.model
def test_the_logits_are_as_near_to_the_exact_ones_as_the_cpus(compared):
    ours, theirs = compared.error(compared.gpu), compared.error(compared.cpu)
    assert summary(ours)[0] <= ROUGHER * summary(theirs)[0]
    assert ours.max() <= ROUGHER * theirs.max()
    assert ours.max() < 0.1 * compared.reference.std()  # whatever the CPU does


@pytest.mark.model
def test_the_logits_are_nearer_without_quantized_weights(compared):
    ours, theirs = compared.error(compared.gpu_f32), compared.error(compared.cpu)
    assert summary(ours)[0] <= 0.1 * summary(theirs)[0]


@pytest.mark.model
def test_greedy_tokens_are_the_cpus_but_where_rounding_decides(compared):
    deviation = np.sqrt(2) * compared.error(compared.cpu)
    rows = np.arange(len(deviation))
    ours, theirs = compared.gpu.argmax(axis=1), compared.cpu.argmax(axis=1)
    gaps = np.abs(compared.reference[rows, theirs] - compared.reference[rows, ours])
    for row in np.flatnonzero(ours != theirs):
        text, token = divmod(int(row), N_TOKENS)
        logger.info(
            "%r: apart at token %d; exactly %.3f apart, on the CPU %.3f; one deviation is %.3f",
            TEXTS[text],
            token,
            gaps[row],
            compared.cpu[row, theirs[row]] - compared.cpu[row, ours[row]],
            deviation[row],
        )
    assert (gaps <= DEVIATIONS * deviation).all()


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
    alone = [greedy(model, PROMPT, 32) for model in models]
    together = [[], []]

    def run(index):
        for _ in range(5):
            together[index].append(greedy(models[index], PROMPT, 32))

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
    expected = greedy(smollm2, tokens, 32)
    chain = SamplerChain([Sampler.greedy()])
    with Context(smollm2, n_ctx=1024, samplers={0: chain}) as context:
        context.decode(Batch.from_tokens(tokens))
        found = []
        for pos in range(len(tokens), len(tokens) + 32):
            found.append(chain.sample(context))
            context.decode_token(found[-1], pos)
    assert found == expected
