"""adapter: local models for DSPy, over the pyllama binding.

::

    import dspy
    from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool

    loaded = ModelPool("~/models").load_model("my-model")
    adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig("my-model"))
    dspy.configure(lm=adapter.lm, adapter=adapter)
"""

from adapter.embedder import LlamaCppEmbedder
from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.errors import (
    BackendError,
    ConfigurationError,
    ContextTooLongError,
    InferenceError,
    InvalidModelNameError,
    InvalidParameterError,
    LlamaCppError,
    ModelChangedError,
    ModelInUseError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotLoadedError,
    PoolFullError,
    RateLimitExceededError,
    RequestTimeoutError,
    TemplateAbortedError,
    TextTooLongError,
    TokenBudgetExhaustedError,
    TokenizationError,
    TransientError,
)
from adapter.models import embedded_model
from adapter.models.files import ModelInfo
from adapter.models.hardware import HardwareManager, Placement
from adapter.models.loaded import LoadedModel
from adapter.models.pool import ModelPool
from adapter.signatures.bound_answers import CutAnswerError, InvalidValueError, constrained
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
    "constrained",
    "LlamaCppEngine",
    "AsyncLlamaCppEngine",
    "LlamaCppEmbedder",
    # Errors
    "LlamaCppError",
    "BackendError",
    "ConfigurationError",
    "ContextTooLongError",
    "CutAnswerError",
    "InferenceError",
    "InvalidValueError",
    "InvalidModelNameError",
    "InvalidParameterError",
    "ModelChangedError",
    "ModelInUseError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelNotLoadedError",
    "PoolFullError",
    "TextTooLongError",
    "RateLimitExceededError",
    "RequestTimeoutError",
    "TokenBudgetExhaustedError",
    "TemplateAbortedError",
    "TokenizationError",
    "TransientError",
]
