"""adapter: local models for DSPy, over the pyllama binding.

::

    import dspy
    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool

    loaded = ModelPool("~/models").load_model("my-model")
    adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig("my-model"))
    dspy.configure(lm=adapter.lm, adapter=adapter)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from adapter.errors import (
    BackendError,
    ConfigurationError,
    ContextTooLongError,
    ConversionError,
    ImatrixError,
    InferenceError,
    InvalidModelNameError,
    InvalidParameterError,
    LlamaCppError,
    ModelChangedError,
    ModelDownloadError,
    ModelFileError,
    ModelInUseError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
    PromptError,
    RateLimitExceededError,
    RequestCancelledError,
    RequestTimeoutError,
    ResourceError,
    TemplateAbortedError,
    TextTooLongError,
    TokenBudgetExhaustedError,
    TokenizationError,
    TransientError,
)

if TYPE_CHECKING:
    from adapter.embedder import LlamaCppEmbedder
    from adapter.engine.async_engine import AsyncLlamaCppEngine
    from adapter.engine.config import LlamaCppConfig
    from adapter.engine.engine import LlamaCppEngine
    from adapter.models import embedded_model
    from adapter.models.hardware import HardwareManager, Placement
    from adapter.models.info import ModelInfo
    from adapter.models.loaded import LoadedModel
    from adapter.models.pool import ModelPool
    from adapter.signatures.bound_answers import CutAnswerError, InvalidValueError
    from adapter.signatures.constrained_adapters import constrained
    from adapter.signatures.decision_requests import LlamaCppDecisions
    from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter
    from adapter.signatures.stream_listener import LlamaCppStreamListener

__all__ = [
    "ModelPool",
    "LoadedModel",
    "ModelInfo",
    "HardwareManager",
    "Placement",
    "embedded_model",
    "LlamaCppConfig",
    "LlamaCppAdapter",
    "LlamaCppStreamListener",
    "LlamaCppDecisions",
    "constrained",
    "LlamaCppEngine",
    "AsyncLlamaCppEngine",
    "LlamaCppEmbedder",
    # Errors
    "LlamaCppError",
    "ResourceError",
    "ConfigurationError",
    "ContextTooLongError",
    "ConversionError",
    "ImatrixError",
    "CutAnswerError",
    "InferenceError",
    "InvalidValueError",
    "InvalidModelNameError",
    "InvalidParameterError",
    "ModelChangedError",
    "ModelDownloadError",
    "ModelInUseError",
    "ModelFileError",
    "ModelNotFoundError",
    "ModelNotLoadedError",
    "PoolFullError",
    "TextTooLongError",
    "RateLimitExceededError",
    "RequestCancelledError",
    "RequestTimeoutError",
    "TokenBudgetExhaustedError",
    "TemplateAbortedError",
    "PromptError",
    "TransientError",
    # Earlier names of errors
    "BackendError",
    "ModelLoadError",
    "TokenizationError",
]

# Where the names are that are imported when they are first used. DSPy alone takes a second, and
# neither a pool nor most of the commands need it.
_HOMES = {
    "embedded_model": "adapter.models.embedded_model",
    "LlamaCppEmbedder": "adapter.embedder",
    "AsyncLlamaCppEngine": "adapter.engine.async_engine",
    "LlamaCppConfig": "adapter.engine.config",
    "LlamaCppEngine": "adapter.engine.engine",
    "ModelInfo": "adapter.models.info",
    "HardwareManager": "adapter.models.hardware",
    "Placement": "adapter.models.hardware",
    "LoadedModel": "adapter.models.loaded",
    "ModelPool": "adapter.models.pool",
    "CutAnswerError": "adapter.signatures.bound_answers",
    "InvalidValueError": "adapter.signatures.bound_answers",
    "constrained": "adapter.signatures.constrained_adapters",
    "LlamaCppAdapter": "adapter.signatures.llama_cpp_adapter",
    "LlamaCppDecisions": "adapter.signatures.decision_requests",
    "LlamaCppStreamListener": "adapter.signatures.stream_listener",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    value: object = import_module(home)
    if not home.endswith(f".{name}"):  # not the module itself
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
