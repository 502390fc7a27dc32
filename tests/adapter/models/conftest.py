"""A pool of small models, for the tests of pools."""

from __future__ import annotations

from shutil import copyfile

import pytest

from adapter.models.pool import ModelPool


@pytest.fixture
def pool(write_tiny_model, tmp_path):
    for seed, name in enumerate(("one", "two", "three")):
        copyfile(write_tiny_model(chat_template=None, seed=seed), tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but nothing that follows")
    with ModelPool(tmp_path, context_length=64) as pool:
        yield pool
