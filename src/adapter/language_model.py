"""The dspy.LM of a loaded model: DSPy's own mechanisms, set as the config says."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dspy import LM

from adapter.async_engine import AsyncLlamaCppEngine
from adapter.config import LlamaCppConfig
from adapter.engine import LlamaCppEngine

if TYPE_CHECKING:
    from adapter.loaded_model import LoadedModel


def language_model(loaded: LoadedModel, config: LlamaCppConfig) -> LM:
    """The language model that answers with a loaded model.

    Raises ConfigurationError when the config does not fit the model.
    """
    engine = LlamaCppEngine(loaded, config)
    settings: dict[str, Any] = {
        "engine": engine,
        "async_engine": AsyncLlamaCppEngine(engine),
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "num_retries": config.max_retries,
        "cache": config.enable_cache,
    }
    if config.cache_ttl_secs is None:
        return LM(engine.model, **settings)
    return ExpiringLM(engine.model, cache_ttl_secs=config.cache_ttl_secs, **settings)


class ExpiringLM(LM):
    """A language model whose cached answers are used no longer than cache_ttl_secs.

    DSPy's cache knows no ages; it knows answers by the model's name. So the name changes as time
    passes, and what was cached under an earlier one is not found any more.
    """

    def __init__(self, model: str, *, cache_ttl_secs: float, **settings: Any) -> None:
        self.cache_ttl_secs = cache_ttl_secs
        super().__init__(model, **settings)

    @property
    def model(self) -> str:
        """The model's name, with the number of the present span of cache_ttl_secs."""
        return f"{self._name}@{int(time.time() / self.cache_ttl_secs)}"

    @model.setter
    def model(self, name: str) -> None:
        self._name = name

    def dump_state(self) -> dict[str, Any]:
        """Return what makes it anew."""
        state: dict[str, Any] = super().dump_state()
        return {**state, "model": self._name, "cache_ttl_secs": self.cache_ttl_secs}
