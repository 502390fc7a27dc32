"""adapter: local models for DSPy, over the pyllama binding.

::

    import dspy
    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool

    loaded = ModelPool("~/models").load_model("my-model")
    adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig("my-model"))
    dspy.configure(lm=adapter.lm, adapter=adapter)
"""

from adapter.async_engine import AsyncLlamaCppEngine
from adapter.config import LlamaCppConfig
from adapter.engine import LlamaCppEngine
from adapter.errors import (
    BackendError,
    ConfigurationError,
    ContextTooLongError,
    InferenceError,
    InvalidModelNameError,
    InvalidParameterError,
    LlamaCppError,
    ModelNotFoundError,
    ModelNotLoadedError,
    RateLimitExceededError,
    TokenBudgetExhaustedError,
    TokenizationError,
)
from adapter.llama_cpp_adapter import LlamaCppAdapter
from adapter.model_pool import LoadedModel, ModelPool
from adapter.stream_listener import LlamaCppStreamListener

__all__ = [
    "ModelPool",
    "LoadedModel",
    "LlamaCppConfig",
    "LlamaCppAdapter",
    "LlamaCppStreamListener",
    "LlamaCppEngine",
    "AsyncLlamaCppEngine",
    # Errors
    "LlamaCppError",
    "BackendError",
    "ConfigurationError",
    "ContextTooLongError",
    "InferenceError",
    "InvalidModelNameError",
    "InvalidParameterError",
    "ModelNotFoundError",
    "ModelNotLoadedError",
    "RateLimitExceededError",
    "TokenBudgetExhaustedError",
    "TokenizationError",
]
