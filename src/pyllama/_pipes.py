"""Messages to a child process and back, over its pipes, with a time limit.

If pipes can be polled, this needs no thread. Starting one while memory is short can hang for ever,
as CPython waits until the new thread reports that it runs. On Windows a thread ends the process
when the time is over.
"""

from __future__ import annotations

import math
import os
import select
import struct
import subprocess
import threading
import time
from io import RawIOBase
from typing import cast

MAX_BYTES = 1 << 28
"""The most bytes of a message: many times what the largest chats need."""

POLLS = hasattr(select, "poll")
"""Whether waiting for pipes can have a time limit."""


class AnswerError(Exception):
    """What a process sent is not a valid message."""


class NotWatched(Exception):
    """There is no thread that would end a process that takes too long."""


def make_ready(process: subprocess.Popen[bytes]) -> None:
    """Prepare the pipes of a process, which must be unbuffered (``bufsize=0``)."""
    if POLLS:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)


def exchange(
    process: subprocess.Popen[bytes], request: bytes | None, seconds: float
) -> bytes | None:
    """Send a request, if any, and return the answer; None if the process ended instead.

    An exception leaves the pipes in the middle of a message.

    Raises:
        TimeoutError: there is no answer after this many seconds.
        AnswerError: the answer is not a valid message, or has more than ``MAX_BYTES``.
        NotWatched: a thread is needed to watch the process, and none can be started.
        ValueError: the pipes were closed meanwhile.
    """
    if POLLS:
        return _Polled(time.monotonic() + seconds).exchange(process, request)
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError as error:
        raise NotWatched(f"it cannot be watched: {error}") from error
    try:
        answer = _Blocking().exchange(process, request)
    finally:
        timer.cancel()
    if answer is None and late.is_set():
        raise TimeoutError
    return answer


class _Blocking:
    """Sends and receives, without a time limit."""

    def exchange(self, process: subprocess.Popen[bytes], request: bytes | None) -> bytes | None:
        stdin, stdout = cast("RawIOBase", process.stdin), cast("RawIOBase", process.stdout)
        try:
            if request is not None:
                self._send(stdin, struct.pack("<I", len(request)) + request)
            return self._receive(stdout)
        except (BrokenPipeError, ConnectionResetError):
            return None  # it ended before it had read the request

    def _send(self, stream: RawIOBase, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            sent = stream.write(rest)
            if sent is None:
                self._wait(stream, reading=False)
            else:
                rest = rest[sent:]

    def _receive(self, stream: RawIOBase) -> bytes | None:
        """One message: its length in four bytes, and its content. Most come whole by a single read.

        Whatever lets go of the interpreter here may wait for it, and others for the process.
        """
        data = bytearray()  # it grows by what arrived, not by what was announced
        end = 4
        while len(data) < end:
            self._wait(stream, reading=True)
            part = stream.read(1 << 16)
            if part is None:  # woken without a reason
                continue
            if not part:
                return None
            data += part
            if end == 4 and len(data) >= 4:
                (length,) = struct.unpack_from("<I", data)
                if length > MAX_BYTES:
                    raise AnswerError(f"an answer of {length:,} bytes")
                end += length
        if len(data) > end:
            raise AnswerError("more than one answer")
        return bytes(memoryview(data)[4:])

    def _wait(self, stream: RawIOBase, *, reading: bool) -> None:
        """Return when there may be something to read, or room to write."""


class _Polled(_Blocking):
    """The same, up to a time of the monotonic clock."""

    def __init__(self, end: float) -> None:
        self._end = end

    def _wait(self, stream: RawIOBase, *, reading: bool) -> None:
        left = self._end - time.monotonic()
        poll = select.poll()
        poll.register(stream, select.POLLIN if reading else select.POLLOUT)
        if left <= 0 or not poll.poll(math.ceil(left * 1000)):
            raise TimeoutError
