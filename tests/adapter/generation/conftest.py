"""Models and schedulers for these tests, and helpers within reach of the folders in this one."""

from __future__ import annotations

import pytest
from schedules import scheduler_of

import pyllama


@pytest.fixture(scope="session")
def models(write_tiny_model, tmp_path_factory):
    """A model whose batches keep the bytes, and those whose memory cannot go back."""
    folder = tmp_path_factory.mktemp("quantized")
    wide = write_tiny_model(n_embd=256, n_ff=256, n_ctx_train=4096)
    pyllama.quantize(wide, folder / "q8.gguf", "Q8_0")
    paths = {"llama": folder / "q8.gguf"}
    for name in ("mamba", "jamba", "gemma2"):
        paths[name] = write_tiny_model(architecture=name, n_ctx_train=4096)
    made = {name: pyllama.Model(path) for name, path in paths.items()}
    yield made
    for model in made.values():
        model.close()


@pytest.fixture
def model(models):
    return models["llama"]


@pytest.fixture
def scheduler(model):
    made = scheduler_of(model)
    yield made
    made.close()
