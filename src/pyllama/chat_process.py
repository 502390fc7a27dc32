"""Chat templates in a process of their own: whatever they do, this process lives."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import BinaryIO, cast

from pyllama import _chat_worker
from pyllama._native import _binding
from pyllama.errors import ChatTemplateError

CALL_SECONDS = 10  # a call takes milliseconds, or a fifth of a second on a busy machine


class ChatProcess:
    """One template in a child process, which ends with it.

    A call that takes longer than 10 seconds, more than 1 GiB of memory (on Linux) or the process
    down is an error, and the next call starts another process. Threads take turns.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self._arguments = [source, bos, eos]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self.description = self._start()

    def call(self, function: str, inputs: str) -> str:
        """What a guarded call of the shim returns.

        :raises ChatTemplateError: it failed, or it took the process down.
        """
        if self._pid != os.getpid():
            # After a fork the process is the parent's, and a thread that is gone may hold the lock.
            self._lock, self._process = threading.Lock(), None
        with self._lock:
            if self._process is None:
                self._start()
            return self._ask(function, [inputs])

    def _start(self) -> str:
        cffi = importlib.util.find_spec("_cffi_backend")
        cffi_folder = os.path.dirname((cffi and cffi.origin) or "")
        process = subprocess.Popen(
            [sys.executable, "-IS", _chat_worker.__file__, _binding.__file__, cffi_folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._process, self._pid = process, os.getpid()
        self._end = weakref.finalize(self, _end, process, self._pid)
        return self._ask("", self._arguments)

    def _ask(self, function: str, arguments: list[str]) -> str:
        process = self._process
        assert process is not None
        began = time.monotonic()
        timer = threading.Timer(CALL_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        try:
            request = {"function": function, "arguments": arguments, "seconds": CALL_SECONDS}
            _chat_worker.write(cast("BinaryIO", process.stdin), request)
            answer = _chat_worker.read(cast("BinaryIO", process.stdout))
        except OSError:
            answer = None  # it ended before it had read the request
        except BaseException:
            self._stop()  # an answer that nobody reads would be taken for the next one
            raise
        finally:
            timer.cancel()
        if answer is None:
            how = self._stop()
            if time.monotonic() - began >= CALL_SECONDS:
                how = f"it took longer than {CALL_SECONDS} seconds"
            raise ChatTemplateError(f"the chat template ended its process: {how}")
        if "error" in answer:
            raise ChatTemplateError(f"the chat template failed: {answer['error']}")
        return cast("str", answer["result"])

    def _stop(self) -> str:
        """End the process, and say how it ended."""
        process, self._process = self._process, None
        self._end()
        assert process is not None
        code = process.returncode
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _end(process: subprocess.Popen[bytes], pid: int) -> None:
    if pid != os.getpid():
        return
    process.kill()
    process.communicate()
