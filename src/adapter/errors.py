"""Every exception that the adapter package raises.

    LlamaCppError
    ├── ConfigurationError      (ValueError)         settings that do not fit together
    │   └── InvalidParameterError                    one value outside its range
    ├── InvalidModelNameError   (ValueError)         a name that is not a plain file name
    ├── ModelNotFoundError      (FileNotFoundError)  no such file in the model folder
    ├── ModelDownloadError      (OSError)            a model that could not be downloaded
    ├── ConversionError         (RuntimeError)       a model that cannot be converted
    ├── ImatrixError            (RuntimeError)       an importance matrix that cannot be computed
    ├── ModelFileError          (RuntimeError)       a file that is not a loadable model
    ├── ModelChangedError       (RuntimeError)       a file that changed since it was loaded
    ├── ModelNotLoadedError     (LookupError)        a model that is not in memory
    ├── UnknownModelError       (LookupError)        a request for a model that the engine lacks
    ├── ModelInUseError         (RuntimeError)       a thread that would wait for itself
    ├── ContextTooLongError     (ValueError)         a prompt that leaves no room in the context
    │   └── TextTooLongError                         a text to embed that does not fit
    ├── TokenBudgetExhaustedError (RuntimeError)     all tokens that a config grants are used up
    ├── RateLimitExceededError  (RuntimeError)       too many requests in a minute
    ├── RequestTimeoutError     (TimeoutError)       a request that took too long
    ├── RequestCancelledError   (RuntimeError)       a request that DSPy no longer waits for
    ├── QueueFullError          (RuntimeError)       too many requests that wait
    ├── PromptError             (ValueError)         a text that cannot become tokens
    │   └── TemplateAbortedError                     a chat template that ended its process
    ├── InferenceError          (RuntimeError)       a computation that failed
    └── ResourceError           (RuntimeError)       a device, memory or a thread that failed
        ├── PoolFullError           (MemoryError)    no room for a model, and none can be made
        └── TransientError                           a fault of the machine that passes

Each class also inherits the builtin that fits it, and carries its data as attributes. pyllama has
errors of its own. No name is used in both packages, except for those at the end of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapter.wording import counted


class LlamaCppError(Exception):
    """Base of every error of this package."""

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls the class with the message alone, which no subclass accepts.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(
    cls: type[LlamaCppError], args: tuple[object, ...], attributes: dict[str, object]
) -> LlamaCppError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(LlamaCppError, ValueError):
    """Settings contradict each other, or do not fit the model they are used with."""


class InvalidParameterError(ConfigurationError):
    """One parameter has a value outside its range.

    Attributes:
        name: the parameter.
        value: what was given.
        allowed: the range in words.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name = name
        self.value = value
        self.allowed = allowed
        super().__init__(f"{name}={_shown(value)} is not allowed: {name} must be {allowed}")


def _shown(value: object) -> str:
    """A value of a user's, in few characters; not all have a repr."""
    try:
        text = repr(value)
    except Exception:  # an int of too many digits, a list within itself a thousand times
        return f"(a value of type {type(value).__name__})"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_MAX_SHOWN = 500


class InvalidModelNameError(LlamaCppError, ValueError):
    """A model name is not a plain file name inside the model folder.

    Attributes:
        name: what was given.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(
            f"model name {name!r} {reason}; "
            "give the name of a file in the model folder, without the folder and without .gguf, or "
            "hf:owner/repo:Q4_K_M"
        )


class ModelNotFoundError(LlamaCppError, FileNotFoundError):
    """The model folder holds no file for a name.

    Attributes:
        name: the model.
        path: the file that was looked for.
        near: the names in the folder that are most like it.
    """

    def __init__(
        self, name: str, path: Path, near: Sequence[str] = (), *, reason: str | None = None
    ) -> None:
        self.name = name
        self.path = path
        self.near = tuple(near)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"no model {name!r}: {reason or f'{path} does not exist'}{hint}")


class ModelDownloadError(LlamaCppError, OSError):
    """A model could not be downloaded completely. What arrived is kept, and the next try continues.

    Attributes:
        name: the model.
        reason: what went wrong, and what to do.
        choices: the names that would have been unambiguous.
    """

    def __init__(self, name: str, reason: str, choices: Sequence[str] = ()) -> None:
        self.name = name
        self.reason = reason
        self.choices = tuple(choices)
        hint = f"; there are {', '.join(choices)}" if choices else ""
        super().__init__(f"{name} cannot be downloaded: {reason}{hint}")


class ConversionError(LlamaCppError, RuntimeError):
    """A model in Hugging Face's format could not be converted; the message says what to do."""


