"""What pyllama raises, as this package's own errors; and what is noted of failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pyllama
from adapter.errors import (
    BackendError,
    InferenceError,
    LlamaCppError,
    TokenizationError,
    TransientError,
)


def translation(error: BaseException) -> BaseException:
    """An error of pyllama as this package's own; any other as it is."""
    kind: type[Exception]
    if isinstance(error, pyllama.TokenizationError):
        kind = TokenizationError
    elif isinstance(error, pyllama.NativeMemoryError):
        kind = TransientError
    elif isinstance(error, (pyllama.ContextError, pyllama.BackendError)):
        kind = BackendError
    elif isinstance(error, pyllama.LlamaError):
        kind = InferenceError
    else:
        return error
    own = kind(str(error))
    own.__cause__ = error
    return own


def for_one_caller(error: BaseException) -> BaseException:
    """This package's error as an object of its own, for a caller to raise.

    Several callers may be given one error. Each raises it in its own thread, where its traceback
    would come to hold the frames, and with them the prompts, of all of them.
    """
    if not isinstance(error, LlamaCppError):
        return error
    own = type(error).__new__(type(error))  # its __init__ has been run once, with other arguments
    own.args = error.args
    own.__dict__.update(error.__dict__)
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


@contextmanager
def translated() -> Iterator[None]:
    """Raise what pyllama raises as this package's own errors."""
    try:
        yield
    except Exception as error:
        own = translation(error)
        if own is error:
            raise
        raise own from error


def insist(call: Callable[[], object]) -> None:
    """Call until there is memory for it: what takes a few bytes, and must not be left out."""
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
    """Log, if there is memory for that, on a thread that must not end over a line of a log."""
    with suppress(Exception):
        logger.log(level, message, *args, exc_info=exc_info)
