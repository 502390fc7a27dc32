"""A model that computes, for the tests of engines."""

from __future__ import annotations

import shutil

import pytest

from adapter.models.pool import ModelPool


@pytest.fixture(scope="module")
def tiny_loaded(tiny_model_path):
    """Real tokens, of random weights."""
    with ModelPool(tiny_model_path.parent, context_length=256) as pool:
        yield pool.load_model(tiny_model_path.stem)


@pytest.fixture(scope="module")
def loaded(tiny_model_path, tmp_path_factory):
    """The same with room for long answers, named "tiny". Some files have a model of their own."""
    folder = tmp_path_factory.mktemp("pool")
    shutil.copy(tiny_model_path, folder / "tiny.gguf")
    with ModelPool(folder, context_length=2048) as pool:
        yield pool.load_model("tiny")
