"""What a GPU computes while its model is loaded. Here the CPU stands in for it."""

from __future__ import annotations

import pytest
from fake_device import CPU, gpu

import pyllama
from adapter import ModelPool
from adapter.generation.contexts import Contexts
from adapter.generation.memory.blocks import CHUNK
from adapter.models import warm_up


@pytest.fixture
def model(tiny_model_path):
    with pyllama.Model(tiny_model_path, devices=()) as made:
        yield made


def contexts_of(model, *, mixed=True):
    params = pyllama.ContextParams(n_threads=1)
    return Contexts(model, params, chunk=CHUNK, scoring_chunk=CHUNK, mixed=mixed)


@pytest.fixture
def calls(monkeypatch):
    found = []
    decode = pyllama.Context.decode
    monkeypatch.setattr(
        pyllama.Context,
        "decode",
        lambda context, batch: decode(context, batch) or found.append(len(batch)),
    )
    return found


@pytest.mark.parametrize("mixed", [True, False])
def test_prompts_and_answers_of_all_sizes_are_computed(model, calls, mixed):
    done = []
    warm_up.warm_up(model, contexts_of(model, mixed=mixed), CHUNK, done.append)
    assert calls == [96, 48, 24, 12, *warm_up.WIDTHS]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (warm_up.LOADED, 1.0)


def test_a_load_that_is_stopped_ends_the_warm_up(model, calls):
    with pytest.raises(pyllama.ModelLoadCancelled, match="warmed up"):
        warm_up.warm_up(model, contexts_of(model), CHUNK, lambda _: len(calls) < 3)
    assert len(calls) == 3


def test_a_warm_up_that_fails_leaves_the_model_usable(model, monkeypatch, caplog):
    def refuse(*_):
        raise pyllama.NativeMemoryError("no memory")

    contexts, done = contexts_of(model), []
    monkeypatch.setattr(contexts, "make", refuse)
    caplog.set_level("INFO")
    warm_up.warm_up(model, contexts, CHUNK, done.append)
    assert done == [1.0]
    assert "may wait for kernels: no memory" in caplog.text


def test_a_pool_warms_its_gpus_up_behind_the_progress(tiny_model_path, monkeypatch, calls):
    monkeypatch.setattr(warm_up, "warms_up", lambda _: True)
    seen = []
    folder = tiny_model_path.parent
    with ModelPool(folder, n_gpu_layers=0, progress=lambda _, done: seen.append(done)) as pool:
        pool.load_model(tiny_model_path.stem)
    assert calls[-1] == warm_up.COUNT
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert seen.count(1.0) == 1


def test_an_exception_of_the_progress_during_the_warm_up_is_raised(tiny_model_path, monkeypatch):
    monkeypatch.setattr(warm_up, "warms_up", lambda _: True)

    def fail(_, done):
        if done > warm_up.LOADED:
            raise OSError("stop")

    pool = ModelPool(tiny_model_path.parent, n_gpu_layers=0, progress=fail)
    with pool, pytest.raises(OSError, match="stop"):
        pool.load_model(tiny_model_path.stem)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((), False),
        ((CPU,), False),
        ((gpu("CUDA0"),), False),
        ((gpu("RPC0"),), False),
        ((gpu("Vulkan0"),), True),
        ((gpu("CUDA0"), gpu("Vulkan0", type="igpu")), True),
    ],
)
def test_devices_whose_kernels_are_compiled_late_are_warmed_up(devices, expected):
    assert warm_up.warms_up(devices) is expected
