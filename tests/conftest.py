"""Models that every test may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import synthetic

import pyllama


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The file of SmolLM2-135M-Instruct Q4_1; tests that ask for it carry the model marker."""
    from adapter.models import embedded_model

    return embedded_model.fetch()


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[pyllama.Model]:
    """SmolLM2-135M-Instruct, loaded once. No test may close it."""
    with pyllama.Model(smollm2_path) as model:
        yield model


@pytest.fixture(scope="session")
def write_tiny_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """Write a synthetic model (see synthetic.write_model); the same options give the same file."""
    folder = tmp_path_factory.mktemp("models")
    written: dict[str, Path] = {}

    def write(**options: object) -> Path:
        key = repr(sorted(options.items()))
        if key not in written:
            path = folder / f"tiny-{len(written)}.gguf"
            written[key] = synthetic.write_model(path, **options)
        return written[key]

    return write


@pytest.fixture(scope="session")
def tiny_model_path(write_tiny_model: Callable[..., Path]) -> Path:
    """A llama of two layers, with a byte-level tokenizer and a chat template."""
    return write_tiny_model()


@pytest.fixture(scope="session")
def tiny(tiny_model_path: Path) -> Iterator[pyllama.Model]:
    """The model of tiny_model_path, loaded once. No test may close it."""
    with pyllama.Model(tiny_model_path) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_mamba(write_tiny_model: Callable[..., Path]) -> Iterator[pyllama.Model]:
    """A recurrent model, loaded once. No test may close it."""
    with pyllama.Model(write_tiny_model(architecture="mamba")) as model:
        yield model


@pytest.fixture
def context(tiny: pyllama.Model) -> Iterator[pyllama.Context]:
    """A context of its own for each test: 256 tokens, one sequence, one thread."""
    with pyllama.Context(tiny, n_ctx=256, n_threads=1) as made:
        yield made
