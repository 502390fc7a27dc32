"""Damaged files: how they are made, and how a child process shows what they lead to.

A test of another kind of file needs two things: a function that does with such a file what a user
would, importable by name, and an intact file to damage::

    def use_lora(path: Path, model: str) -> None: ...  # in tests/pyllama/using_files.py

    use = Use("using_files:use_lora", str(model_path))
    assert_harmless(use, mutations(intact, seed=1, count=1000))

tests/fuzz.py does that for every kind of file there is, as long as one likes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A file that a name says the damage of.
Named = tuple[str, bytes]

# Values that break what is computed from a length, a count, an offset or a type, by width.
EXTREMES = {
    1: [0, 1, 2, 127, 128, 255],
    2: [0, 1, 2, 3, 255, 1000, 2**15 - 1, 2**15, 2**16 - 1],
    4: [0, 1, 2, 3, 7, 255, 1000, 10**6, 10**9, 2**16, 2**31 - 1, 2**31, 2**32 - 255, 2**32 - 1],
    8: [0, 1, 3, 7, 255, 1000, 10**6, 10**9, 2**31, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1],
}


def truncations(data: bytes, places: Iterable[int]) -> Iterator[Named]:
    """The file cut at each place, and one byte before and after it."""
    for place in sorted({at for cut in places for at in (cut - 1, cut, cut + 1)}):
        if 0 <= place < len(data):
            yield f"cut at {place}", data[:place]


def mutations(data: bytes, *, seed: int, count: int, end: int | None = None) -> Iterator[Named]:
    """The file damaged at random, in one place or a few.

    :param end: damage only what comes before this offset; None for the whole file.
    """
    for number in range(count):
        random = np.random.default_rng([seed, number])
        damaged = bytearray(data)
        how = [
            _damage(damaged, random, min(end or len(data), len(damaged)))
            for _ in range(random.choice([1, 1, 1, 2, 5]))
        ]
        yield f"seed {seed}, number {number}: {', '.join(how)}", bytes(damaged)


def _damage(data: bytearray, random: np.random.Generator, end: int) -> str:
    kind = str(random.choice(["bit", "byte", "number", "number", "run", "drop", "copy"]))
    place = int(random.integers(max(end, 1)))
    if kind == "bit":
        data[place] ^= 1 << int(random.integers(8))
    elif kind == "byte":
        data[place] = int(random.integers(256))
    elif kind == "number":
        width = int(random.choice([4, 8]))
        value = EXTREMES[width][random.integers(len(EXTREMES[width]))]
        data[place : place + width] = value.to_bytes(width, "little")
        return f"{value:#x} of {width} bytes at {place}"
    else:
        run = bytes(data[place : place + int(random.integers(1, 64))])
        if kind == "run":
            data[place : place + len(run)] = random.bytes(len(run))
        elif kind == "drop":
            del data[place : place + len(run)]
        else:
            data[place:place] = run
    return f"{kind} at {place}"


class Use:
    """What a child process does with files.

    :param function: ``"module:function"``; the function takes a path and the arguments, and
        refuses the file by an exception of pyllama's.
    """

    def __init__(self, function: str, *arguments: str) -> None:
        self.command = [function, *arguments]


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged file.

    ``kind`` is ``"accepted"`` or ``"refused"`` where all is well; ``"greedy"`` if memory ran out,
    ``"asserted"`` if an assertion failed while computing, which ends a process that computes with
    several threads; ``"raised"`` for an exception that is not pyllama's; ``"died"``; ``"hung"``.
    """

    name: str
    kind: str
    detail: str


def assert_harmless(use: Use, files: Iterable[Named], **limits: float) -> Counter[str]:
    """Use files in a child process; how many were accepted and refused."""
    kinds: Counter[str] = Counter()
    harmful = []
    for outcome in run_in_child(use, files, **limits):
        kinds[outcome.kind] += 1
        if outcome.kind not in ("accepted", "refused"):
            harmful.append(outcome)
    assert not harmful, harmful[:5]
    return kinds


def run_in_child(
    use: Use, files: Iterable[Named], *, memory: int = 2 << 30, seconds: float = 60
) -> Iterator[Outcome]:
    """Use files, one after the other, in a child process; in a new one after each death.

    :param memory: bytes of address space for the child.
    :param seconds: for each file; more is a hang.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        child = None
        try:
            for name, data in files:
                if child is None:
                    child = _Child(use, memory)
                path.write_bytes(data)
                kind, detail = child.use(path, seconds)
                if kind in ("died", "hung"):
                    child.end()
                    child = None
                yield Outcome(name, kind, detail)
        finally:
            if child is not None:
                child.end()


class _Child:
    def __init__(self, use: Use, memory: int) -> None:
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115  (closed by end)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(memory), *use.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        if not self._answer(60):
            words = self._last_words()
            self.end()
            raise AssertionError(f"the child did not start: {words}")

    def use(self, path: Path, seconds: float) -> tuple[str, str]:
        self._log.truncate(0)
        try:
            self._process.stdin.write(f"{path}\n".encode())
            self._process.stdin.flush()
            line = self._answer(seconds)
        except BrokenPipeError:
            line = b""
        if line is None:
            self._process.send_signal(signal.SIGABRT)  # has the child tell where it is
            self._process.wait()
            return "hung", self._last_words()
        if not line:
            return "died", f"status {self._process.wait()}: {self._last_words()}"
        return tuple(json.loads(line))

    def _answer(self, seconds: float) -> bytes | None:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else None

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3000:].decode("utf-8", "replace")

    def end(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._log.close()


def _serve(memory: int, name: str, *arguments: str) -> None:
    import pyllama

    module, _, function = name.partition(":")
    call = getattr(importlib.import_module(module), function)
    faulthandler.enable()
    pyllama.load_backends()
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # it reserves terabytes of addresses
        _limit_memory(memory)
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        answers.write(b"ready\n")
        for line in sys.stdin.buffer:
            path = Path(os.fsdecode(line.rstrip(b"\n")))
            outcome = _outcome(lambda path=path: call(path, *arguments))
            answers.write(json.dumps(outcome).encode() + b"\n")


def _limit_memory(size: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _outcome(call: Callable[[], object]) -> tuple[str, str]:
    import pyllama

    try:
        call()
    except MemoryError as error:
        return "greedy", repr(error)
    except pyllama.NativeAssertionError as error:
        return ("asserted" if "/ggml-cpu/" in str(error) else "refused"), repr(error)
    except pyllama.LlamaError as error:
        # What llama.cpp says when an allocation failed.
        greedy = "alloc" in str(error) or "out of memory" in str(error)
        return ("greedy" if greedy else "refused"), repr(error)
    except Exception as error:
        return "raised", repr(error)
    return "accepted", ""


if __name__ == "__main__":
    _serve(int(sys.argv[1]), *sys.argv[2:])
