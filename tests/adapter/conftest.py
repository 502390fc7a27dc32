from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dspy
import pytest
from fake_generator import adapter_of
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from adapter import LlamaCppAdapter, LlamaCppConfig, LoadedModel, ModelPool


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty hub on this machine, for huggingface_hub with a cache of its own and no token."""
    made = LoopbackHub()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    template = f"{made.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def own_cache() -> Iterator[None]:
    """Give each test an empty cache in memory, and DSPy's settings back as they were."""
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    with dspy.context(lm=None, adapter=None):
        yield
    dspy.cache = before


@pytest.fixture(scope="session")
def smollm2_loaded(smollm2_path: Path) -> Iterator[LoadedModel]:
    """SmolLM2 with a context of 2048 tokens, loaded once for all tests of DSPy's programs."""
    with ModelPool(smollm2_path.parent, context_length=2048) as pool:
        yield pool.load_model(smollm2_path.stem)


@pytest.fixture
def smollm2_adapter(smollm2_loaded: LoadedModel) -> Iterator[Callable[..., LlamaCppAdapter]]:
    """Make a LlamaCppAdapter of SmolLM2, greedy and brief, and make it and its lm DSPy's own."""
    contexts = []

    def make(**settings: object) -> LlamaCppAdapter:
        config = {"max_tokens": 24, "temperature": 0.0, **settings}
        adapter = LlamaCppAdapter.from_loaded_model(
            smollm2_loaded, LlamaCppConfig(smollm2_loaded.name, **config)
        )
        contexts.append(dspy.context(lm=adapter.lm, adapter=adapter))
        contexts[-1].__enter__()
        return adapter

    yield make
    for context in reversed(contexts):
        context.__exit__(None, None, None)


@pytest.fixture
def configured() -> Iterator[Callable[..., LlamaCppAdapter]]:
    """Return a function that makes an adapter and its lm DSPy's own for the test."""

    def configure(model, lm=None, **settings):
        adapter = adapter_of(model, **settings)
        context = dspy.context(lm=lm or adapter.lm, adapter=adapter)
        context.__enter__()
        contexts.append(context)
        return adapter

    contexts = []
    yield configure
    for context in reversed(contexts):
        context.__exit__(None, None, None)
