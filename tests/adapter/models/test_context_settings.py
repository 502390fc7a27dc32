"""What ModelPool(context=…) says reaches every context that a pool's models compute in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from shutil import copyfile

import pytest

import pyllama
from adapter.embedder import LlamaCppEmbedder
from adapter.engine.config import LlamaCppConfig
from adapter.engine.model_names import engine_name
from adapter.errors import ConfigurationError, InvalidParameterError, ResourceError
from adapter.generation.memory.blocks import CHUNK
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.scoring import ScoringRequest
from adapter.models.context_settings import LEAST_BATCH, OF_THE_POOL, chunk_of
from adapter.models.hardware import HOST, HardwareManager
from adapter.models.pool import ModelPool
from pyllama import ContextParams

ASKED = {
    "type_k": "q8_0",
    "n_threads": 2,
    "n_threads_batch": 1,
    "rope_freq_base": 5000.0,
    "rope_scaling_type": "linear",
    "rope_freq_scale": 0.5,
    "op_offload": False,
    "n_ubatch": 64,
}


@pytest.fixture
def folder(write_tiny_model, tmp_path):
    """Heads of 64 values, which fit into the blocks of every cache type."""
    copyfile(write_tiny_model(n_embd=256, n_head=4), tmp_path / "wide.gguf")
    return tmp_path


def pool_of(folder, **settings):
    hardware = HardwareManager(devices=())
    return ModelPool(folder, hardware=hardware, context_length=256, **settings)


def request(seed):
    return GenerationRequest((5, 6, 7, seed), 4, Sampling(temperature=0.0), seed)


def answer(loaded, seed=1):
    return loaded.generators["batched"].generate(request(seed))


def test_every_context_is_made_as_the_pool_says(folder, monkeypatch):
    """Those of requests, of trials, of scores, of isolated requests and scores, of embeddings."""
    made = []
    init = pyllama.Context.__init__

    def noted(context, model, params=None, **options):
        made.append((params, options))
        init(context, model, params, **options)

    monkeypatch.setattr(pyllama.Context, "__init__", noted)
    with pool_of(folder, context=ContextParams(**ASKED)) as pool:
        loaded = pool.load_model("wide")
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda seed: answer(loaded, seed), range(20, 24)))
        score = ScoringRequest((5, 6, 7), ((8,), (9, 10)), loaded.turn_ends)
        for generator in loaded.generators.values():
            generator.generate(request(30))
            generator.score(score)
        LlamaCppEmbedder(loaded, pooling="mean")(["some text"])
    assert len(made) >= 6
    for params, options in made:
        own = {**ASKED, "n_ubatch": 512} if options.get("embeddings") else ASKED
        found = {name: options.get(name, getattr(params, name)) for name in own}
        assert found == own
    assert {options.get("kv_unified", False) for _, options in made} == {True, False}


VALUES = {
    "n_ctx": 512,
    "n_seq_max": 2,
    "kv_unified": True,
    "n_outputs_max": 3,
    "n_rs_seq": 1,
    "attention_type": "non_causal",
    "pooling_type": "mean",
    "embeddings": True,
    "no_perf": False,
}


@pytest.mark.parametrize("name", OF_THE_POOL)
def test_what_the_pool_decides_is_refused_by_its_name(folder, name):
    value = VALUES[name]
    with pytest.raises(InvalidParameterError) as raised:
        ModelPool(folder, context=ContextParams(**{name: value}))
    assert (raised.value.name, raised.value.value) == (f"context.{name}", value)
    assert OF_THE_POOL[name] in raised.value.allowed


def test_the_pool_decides_nothing_that_is_no_param():
    assert OF_THE_POOL.keys() <= {each.name for each in fields(ContextParams)}


def test_what_is_no_params_is_refused(folder):
    with pytest.raises(InvalidParameterError, match=r"a pyllama\.ContextParams"):
        ModelPool(folder, context={"type_k": "q8_0"})
    with pytest.raises(InvalidParameterError, match=f"n_batch=32 .*at least {LEAST_BATCH}"):
        ModelPool(folder, context=ContextParams(n_batch=32))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"type_k": "q8_0"}, "heads of 16 values"),
        ({"type_v": "q8_0"}, "n_embd_head_v=16"),
        ({"type_v": "q8_0", "flash_attn": "disabled"}, "requires flash_attn"),
    ],
)
def test_what_does_not_fit_the_model_is_said_when_it_is_loaded(tiny_model_path, wrong, reason):
    with (
        pool_of(tiny_model_path.parent, context=ContextParams(**wrong)) as pool,
        pytest.raises((ConfigurationError, ResourceError), match=reason),
    ):
        pool.load_model(tiny_model_path.stem)


def test_the_plan_counts_smaller_keys_and_values(folder):
    hardware, path = HardwareManager(devices=()), folder / "wide.gguf"
    plain = hardware.plan(path, n_contexts=4)
    small = ContextParams(type_k="q8_0", type_v="q8_0", n_threads=3)
    quantized = hardware.plan(path, n_contexts=4, context=small)
    assert quantized.n_cells == plain.n_cells
    assert quantized.memory[HOST] < plain.memory[HOST]
    assert (quantized.n_threads, quantized.context) == (3, small)


def test_the_models_name_says_what_decides_its_answers(folder):
    def names(**settings):
        with pool_of(folder, **settings) as pool:
            loaded = pool.load_model("wide")
            embedder = LlamaCppEmbedder(loaded, pooling="mean")
            return engine_name(loaded, LlamaCppConfig("wide")), embedder.__name__

    plain = names()
    assert names(context=ContextParams()) == plain
    found = [
        names(context=ContextParams(**{name: value}))
        for name, value in {**ASKED, "flash_attn": "enabled", "type_v": "bf16"}.items()
        if name != "n_threads"
    ]
    assert len({plain, *found}) == len(found) + 1
    threads = pyllama.cpu_math_cores()
    assert names(context=ContextParams(n_threads=threads + 1))[0] != plain[0]


def test_calls_become_longer_only_where_bytes_need_not_stay():
    long = ContextParams(n_batch=2 * 768)
    for on_device in (True, False):
        kept = chunk_of(long, on_device=on_device, reproducible=True)
        assert kept == CHUNK
        assert chunk_of(long, on_device=on_device, reproducible=False) == 960
    assert chunk_of(ContextParams(n_batch=LEAST_BATCH), on_device=True, reproducible=False) == CHUNK


def test_answers_come_with_long_batches(folder):
    with pool_of(folder, context=ContextParams(n_batch=512), reproducible=False) as pool:
        assert answer(pool.load_model("wide")).completion_tokens > 0
