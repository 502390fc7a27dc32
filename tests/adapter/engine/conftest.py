"""A model that computes, for the tests of engines."""

from __future__ import annotations

import pytest

from adapter.models.pool import ModelPool


@pytest.fixture(scope="module")
def tiny_loaded(tiny_model_path):
    """Real tokens, of random weights."""
    with ModelPool(tiny_model_path.parent, context_length=256) as pool:
        yield pool.load_model(tiny_model_path.stem)
