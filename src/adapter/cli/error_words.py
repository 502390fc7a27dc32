"""Errors in the words of the commands: their options, in place of Python's arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapter.cli.console import fail, refuse
from adapter.errors import (
    ContextTooLongError,
    InvalidModelNameError,
    InvalidParameterError,
    LlamaCppError,
    ModelNotFoundError,
    TextTooLongError,
)
from adapter.wording import counted, reason_of

_OPTIONS = {
    "context_length": "--context",
    "max_tokens": "--max-tokens",
    "n_gpu_layers": "--gpu-layers",
    "seed": "--seed",
    "temperature": "--temperature",
}


@contextmanager
def errors_told() -> Iterator[None]:
    """End the command with an error message."""
    import pyllama
    from adapter.models.embedded_model import EmbeddedModelError, model_dir

    try:
        yield
    except ModelNotFoundError as error:
        is_name = error.path.parent == model_dir()
        fail(f"{error}; pyllama models lists those that there are" if is_name else str(error))
    except (LlamaCppError, pyllama.LlamaError, EmbeddedModelError, OSError) as error:
        (refuse if is_misuse(error) else fail)(in_words(error))


def in_words(error: BaseException) -> str:
    """What to tell the user of a command."""
    cause = error.__cause__
    if isinstance(cause, LlamaCppError) and not isinstance(error, LlamaCppError):
        return in_words(cause)  # lm15 adds advice of its own, for other providers
    if isinstance(error, InvalidModelNameError):
        return (
            f"{error.name!r} {error.reason}; give a name that pyllama models lists, the path of a "
            ".gguf file, or owner/repo:Q4_K_M of a hub"
        )
    if isinstance(error, InvalidParameterError) and error.name in _OPTIONS:
        allowed = error.allowed.removesuffix(", or None")
        return f"{_OPTIONS[error.name]} {error.value} is not allowed; it must be {allowed}"
    if isinstance(error, TextTooLongError):
        number = error.argument.removeprefix("texts[").removesuffix("]")
        length = counted(error.actual, "token")
        return (
            f"text {int(number) + 1} has {length} and the context holds {error.max}; shorten it, "
            "or give a larger --context if the model takes one"
        )
    if isinstance(error, ContextTooLongError):
        included = f"of at least {error.answer} tokens included" if error.answer > 1 else "included"
        return (
            f"the prompt has {counted(error.actual, 'token')} and the context holds {error.max}, "
            f"the answer {included}; shorten the prompt, or give a larger --context"
        )
    return reason_of(error) if isinstance(error, OSError) else str(error)


def is_misuse(error: BaseException) -> bool:
    """Whether an option or argument is to blame that no machine takes."""
    return isinstance(error, (InvalidParameterError, InvalidModelNameError))
