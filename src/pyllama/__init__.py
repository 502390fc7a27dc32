"""pyllama: llama.cpp in Python, one class for each of its objects.

::

    import pyllama

    with pyllama.Model("model.gguf") as model, pyllama.Context(model, n_ctx=2048) as context:
        context.decode(pyllama.Batch.from_tokens(model.vocab.tokenize("Hello")))
        chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
        print(model.vocab.token_to_piece(chain.sample(context)))
"""

from pyllama.batch import Batch
from pyllama.chat import ChatCapabilities, ChatTemplate, GrammarTrigger, RenderedChat
from pyllama.chat_parser import ChatMessage, ChatMessageDiff, ChatParser, ChatToolCall
from pyllama.context import Context
from pyllama.device import (
    Backend,
    Device,
    backend_features,
    backends,
    cpu_math_cores,
    cpu_variant,
    devices,
    llama_cpp_version,
    load_backend,
    load_backends,
    max_devices,
    max_parallel_sequences,
    supports_gpu_offload,
    supports_mlock,
    supports_mmap,
    supports_rpc,
    system_info,
)
from pyllama.errors import (
    BackendError,
    ChatParseError,
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
    PoisonedError,
    TokenizationError,
)
from pyllama.memory import Memory
from pyllama.model import Model
from pyllama.rpc import RpcServer, rpc_devices
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
    "ChatCapabilities",
    "RenderedChat",
    "GrammarTrigger",
    "ChatParser",
    "ChatMessage",
    "ChatMessageDiff",
    "ChatToolCall",
    # Devices
    "Device",
    "devices",
    "Backend",
    "backends",
    "backend_features",
    "load_backends",
    "load_backend",
    "cpu_variant",
    "cpu_math_cores",
    "max_devices",
    "max_parallel_sequences",
    "supports_gpu_offload",
    "supports_mlock",
    "supports_mmap",
    "supports_rpc",
    "system_info",
    "llama_cpp_version",
    "RpcServer",
    "rpc_devices",
    # Errors
    "LlamaError",
    "BackendError",
    "ChatParseError",
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
    "PoisonedError",
    "TokenizationError",
]
