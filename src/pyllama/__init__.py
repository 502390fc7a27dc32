"""pyllama: llama.cpp in Python, one class for each of its objects.

::

    import pyllama

    with pyllama.Model("model.gguf") as model, pyllama.Context(model, n_ctx=2048) as context:
        context.decode(pyllama.Batch.from_tokens(model.vocab.tokenize("Hello")))
        chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])
        print(model.vocab.token_to_piece(chain.sample(context)))
"""

from pyllama.backend_choice import (
    BackendBuild,
    BackendName,
    backend_devices,
    build_info,
    unloaded_backends,
)
from pyllama.backend_packages import BackendPackage
from pyllama.batch import Batch
from pyllama.candidates import Candidates
from pyllama.chat import ChatTemplate
from pyllama.chat_parser import ChatMessage, ChatMessageDiff, ChatParser, ChatToolCall
from pyllama.context import Context
from pyllama.context_params import ContextParams
from pyllama.converter import converter_script
from pyllama.detokenizer import Detokenizer
from pyllama.device import (
    Backend,
    Device,
    backend_features,
    backend_packages,
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
from pyllama.distribution import distribution_name, extra_command
from pyllama.errors import (
    AdapterError,
    BackendError,
    ChatParseError,
    ChatProcessError,
    ChatTemplateAborted,
    ChatTemplateError,
    ClosedError,
    ContextError,
    DecodeCancelled,
    DecodeError,
    ForkedError,
    GrammarError,
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
    OutputsInUseError,
    PoisonedError,
    QuantizeCancelled,
    QuantizeError,
    SamplingError,
    ServerLostError,
    StateError,
    TokenizationError,
)
from pyllama.forced_text import Forcing
from pyllama.generation import Generation, SequenceProgress
from pyllama.grammar import Grammar, GrammarSampler
from pyllama.imatrix import imatrix_program, load_imatrix
from pyllama.lora import (
    LoraAdapter,
    load_control_vector,
    set_adapters_lora,
    set_control_vector,
)
from pyllama.memory import Memory
from pyllama.memory_fit import DeviceMemory, MemoryFit, MemoryUse, memory_fit, memory_use
from pyllama.model import Model
from pyllama.parallel_generation import Drawn, Generated, Run, generate_each
from pyllama.parallel_sampling import sample_each
from pyllama.performance import Performance
from pyllama.python_sampler import PythonSampler
from pyllama.quantize import Quantization, quantize
from pyllama.reasoning_budget import ReasoningBudgetSampler
from pyllama.rendered_chat import ChatCapabilities, GrammarTrigger, RenderedChat
from pyllama.rpc import RpcServer, rpc_devices
from pyllama.sampler import Sampler
from pyllama.sampler_chain import SamplerChain, SamplerPerf
from pyllama.state import State
from pyllama.tensor_info import TensorInfo, tensor_infos
from pyllama.threadpool import Threadpool
from pyllama.vocab import Vocab

__version__ = "0.1.0"

__all__ = [
    # Objects
    "Model",
    "Vocab",
    "Detokenizer",
    "Context",
    "ContextParams",
    "Memory",
    "State",
    "Performance",
    "Threadpool",
    "Batch",
    "Candidates",
    "Sampler",
    "PythonSampler",
    "SamplerChain",
    "SamplerPerf",
    "sample_each",
    "generate_each",
    "Run",
    "Drawn",
    "Generated",
    "Generation",
    "SequenceProgress",
    "Grammar",
    "GrammarSampler",
    "ReasoningBudgetSampler",
    "ChatTemplate",
    "ChatCapabilities",
    "RenderedChat",
    "GrammarTrigger",
    "ChatParser",
    "ChatMessage",
    "ChatMessageDiff",
    "ChatToolCall",
    # Adapters
    "LoraAdapter",
    "set_adapters_lora",
    "load_control_vector",
    "set_control_vector",
    # Files and their memory
    "tensor_infos",
    "TensorInfo",
    "converter_script",
    "quantize",
    "Quantization",
    "imatrix_program",
    "load_imatrix",
    "memory_use",
    "MemoryUse",
    "DeviceMemory",
    "memory_fit",
    "MemoryFit",
    # Devices
    "Device",
    "devices",
    "Backend",
    "backends",
    "backend_features",
    "backend_devices",
    "build_info",
    "unloaded_backends",
    "BackendBuild",
    "BackendName",
    "backend_packages",
    "BackendPackage",
    "distribution_name",
    "extra_command",
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
    "AdapterError",
    "BackendError",
    "ChatParseError",
    "ChatProcessError",
    "ChatTemplateAborted",
    "ChatTemplateError",
    "ClosedError",
    "ContextError",
    "DecodeCancelled",
    "DecodeError",
    "Forcing",
    "ForkedError",
    "GrammarError",
    "InvalidBatchError",
    "MemoryFitError",
    "MemoryFullError",
    "ModelLoadCancelled",
    "ModelLoadError",
    "ModelSaveError",
    "NativeAssertionError",
    "NativeError",
    "NativeMemoryError",
    "OutputsInUseError",
    "PoisonedError",
    "QuantizeCancelled",
    "QuantizeError",
    "SamplingError",
    "ServerLostError",
    "StateError",
    "TokenizationError",
]
