"""pyllama: llama.cpp in Python, one class for each of its objects.

::

    import pyllama

    with pyllama.Model("model.gguf") as model, pyllama.Context(model, n_ctx=2048) as context:
        context.decode(pyllama.Batch.from_tokens(model.vocab.tokenize("Hello")))
        chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
        print(model.vocab.token_to_piece(chain.sample(context)))
"""

from pyllama.batch import Batch
from pyllama.chat import ChatTemplate, RenderedChat
from pyllama.context import Context
from pyllama.device import (
    Device,
    backend_features,
    cpu_math_cores,
    devices,
    llama_cpp_version,
    load_backends,
)
from pyllama.errors import (
    BackendError,
    ChatTemplateError,
    ClosedError,
    ContextError,
    DecodeCancelled,
    DecodeError,
    InvalidBatchError,
    LlamaError,
    MemoryFullError,
    ModelLoadCancelled,
    ModelLoadError,
    NativeAssertionError,
    NativeError,
    NativeMemoryError,
    OutputsInUseError,
    PoisonedError,
    StateError,
    TokenizationError,
)
from pyllama.memory import Memory
from pyllama.model import Model
from pyllama.performance import Performance
from pyllama.sampler import Sampler, SamplerChain
from pyllama.state import State
from pyllama.threadpool import Threadpool
from pyllama.vocab import Detokenizer, Vocab

__all__ = [
    # Objects
    "Model",
    "Vocab",
    "Detokenizer",
    "Context",
    "Memory",
    "State",
    "Performance",
    "Threadpool",
    "Batch",
    "Sampler",
    "SamplerChain",
    "ChatTemplate",
    "RenderedChat",
    # Devices
    "Device",
    "devices",
    "backend_features",
    "cpu_math_cores",
    "load_backends",
    "llama_cpp_version",
    # Errors
    "LlamaError",
    "BackendError",
    "ChatTemplateError",
    "ClosedError",
    "ContextError",
    "DecodeCancelled",
    "DecodeError",
    "InvalidBatchError",
    "MemoryFullError",
    "ModelLoadCancelled",
    "ModelLoadError",
    "NativeAssertionError",
    "NativeError",
    "NativeMemoryError",
    "OutputsInUseError",
    "PoisonedError",
    "StateError",
    "TokenizationError",
]
