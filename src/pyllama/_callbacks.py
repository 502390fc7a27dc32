"""Calls from C into Python: the log, load progress, and Ctrl-C during a long computation.

An exception raised in one of them is stored, and raised again after C has returned.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyllama._guard import to_str
from pyllama._native._binding import ffi, lib

if TYPE_CHECKING:
    from pyllama._native._binding import CData, Pointer

logger = logging.getLogger("pyllama.llama_cpp")

# ggml_log_level: debug, info, warn, error.
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}

# Parts of llama.cpp's warnings that a user can act on, with another argument or by converting the
# model again. All other warnings are logged at INFO.
ADVICE = (
    "possible training context overflow",
    "GENERATION QUALITY WILL BE DEGRADED",
    "CONSIDER REGENERATING THE MODEL",
    "please reconvert model",
    "Bad metadata override type",
    "unknown KV override type",
    "DRY sequence breaker",
    "failed to mlock",
    "failed to VirtualLock",
    "mlock not supported",
)

_raised_while_polling = threading.local()


def _keep_interrupt(_type: object, error: BaseException, _traceback: object) -> None:
    """Ctrl-C while a line is logged must stop the user's program, not only the line."""
    if not isinstance(error, Exception):
        _raised_while_polling.error = error
    elif logging.raiseExceptions:  # as logging treats the errors of its handlers
        traceback.print_exception(error)


@ffi.def_extern(onerror=_keep_interrupt)
def pyllama_on_log(level: int, line: Pointer[bytes]) -> None:
    # While the interpreter ends, a program without a logging configuration prints nothing to
    # stderr.
    if not threading.main_thread().is_alive() and not logger.hasHandlers():
        return
    text, known = to_str(line), _LEVELS.get(level, logging.INFO)
    if known == logging.WARNING and not any(advice in text for advice in ADVICE):
        known = logging.INFO
    logger.log(known, "%s", text)


class Progress:
    """Passes a call's progress to the user's callback, and its wish to stop back to C.

    Without a callback it still lets Ctrl-C stop the call.
    """

    def __init__(self, callback: Callable[[float], bool | None] | None) -> None:
        self._callback = callback if callback is not None else _go_on
        self.cancelled = False
        self.raised: BaseException | None = None

    def report(self, fraction: float) -> bool:
        """Call the callback. Returns whether loading continues."""
        try:
            self.cancelled = self._callback(fraction) is False
        except BaseException as error:
            self.raised = error
            self.cancelled = True
        return not self.cancelled

    def raise_if_stopped(self, cancelled: Exception) -> None:
        """Raise what stopped the call: an exception of a callback or signal handler, or
        `cancelled`.
        """
        raise_polled()
        if self.raised is not None:
            raise self.raised
        if self.cancelled:
            raise cancelled


def _go_on(_fraction: float) -> None:
    pass


def _keep_raised(_type: object, error: BaseException, _traceback: object) -> bool:
    _raised_while_polling.error = error
    return True


def _stop_for_raised(_type: object, error: BaseException, _traceback: object) -> bool:
    _raised_while_polling.error = error
    return False


# A signal handler may raise before the callback is even entered.
@ffi.def_extern(onerror=_stop_for_raised)
def pyllama_on_progress(fraction: float, user_data: CData) -> bool:
    progress: Progress = ffi.from_handle(user_data)
    return progress.report(fraction)


# Running any Python code is enough: it lets a pending signal handler run, and raise.
@ffi.def_extern(onerror=_keep_raised)
def pyllama_on_poll() -> bool:
    return False


def raise_polled() -> None:
    """Raise what a signal handler raised during the call that it stopped, if anything."""
    error = getattr(_raised_while_polling, "error", None)
    if error is not None:
        del _raised_while_polling.error
        raise error


lib.pyllama_install(
    ffi.addressof(lib, "pyllama_on_log"),
    ffi.addressof(lib, "pyllama_on_poll"),
)
