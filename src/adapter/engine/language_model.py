"""The dspy.LM of a loaded model, with DSPy's own mechanisms set by the config."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from dspy import LM
from dspy.utils.exceptions import LMUnsupportedFeatureError

from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.engine.config import LLAMACPP_SETTINGS, LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.rollouts import rollout
from adapter.generation.sampling import MAX_TOP_K

if TYPE_CHECKING:
    from adapter.models.loaded import LoadedModel


def language_model(loaded: LoadedModel, config: LlamaCppConfig) -> LM:
    """Make the language model that answers with a loaded model.

    Raises:
        ConfigurationError: the config does not fit the model.
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
        return LlamaCppLM(engine.model, **settings)
    return ExpiringLM(engine.model, cache_ttl_secs=config.cache_ttl_secs, **settings)


class LlamaCppLM(LM):
    """A language model that accepts llama.cpp's settings like DSPy's own.

    So ``min_p``, ``repeat_penalty``, ``grammar``, ``chat_template_kwargs`` and the like may be
    given to a call, to a dspy.Predict or to ``copy``, by themselves or in ``extra_body``. The keys
    of ``logit_bias`` may be integers, and -1 means what it means in llama.cpp. Each candidate of a
    call and each rollout has a seed of its own, which is derived from the given one.
    """

    def _get_initial_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        return self._as_dspy(super()._get_initial_kwargs(**kwargs))

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> LM:
        """Load the lm of a saved program, under the name that its engine has here."""
        loaded: LM = super().load_state(state, allow_custom_lm_class=allow_custom_lm_class)
        loaded.model = loaded.engine.model
        return loaded

    def copy(self, **kwargs: Any) -> LM:
        """Return a copy with other settings."""
        return super().copy(**self._as_dspy(kwargs))

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Answer a prompt, messages or a Request."""
        with rollout(kwargs.get("rollout_id", self.kwargs.get("rollout_id"))):
            return super().__call__(prompt, messages=messages, **self._as_dspy(kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """Do the same without blocking the event loop."""
        with rollout(kwargs.get("rollout_id", self.kwargs.get("rollout_id"))):
            return await super().acall(prompt, messages=messages, **self._as_dspy(kwargs))

    def finetune(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: this package trains no models."""
        raise LMUnsupportedFeatureError(
            f"{self.engine.loaded.name!r} cannot be fine-tuned here: llama.cpp computes answers, "
            "and DSPy's BootstrapFinetune needs a provider that trains. Train a student lm that "
            "has one, convert the result to GGUF, and load that file; or use an optimizer of "
            "prompts and demonstrations, such as BootstrapFewShot",
            model=self.model,
            features=["finetuning"],
        )

    def __repr__(self) -> str:
        if "kwargs" not in vars(self):
            return f"<{type(self).__name__}, which could not be made>"
        settings = "".join(f" {name}={value!r}" for name, value in self.kwargs.items())
        return f"<{type(self).__name__} {self.model!r}{settings}>"

    def _as_dspy(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Write settings in the form in which DSPy passes them to the engine."""
        settings = dict(settings)
        if isinstance(settings.get("extra_body"), Mapping):  # how clients of servers send them
            settings = {**settings.pop("extra_body"), **settings}
        own = {name: settings.pop(name) for name in LLAMACPP_SETTINGS if name in settings}
        if own:
            before = settings.get("metadata", getattr(self, "kwargs", {}).get("metadata")) or {}
            asked = {**before.get("llamacpp", {}), **own}
            settings["metadata"] = {**before, "llamacpp": asked}
        if type(settings.get("top_k")) is int and settings["top_k"] in (-1, 0):
            settings["top_k"] = MAX_TOP_K  # DSPy has no number for "all"
        if type(settings.get("max_tokens")) is int and settings["max_tokens"] == -1:
            settings["max_tokens"] = self.engine.context_length
        if isinstance(settings.get("logit_bias"), dict):
            settings["logit_bias"] = {str(key): it for key, it in settings["logit_bias"].items()}
        return settings


class ExpiringLM(LlamaCppLM):
    """A language model whose cached answers expire after cache_ttl_secs.

    DSPy's cache does not know how old an answer is, and finds answers by the model's name. So the
    name changes as time passes, and answers under an earlier name are not found any more.
    """

    def __init__(self, model: str, *, cache_ttl_secs: float, **settings: Any) -> None:
        self.cache_ttl_secs = cache_ttl_secs
        super().__init__(model, **settings)

    @property
    def model(self) -> str:
        """The model's name, with the number of the current period of cache_ttl_secs."""
        return f"{self._name}@{int(time.time() / self.cache_ttl_secs)}"

    @model.setter
    def model(self, name: str) -> None:
        self._name = name

    def dump_state(self) -> dict[str, Any]:
        """Return the state that ``load_state`` needs."""
        state: dict[str, Any] = super().dump_state()
        return {**state, "model": self._name, "cache_ttl_secs": self.cache_ttl_secs}
