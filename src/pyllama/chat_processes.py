"""A chat template in as many processes as its callers keep busy."""

from __future__ import annotations

import itertools
import threading
import time

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
        self._turns = itertools.count()
        self._most = min(MAX_PROCESSES, max(1, cpu_math_cores() // CORES_PER_PROCESS))
        self._starting = threading.Lock()
        self.description = self._processes[0].description

    def call(self, function: str, inputs: str) -> str:
        """`ChatProcess.call` in one that is free, or else in each in turn."""
        processes = self._processes
        free = next((process for process in processes if not process.is_busy), None)
        if free is not None:
            return free.call(function, inputs)
        begin = time.monotonic()
        text = processes[next(self._turns) % len(processes)].call(function, inputs)
        if time.monotonic() - begin > WORTH_A_PROCESS:
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
