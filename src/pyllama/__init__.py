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
    AdapterError,
    BackendError,
    ChatTemplateError,
    ClosedError,
    ContextError,
    DecodeCancelled,
    DecodeError,
    InvalidBatchError,
    LlamaError,
    MemoryFitError,
    MemoryFullError,
    ModelLoadCancelled,
    ModelLoadError,
    ModelSaveError,
    NativeAssertionError,
    NativeError,
    NativeMemoryError,
    PoisonedError,
    QuantizeCancelled,
    QuantizeError,
    TokenizationError,
)
from pyllama.imatrix import load_imatrix
from pyllama.lora import (
    LoraAdapter,
    load_control_vector,
    set_adapters_lora,
    set_control_vector,
)
from pyllama.memory import Memory
from pyllama.memory_fit import DeviceMemory, MemoryFit, MemoryUse, memory_fit, memory_use
from pyllama.model import Model
from pyllama.quantize import Quantization, quantize
from pyllama.sampler import Sampler, SamplerChain
from pyllama.vocab import Detokenizer, Vocab

__all__ = [
    # Objects
    "Model",
    "Vocab",
    "Detokenizer",
    "Context",
    "Memory",
    "Batch",
    "Sampler",
    "SamplerChain",
    "ChatTemplate",
    "RenderedChat",
    # Adapters
    "LoraAdapter",
    "set_adapters_lora",
    "load_control_vector",
    "set_control_vector",
    # Files and their memory
    "quantize",
    "Quantization",
    "load_imatrix",
    "memory_use",
    "MemoryUse",
    "DeviceMemory",
    "memory_fit",
    "MemoryFit",
    # Devices
    "Device",
    "devices",
    "backend_features",
    "cpu_math_cores",
    "load_backends",
    "llama_cpp_version",
    # Errors
    "LlamaError",
    "AdapterError",
    "BackendError",
    "ChatTemplateError",
    "ClosedError",
    "ContextError",
    "DecodeCancelled",
    "DecodeError",
    "InvalidBatchError",
    "MemoryFitError",
    "MemoryFullError",
    "ModelLoadCancelled",
    "ModelLoadError",
    "ModelSaveError",
    "NativeAssertionError",
    "NativeError",
    "NativeMemoryError",
    "PoisonedError",
    "QuantizeCancelled",
    "QuantizeError",
    "TokenizationError",
]