class ImatrixError(LlamaCppError, RuntimeError):
    """An importance matrix could not be computed; the message says what to do."""


class ModelFileError(LlamaCppError, RuntimeError):
    """A model's file is damaged, incomplete, or of a kind that llama.cpp does not know.

    Attributes:
        name: the model.
        path: its file.
        reason: what llama.cpp says.
    """

    def __init__(self, name: str, path: Path, reason: str) -> None:
        self.name = name
        self.path = path
        self.reason = reason
        super().__init__(f"model {name!r} cannot be loaded from {path}: {reason}")


class ModelChangedError(LlamaCppError, RuntimeError):
    """The file of a model has changed since the model was first loaded.

    Attributes:
        name: the model.
        path: its file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        super().__init__(
            f"{path} has changed since model {name!r} was loaded from it: put the old file back, "
            f"or call unload_model({name!r}) and load_model({name!r}) to use the new one"
        )


class ModelNotLoadedError(LlamaCppError, LookupError):
    """A model that should be in memory is not.

    Attributes:
        name: the model.
        remedy: what to do about it.
    """

    def __init__(self, name: str, remedy: str) -> None:
        self.name = name
        self.remedy = remedy
        super().__init__(f"model {name!r} is not loaded: {remedy}")


class UnknownModelError(LlamaCppError, LookupError):
    """A request names a model that its engine does not have.

    Attributes:
        name: the model that was asked for.
        known: the names that the engine answers to.
        others: the names of other engines in this process.
    """

    def __init__(self, name: str, known: list[str], others: list[str]) -> None:
        self.name = name
        self.known = known
        self.others = others
        elsewhere = f"; other engines here have {', '.join(map(repr, others))}" if others else ""
        super().__init__(
            f"this engine has no model {name!r}, only {', '.join(map(repr, known))}{elsewhere}; "
            "take the name from engine.model, or the lm from the model's own adapter"
        )


class ModelInUseError(LlamaCppError, RuntimeError):
    """A thread would wait for itself.

    It unloads a model that it holds a lease on, or asks for a model in a progress callback.

    Attributes:
        name: the model.
        remedy: what to do about it.
    """

    def __init__(
        self, name: str, remedy: str = "finish its request or close its stream first"
    ) -> None:
        self.name = name
        self.remedy = remedy
        super().__init__(
            f"model {name!r} is in use by this very thread, which cannot wait for itself: {remedy}"
        )


class ContextTooLongError(LlamaCppError, ValueError):
    """A prompt leaves no room for an answer in the context.

    Attributes:
        actual: the prompt's length in tokens.
        max: the context's length in tokens.
        answer: tokens of the shortest answer that its form allows.
    """

    def __init__(
        self,
        actual: int,
        max: int,  # noqa: A002 - the attribute's own name
        answer: int = 1,
    ) -> None:
        self.actual = actual
        self.max = max
        self.answer = answer
        included = f"of at least {answer} tokens included" if answer > 1 else "included"
        super().__init__(
            f"the prompt has {counted(actual, 'token')} and the context holds {max}, the answer "
            f"{included}; shorten the prompt or load the model with a larger context_length"
        )


class TextTooLongError(ContextTooLongError):
    """A text has more tokens than the model takes at once.

    Attributes:
        argument: the text, such as ``"texts[3]"``.
        actual: its length in tokens.
        max: tokens that the model takes at once.
    """

    def __init__(self, argument: str, actual: int, max: int) -> None:  # noqa: A002 - as above
        super().__init__(actual, max)
        self.argument = argument
        self.args = (
            f"{argument} has {counted(actual, 'token')} and the model takes {max}; shorten it, or "
            "let the embedder cut it with truncate=True",
        )


class TokenBudgetExhaustedError(LlamaCppError, RuntimeError):
    """The requests of an engine took, or hold, all tokens that its config grants.

    Attributes:
        used: tokens that were used.
        limit: tokens that the config grants.
    """

    def __init__(self, used: int, limit: int) -> None:
        self.used = used
        self.limit = limit
        super().__init__(
            f"the token budget is exhausted: {used} of {limit} tokens are used; build the adapter "
            "with a larger token_budget_limit"
        )


class RateLimitExceededError(LlamaCppError, RuntimeError):
    """More requests came in a minute than the config allows.

    Attributes:
        retry_after: seconds to wait.
        requests_per_minute: what the config allows.
    """

    def __init__(self, retry_after: float, requests_per_minute: int) -> None:
        self.retry_after = retry_after
        self.requests_per_minute = requests_per_minute
        super().__init__(
            f"more than {counted(requests_per_minute, 'request')} in a minute "
            f"(requests_per_minute); try again in {retry_after:.1f} s"
        )


class RequestTimeoutError(LlamaCppError, TimeoutError):
    """A request was not done in time.

    Attributes:
        timeout: seconds that the request had from its arrival on.
        n_tokens: tokens that it had by then.
    """

    def __init__(self, timeout: float, n_tokens: int) -> None:
        self.timeout = timeout
        self.n_tokens = n_tokens
        super().__init__(
            f"no answer within timeout_secs={timeout:g} (tokens by then: {n_tokens}); ask for "
            "fewer tokens, send fewer requests at once, or raise timeout_secs"
        )


class RequestCancelledError(LlamaCppError, RuntimeError):
    """DSPy gave up the jobs of its threads while this request ran in one of them."""

    def __init__(self) -> None:
        super().__init__(
            "the request was cancelled: DSPy gave up the evaluation or the other jobs that it "
            "belonged to, on Ctrl-C or after too many errors"
        )


class QueueFullError(LlamaCppError, RuntimeError):
    """Too many requests wait for a model.

    Attributes:
        queued: requests that wait.
        retry_after: seconds that a request took lately.
    """

    def __init__(self, queued: int, retry_after: float) -> None:
        self.queued = queued
        self.retry_after = retry_after
        super().__init__(
            f"the model's queue is full (requests that wait: {queued}); try again in "
            f"{retry_after:.1f} s, or ask from fewer threads"
        )


class PromptError(LlamaCppError, ValueError):
    """A text could not be turned into tokens, or a conversation into a prompt."""


class TemplateAbortedError(PromptError):
    """A chat template ended its process over a conversation, or took too long."""


class InferenceError(LlamaCppError, RuntimeError):
    """The model could not compute an answer."""


class ResourceError(LlamaCppError, RuntimeError):
    """A device, its backend or a thread failed, or memory ran out."""


class PoolFullError(ResourceError, MemoryError):
    """A model pool has no room for a model, and every model in it is in use or pinned.

    Attributes:
        name: the model.
        needed: what the model takes, in ``unit``.
        held: what the pool holds, in ``unit``.
        limit: what the pool may hold, in ``unit``.
        unit: ``"bytes"`` or ``"models"``.
        memory: whose memory it is.
    """

    def __init__(
        self, name: str, *, needed: int, held: int, limit: int, unit: str, memory: str, holders: str
    ) -> None:
        self.name = name
        self.needed = needed
        self.held = held
        self.limit = limit
        self.unit = unit
        self.memory = memory
        if needed > limit:
            remedy = "a smaller quantization or context_length takes less"
        else:
            remedy = "unload or unpin a model, or wait for its requests"
        super().__init__(
            f"no room for model {name!r}: it takes {needed:,} {unit}; {memory} may hold {limit:,} "
            f"and holds {held:,}, of which nothing can be evicted ({holders}). Raise the limit, or "
            f"{remedy}"
        )


class TransientError(ResourceError):
    """The machine could not do this at that moment; the same call may work a little later.

    It lacked file descriptors, threads or processes, or others ended a process that was needed.
    """


# Earlier names. Classes of pyllama have the same names.

BackendError = ResourceError
"""An earlier name of ``ResourceError``."""

ModelLoadError = ModelFileError
"""An earlier name of ``ModelFileError``."""

TokenizationError = PromptError
"""An earlier name of ``PromptError``."""
