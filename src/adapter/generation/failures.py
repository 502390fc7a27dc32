"""Translates pyllama's errors into this package's, and logs failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pyllama
from adapter.errors import (
    InferenceError,
    LlamaCppError,
    PromptError,
    ResourceError,
    TransientError,
)


def translation(error: BaseException) -> BaseException:
    """Translate an error of pyllama into one of this package. Others are returned as they are."""
    kind: type[Exception]
    if isinstance(error, pyllama.TokenizationError):
        kind = PromptError
    elif isinstance(error, pyllama.NativeMemoryError):
        kind = TransientError
    elif isinstance(error, (pyllama.ContextError, pyllama.BackendError)):
        kind = ResourceError
    elif isinstance(error, pyllama.LlamaError):
        kind = InferenceError
    else:
        return error
    own = kind(str(error))
    own.__cause__ = error
    return own


def for_one_caller(error: BaseException) -> BaseException:
    """A copy of this package's error for one caller to raise.

    Several callers may get one error. If each raised the same object, its traceback would hold the
    frames, and with them the prompts, of all of them.
    """
    if not isinstance(error, LlamaCppError):
        return error
    own = type(error).__new__(type(error))  # not __init__: its arguments differ
    own.args = error.args
    own.__dict__.update(error.__dict__)
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


@contextmanager
def translated() -> Iterator[None]:
    """Raise pyllama's errors in a block as this package's own."""
    try:
        yield
    except Exception as error:
        own = translation(error)
        if own is error:
            raise
        raise own from error


def insist(call: Callable[[], object]) -> None:
    """Repeat a call until there is memory for it. For calls that need a few bytes and must not be
    left out.
    """
    while not _called(call):
        time.sleep(0.01)


def _called(call: Callable[[], object]) -> bool:
    try:
        call()
    except MemoryError:
        return False
    return True


def note(
    logger: logging.Logger,
    level: int,
    message: str,
    *args: object,
    exc_info: BaseException | None = None,
) -> None:
    """Log if there is memory for it. A missing log line must not end the thread."""
    with suppress(Exception):
        logger.log(level, message, *args, exc_info=exc_info)
