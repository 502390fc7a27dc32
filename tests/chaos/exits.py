"""Programs ended at random moments, in every way that there is.

What must hold: the exit status is the one that was asked for, no signal but the one that was sent,
no hang, and nothing on stderr that is not the program's own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import select
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import synthetic
from instruments import Asked, Ended, Failure, Told, command, environment, run_child, side_by_side

KINDS = (
    *("sync", "closing", "threaded", "executor", "tasks", "streams", "streams", "binding"),
    *("binding", "loading", "programs"),
)
#: How a program ends, and the status that it has then.
ENDINGS = {"end": 0, "sys.exit": 3, "exception": 1, "os._exit": 7, "SIGINT": -2, "SIGTERM": -15}
#: No more than this after the moment of its end, on a machine that does much else.
BOUND = 60
#: Of what is said about faults, by Python, C++ and C.
FAULTS = (
    *("WRONG", "Exception ignored", "Exception in thread", "never retrieved", "Fatal Python"),
    *(
        "terminate called",
        "ASSERT",
        "corrupt",
        "free()",
        "double free",
        "malloc",
        "was never awaited",
    ),
)


def run(asked: Asked) -> Told:
    for name, sizes in (("small", {}), ("slow", {"n_embd": 256, "n_layer": 6, "n_ff": 1024})):
        path = asked.folder / f"{name}.gguf"
        synthetic.write_model(path, n_ctx_train=2048, **sizes)
    programs = _Programs(asked)
    told = side_by_side(asked, programs.run)
    programs.close()
    told.notes = programs.notes
    return told


class _Programs:
    """Runs programs, most of them forked from servers that have imported what they need."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._servers: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        self.notes: Counter[str] = Counter()

    def run(self, numbers: range) -> list[Failure]:
        return [failure for number in numbers for failure in self._one(number)]

    def close(self) -> None:
        while not self._servers.empty():
            self._servers.get().close()

    def _one(self, number: int) -> Iterator[Failure]:
        draw = random.Random(f"{self._asked.seed}/{number}")
        kind, ending = draw.choice(KINDS), draw.choice(list(ENDINGS))
        if kind == "programs" and ending == "SIGINT":
            ending = "end"  # DSPy's own threads ask for a second Ctrl-C
        # Loading takes some 0.05 s, and the first answers as long.
        seconds = draw.choice([draw.uniform(0, 0.1), draw.uniform(0, 0.4), draw.uniform(0, 1.5)])
        arguments = [self._asked.folder, kind, ending, f"{seconds:.3f}", draw.randrange(10**6)]
        sent = signal.Signals[ending] if ending.startswith("SIG") else None
        forked = draw.random() < 0.9 and hasattr(os, "fork")
        ended = (
            self._forked(arguments, sent, seconds) if forked else _fresh(arguments, sent, seconds)
        )
        self.notes[f"{kind}, {ending}"] += 1
        if wrong := judged(ended, ending):
            detail = f"{' '.join(map(str, arguments[1:]))}\n{ended.err[-5000:]}"
            yield Failure(number, f"{kind}, {ending}: {wrong}", detail)

    def _forked(
        self, arguments: Sequence[object], sent: signal.Signals | None, seconds: float
    ) -> Ended:
        try:
            server = self._servers.get_nowait()
        except queue.Empty:
            server = _Server()
        with tempfile.TemporaryDirectory() as folder:
            ended = server.run(arguments, Path(folder), sent, seconds)
        self._servers.put(server)
        return ended


class _Server:
    """Programs that are forked, one at a time, by a process that has imported all modules."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command("exit_program.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def run(
        self, arguments: Sequence[object], folder: Path, sent: signal.Signals | None, seconds: float
    ) -> Ended:
        out, err = folder / "out", folder / "err"
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, [*arguments, out, err])) + "\n")
        self._process.stdin.flush()
        pid = int(self._line(None))
        while sent is not None and not (out.exists() and out.read_text() == "ready\n"):
            time.sleep(0.005)
        time.sleep(seconds)
        if sent is not None:
            os.kill(pid, sent)
        status = self._line(BOUND)
        if not status:
            os.kill(pid, signal.SIGABRT)  # it tells where its threads are
            if not self._line(10):
                os.kill(pid, signal.SIGKILL)
                self._line(None)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it left behind
        return Ended(int(status) if status else None, out.read_text(), err.read_text())

    def _line(self, seconds: float | None) -> str:
        """The next line that it tells, or none if it takes longer."""
        assert self._process.stdout is not None
        # Each line is read before the next is written, so that none is in a buffer.
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return ""
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate()


def _fresh(arguments: Sequence[object], sent: signal.Signals | None, seconds: float) -> Ended:
    def send(child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        if sent is not None and child.stdout.readline() == "ready\n":
            time.sleep(seconds)
            child.send_signal(sent)

    return run_child(command("exit_program.py", *arguments), BOUND, during=send)


def judged(ended: Ended, ending: str) -> str:
    if ended.status != ENDINGS[ending]:
        return ended.words
    lines = ended.err.splitlines()
    for line in lines:
        if any(fault in line for fault in FAULTS):
            return line[:200]
    # A traceback is what Python shows of an exception that ends the program. What llama.cpp says
    # of a computation that was stopped may come before and after.
    shown = any(line.startswith("Traceback") for line in lines)
    last = {"exception": "Planned", "SIGINT": "KeyboardInterrupt"}.get(ending)
    if shown and last is None:
        return "a traceback on stderr"
    if last is not None and not any(line.endswith(last) for line in lines):
        return f"no {last} on stderr"
    return ""
