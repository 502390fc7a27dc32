"""A chat template in as many processes as its callers keep busy."""

from __future__ import annotations

import threading
import time
from operator import attrgetter

from pyllama.chat_process import ChatProcess
from pyllama.device import cpu_math_cores
from pyllama.errors import ChatProcessError, ChatTemplateError

# A call takes a millisecond. One that takes longer because others came first is worth a process.
WORTH_A_PROCESS = 0.005  # seconds
CORES_PER_PROCESS = 4
MAX_PROCESSES = 4


class ChatProcesses:
    """One template in a `ChatProcess`, and in up to four when threads wait for each other.

    There is at most one process for each four cores. None is started before a call had to wait, and
    all of them end with this object.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self._arguments = (source, bos, eos)
        self._processes = [ChatProcess(*self._arguments)]
        self._most = min(MAX_PROCESSES, max(1, cpu_math_cores() // CORES_PER_PROCESS))
        self._starting = threading.Lock()
        self.description = self._processes[0].description

    def call(self, function: str, inputs: str) -> str:
        """`ChatProcess.call` in the one that the fewest threads ask."""
        process = min(self._processes, key=attrgetter("n_asking"))
        waits = process.n_asking > 0
        begin = time.monotonic()
        text = process.call(function, inputs)
        if waits and time.monotonic() - begin > WORTH_A_PROCESS:
            self._start_another()
        return text

    def _start_another(self) -> None:
        """Start one more, unless there are enough, or another thread is doing so."""
        if len(self._processes) >= self._most or not self._starting.acquire(blocking=False):
            return
        try:
            self._processes.append(ChatProcess(*self._arguments))
        except (ChatTemplateError, ChatProcessError, MemoryError):
            self._most = len(self._processes)  # those that run go on
        finally:
            self._starting.release()
