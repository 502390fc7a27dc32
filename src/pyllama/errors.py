"""The exceptions of pyllama.

Each also inherits the builtin that fits, so that code such as ``except ValueError`` works::

    LlamaError(Exception)
    ├── ClosedError(ValueError)             used after close()
    ├── PoisonedError(RuntimeError)         used after a call on it failed half way
    ├── ForkedError(RuntimeError)           used in a child of fork()
    ├── NativeError(RuntimeError)           a C++ exception left llama.cpp
    │   └── NativeAssertionError            a GGML_ASSERT fired (also AssertionError)
    ├── NativeMemoryError(MemoryError)      llama.cpp could not allocate
    ├── BackendError(RuntimeError)          no usable backend or device
    │   └── ServerLostError                 an RPC server went away with a part of a model
    ├── ModelLoadError(RuntimeError)        a file that is not a loadable model
    │   └── ModelLoadCancelled              the progress callback said stop
    ├── ModelSaveError(RuntimeError)        a model could not be written
    ├── MemoryFitError(RuntimeError)        nothing fits the memory
    ├── AdapterError(RuntimeError)          a LoRA or control vector that cannot be used
    ├── QuantizeError(RuntimeError)         a model could not be quantized
    │   └── QuantizeCancelled               the progress callback said stop
    ├── ContextError(RuntimeError)          a context could not be made
    ├── DecodeError(RuntimeError)           encode or decode failed
    │   ├── InvalidBatchError(ValueError)   tokens, positions or sequences that do not fit
    │   ├── MemoryFullError                 no free cells for the batch
    │   └── DecodeCancelled                 stopped by Context.cancel()
    ├── OutputsInUseError(BufferError)      views of outputs are alive, which the call would move
    ├── StateError(ValueError)              bytes or a file without a state of this context
    ├── TokenizationError(ValueError)       text or tokens that cannot be converted
    ├── ChatTemplateError(ValueError)       a template that does not parse or apply
    │   └── ChatTemplateAborted             it ended its process, or took too long
    ├── ChatProcessError(RuntimeError)      the process of a template was ended, or stalled
    ├── GrammarError(ValueError)            a grammar that does not parse, a token it refuses
    ├── SamplingError(RuntimeError)         nothing that could be sampled
    └── ChatParseError(ValueError)          generated text that its chat format does not fit

Arguments of a wrong type, range or length are plain TypeError, ValueError and IndexError.
"""

from __future__ import annotations


class LlamaError(Exception):
    """Base of every exception that pyllama defines."""


class ClosedError(LlamaError, ValueError):
    """The object or what it was made from was closed, or the interpreter is ending."""


class PoisonedError(LlamaError, RuntimeError):
    """An earlier call on this object failed half way: an assertion fired, or memory ran out."""


class ForkedError(LlamaError, RuntimeError):
    """This process was forked from one in which llama.cpp was at work."""


class NativeError(LlamaError, RuntimeError):
    """A C++ exception left llama.cpp; the message is llama.cpp's own."""


class NativeAssertionError(NativeError, AssertionError):
    """An assertion inside llama.cpp fired. The object in use is poisoned, the process is not."""


class NativeMemoryError(LlamaError, MemoryError):
    """llama.cpp could not allocate the memory it needed, or start the threads."""

    #: Whether this was detected before anything was changed.
    nothing_changed = False


class BackendError(LlamaError, RuntimeError):
    """No usable backend, or a device that does not exist."""


class ServerLostError(BackendError):
    """An RPC server went away or does not answer. A model with a part there can only be closed."""


class ModelLoadError(LlamaError, RuntimeError):
    """The file is not a model that llama.cpp can load."""


class ModelLoadCancelled(ModelLoadError):
    """The progress callback returned False."""


class ModelSaveError(LlamaError, RuntimeError):
    """The model could not be written: an architecture without support, or a failing disk."""


class MemoryFitError(LlamaError, RuntimeError):
    """No layout of the model and its context fits the memory."""


class AdapterError(LlamaError, RuntimeError):
    """A file that is not an adapter for this model, or an adapter that cannot be applied."""


class QuantizeError(LlamaError, RuntimeError):
    """The model cannot be quantized like this, or not with this imatrix. Nothing was written."""


class QuantizeCancelled(QuantizeError):
    """The progress callback returned False."""


class ContextError(LlamaError, RuntimeError):
    """A context could not be made from the model with these parameters."""


class DecodeError(LlamaError, RuntimeError):
    """Encoding or decoding a batch failed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        #: What llama.cpp returned.
        self.code = code


class InvalidBatchError(DecodeError, ValueError):
    """The batch holds tokens, positions or sequence ids that this context cannot take."""


class MemoryFullError(DecodeError):
    """The context's memory has no room for the batch; nothing of it was processed."""


class DecodeCancelled(DecodeError):
    """The call was stopped by Context.cancel(); what was computed before stays in memory."""


class OutputsInUseError(LlamaError, BufferError):
    """Views made by Context.logits_view() are alive; delete them first."""


class StateError(LlamaError, ValueError):
    """A damaged, foreign or too large state; or one that cannot be read or set at the moment."""


class TokenizationError(LlamaError, ValueError):
    """Text that cannot be tokenized, or tokens that cannot be turned into text."""


class ChatTemplateError(LlamaError, ValueError):
    """A chat template that does not parse, or messages that it refuses."""


class ChatTemplateAborted(ChatTemplateError):
    """An isolated chat template ended its process, or took too long, so its answer is unknown.

    This says nothing about what the template can express: ``ChatTemplate.capabilities`` raises it
    too.
    """


class ChatProcessError(LlamaError, RuntimeError):
    """The process of an isolated chat template was ended from outside, stalled, or did not start.

    The template is not to blame, and the next call starts another process.
    """


class GrammarError(LlamaError, ValueError):
    """A grammar or JSON schema that cannot be used, or a token that the grammar refuses."""


class SamplingError(LlamaError, RuntimeError):
    """No token could be chosen: none was left, or the logits are not numbers."""


class ChatParseError(LlamaError, ValueError):
    """Generated text that does not fit the format of the chat it answers."""
