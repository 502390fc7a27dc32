"""Chat templates in a process of their own. Whatever they do, this process survives."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pyllama import _chat_worker, _pipes
from pyllama._child_process import ChildProcess, start
from pyllama._native import _binding
from pyllama.errors import ChatProcessError, ChatTemplateAborted, ChatTemplateError

# A call takes milliseconds, or a fifth of a second on a busy machine.
CALL_SECONDS = 10  # of a clock
PROCESSOR_SECONDS = 5

# Variables that the interpreter may need to start. The template's process gets no others.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")

# Signals by which others end a process. A fault of the template causes other signals.
_FROM_OUTSIDE = frozenset(("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"))

_T = TypeVar("_T")


class ChatProcess:
    """One template in a child process, which ends with this object.

    A call that takes more than 5 seconds of processor time, more than 1 GiB of memory (on Linux) or
    ends the process is an error, and the next call starts another process. If something else ended
    it, or it has not answered after 10 seconds without having computed for 5, the call is repeated
    once in another process. After an exception such as Ctrl-C the process may be in the middle of
    something, so the next call starts another. Threads take turns.

    The process gives up what a template does not need: see ``_chat_worker.confine``. A template
    might take over its process through a fault of the engine. So everything that the process sends
    is checked: its length, its form, and its content by ``ChatTemplate``.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self._arguments = [source, bos, eos]
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None
        self._ready = False  # it has the template, and waits for a request
        self._pid = 0
        self.description = _twice(self._start)

    def call(self, function: str, inputs: str) -> str:
        """The result of a guarded call of the shim.

        Raises:
            ChatTemplateError: it failed.
            ChatTemplateAborted: it ended the process, or took too long.
            ChatProcessError: the process was ended from outside or stalled, twice, or cannot start.
        """
        if self._pid != os.getpid():
            # After a fork the process belongs to the parent, and a thread that is gone may hold the
            # lock.
            self._lock, self._process = threading.Lock(), None

        def ask() -> str:
            if self._process is not None and not self._ready:
                self._stop()
            if self._process is None:
                self._start()
            return self._ask(function, [inputs])

        with self._lock:
            return _twice(ask)

    def _start(self) -> str:
        cffi = importlib.util.find_spec("_cffi_backend")
        cffi_folder = os.path.dirname((cffi and cffi.origin) or "")
        try:
            process = start(
                [
                    *(sys.executable, "-IS", "-X", "utf8"),
                    *map(os.path.abspath, (_chat_worker.__file__, _binding.__file__, cffi_folder)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                cwd=os.path.abspath(os.sep),
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except (OSError, RuntimeError) as error:
            raise ChatProcessError(f"the chat template's process cannot start: {error}") from error
        self._end = weakref.finalize(self, _end, process, os.getpid())
        self._ready = False
        self._process, self._pid = process, os.getpid()
        _pipes.make_ready(process)
        answer, how = self._exchange(None)
        if answer is None:  # it has not seen the template yet
            raise ChatProcessError(f"the chat template's process cannot start: {how}")
        return self._ask("", self._arguments)

    def _ask(self, function: str, arguments: list[str]) -> str:
        request = _chat_worker.to_bytes(
            {"function": function, "arguments": arguments, "seconds": PROCESSOR_SECONDS}
        )
        if len(request) > _pipes.MAX_BYTES:
            raise ChatTemplateError(
                f"the chat takes {len(request):,} bytes as JSON; an isolated template gets at most "
                f"{_pipes.MAX_BYTES:,}"
            )
        answer, how = self._exchange(request)
        if answer is None:
            raise ChatTemplateAborted(f"the chat template ended its process: {how}")
        failed = "error" in answer
        text = answer.get("error" if failed else "result")
        if not isinstance(text, str):
            self._stop()
            raise ChatTemplateAborted("the chat template's process answered with something else")
        self._ready = bool(function) or not failed
        if failed:
            raise ChatTemplateError(f"the chat template failed: {text}")
        return text

    def _exchange(self, request: bytes | None) -> tuple[dict[str, Any] | None, str]:
        """Send a request, if any, and read the answer, or report how the process ended instead.

        After any exception the process is not used again: it may be in the middle of something.
        """
        process = self._process
        assert process is not None
        self._ready = False
        late = False
        answer: dict[str, Any] | None = None
        try:
            data = _pipes.exchange(process, request, CALL_SECONDS)
            answer = None if data is None else _parsed(data)
        except TimeoutError:
            late = True
        except _pipes.AnswerError as error:
            self._stop()
            raise ChatTemplateAborted(f"the chat template's process sent {error}") from None
        except BaseException as error:
            if process.stdin is None or not process.stdin.closed:
                self._stop()  # an unread answer would be taken for the next one
                if isinstance(
                    error, (OSError, _pipes.NotWatched)
                ):  # an error of the system, not of the template
                    message = f"the chat template's process cannot be asked: {error}"
                    raise ChatProcessError(message) from error
                raise
            if not isinstance(error, (ValueError, OSError)):
                raise
            # The exit handler has ended it.
        if answer is not None:
            return answer, ""
        code = self._stop()
        if late:
            return None, self._explain_delay()
        if code >= 0:
            return None, f"exit code {code}"
        name = _signal_name(-code)
        if name in _FROM_OUTSIDE:
            raise ChatProcessError(f"the chat template's process was ended from outside, by {name}")
        if name == "SIGXCPU":
            return None, f"it took more than {PROCESSOR_SECONDS} seconds of a processor"
        return None, f"signal {-code} ({name})"

    @staticmethod
    def _explain_delay() -> str:
        """Report that it took too long, or raise if that is not the template's fault."""
        if sys.platform == "win32":  # it is unknown how long it computed
            return f"it took longer than {CALL_SECONDS} seconds"
        raise ChatProcessError(
            f"the chat template's process did not answer within {CALL_SECONDS} seconds, and had no "
            f"{PROCESSOR_SECONDS} seconds of a processor in them: it was stopped, or the machine "
            "is overloaded"
        )

    def _stop(self) -> int:
        """End the process. Returns its exit code, or its signal as a negative number."""
        process = self._process
        assert process is not None
        # Not by the finalizer: the exit handler, or an exception in it, may have used that already.
        _end(process, self._pid)
        self._end.detach()
        self._process = None
        return process.wait()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _pipes.AnswerError(f"an answer that is no JSON: {error}") from None
    if not isinstance(answer, dict):
        raise _pipes.AnswerError("an answer that is no object")
    return cast("dict[str, Any]", answer)


def _twice(call: Callable[[], _T]) -> _T:
    """Repeat a call if something else ended the process."""
    try:
        return call()
    except ChatProcessError:
        return call()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(process: ChildProcess, pid: int) -> None:
    if pid != os.getpid():
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
