"""Faults that a pool has to live with: each is there for the length of a block."""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from pool_load import Load, answer

import adapter
import pyllama
from adapter import LlamaCppConfig, LlamaCppEngine, LlamaCppError, ModelPool

#: The kinds of error that say that this machine, and not the request, is to blame.
PROVIDERS = ("ProviderError", "ServerError", "RateLimitError")


@dataclass
class Scene:
    """What a fault may touch."""

    folder: Path
    pool: ModelPool
    load: Load
    draw: random.Random
    #: How long a fault goes on that repeats itself.
    seconds: float
    server: pyllama.RpcServer | None = None


Fault = Callable[[Scene], "contextlib.AbstractContextManager[None]"]
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {}


def fault(*allowed: str) -> Callable[[Callable[[Scene], Iterator[None]]], None]:
    """Register a fault, with the errors that requests may end with while it is there."""

    def register(function: Callable[[Scene], Iterator[None]]) -> None:
        FAULTS[function.__name__] = (contextlib.contextmanager(function), allowed)

    return register


@fault()
def none(scene: Scene) -> Iterator[None]:
    yield


@fault(*PROVIDERS)
def contexts_without_memory(scene: Scene) -> Iterator[None]:
    """A context cannot be made, never or now and then."""
    made, share = pyllama.Context.__init__, scene.draw.choice([0.3, 1.0])

    def failing(self: pyllama.Context, *arguments: object, **options: object) -> None:
        if scene.draw.random() < share:
            raise pyllama.NativeMemoryError("out of memory (planned)")
        made(self, *arguments, **options)

    pyllama.Context.__init__ = failing
    try:
        _evict(scene)
        yield
    finally:
        pyllama.Context.__init__ = made


@fault(*PROVIDERS)
def poisoned_contexts(scene: Scene) -> Iterator[None]:
    """An assertion fired in contexts that are at work."""

    def poison() -> None:
        for found in gc.get_objects():
            if type(found) is pyllama.Context and not found.closed and scene.draw.random() < 0.5:
                found._poison = "GGML_ASSERT(planned) failed"

    poison()
    yield
    # One that nobody used in the meantime fails the first request that it is given.
    with scene.load.paused():
        time.sleep(0.2)
        for name in ("small", "other"):
            with contextlib.suppress(Exception):
                answer(LlamaCppEngine(scene.pool.load_model(name), LlamaCppConfig(name)), 1)


@fault(*PROVIDERS, "ConfigurationError")
def short_memory(scene: Scene) -> Iterator[None]:
    """The process may have little more memory than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = scene.draw.choice([1, 2, 5, 12, 25, 60]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@fault(*PROVIDERS, "ConfigurationError")
def no_descriptors(scene: Scene) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + scene.draw.choice([0, 1, 2]), before[1]))
    try:
        _evict(scene)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@fault(*PROVIDERS)
def no_threads(scene: Scene) -> Iterator[None]:
    """Threads of this package cannot start."""
    start = threading.Thread.start

    def failing(self: threading.Thread) -> None:
        if self.name.startswith("llamacpp-") and "async" not in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = failing
    try:
        _evict(scene)
        yield
    finally:
        threading.Thread.start = start


_OURS = tuple(str(Path(module.__file__ or "").parent) for module in (adapter, pyllama))


@cache
def _with_lines(name: str) -> frozenset[int]:
    """The lines of with statements: on the way out of one, no error of memory's can come there."""
    tree = ast.parse(Path(name).read_text(encoding="utf-8"))
    return frozenset(
        line
        for node in ast.walk(tree)
        if isinstance(node, (ast.With, ast.AsyncWith))
        for line in range(node.lineno, node.body[0].lineno)
    )


class _Tracer:
    """Raises MemoryError at random lines of this project, in some threads."""

    def __init__(self) -> None:
        self.chance = 0.0
        #: What the threads' names begin with.
        self.threads = ""
        self.draw = random.Random(0)

    def call(self, frame: FrameType, _event: str, _argument: object) -> Any:
        if not self.chance or not frame.f_code.co_filename.startswith(_OURS):
            return None
        name = threading.current_thread().name
        return self.line if name.startswith(self.threads) and "async" not in name else None

    def line(self, frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line" and self.draw.random() < self.chance:
            if frame.f_lineno in _with_lines(frame.f_code.co_filename):
                return self.line
            where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            os.write(2, f"MemoryError at {where}\n".encode())
            raise MemoryError("planned")
        return self.line


#: Of every thread that is started once pool_child has set it.
tracer = _Tracer()


@fault(*PROVIDERS)
def errors_in_threads(scene: Scene) -> Iterator[None]:
    """A scheduler's thread runs out of memory, at any line."""
    decode = pyllama.Context.decode

    def traced(self: pyllama.Context, batch: pyllama.Batch) -> None:
        sys.settrace(tracer.call)  # an exception has ended it
        decode(self, batch)

    pyllama.Context.decode = traced
    with _raising("llamacpp-", scene, 1e-5, 1e-4, 1e-3):
        yield
    pyllama.Context.decode = decode


@fault(*PROVIDERS, "MemoryError")
def errors_in_requests(scene: Scene) -> Iterator[None]:
    """A caller's thread runs out of memory, at any line."""
    with _raising("load-", scene, 1e-3, 5e-3):
        yield


@contextlib.contextmanager
def _raising(threads: str, scene: Scene, *chances: float) -> Iterator[None]:
    tracer.threads, tracer.draw = threads, random.Random(scene.draw.random())
    tracer.chance = scene.draw.choice(chances)
    try:
        yield
    finally:
        tracer.chance = 0.0


@fault("ConfigurationError")
def files_gone(scene: Scene) -> Iterator[None]:
    path = scene.draw.choice(sorted(scene.folder.glob("[so]*.gguf")))
    hidden = path.with_suffix(".hidden")
    path.rename(hidden)
    try:
        _evict(scene)
        yield
    finally:
        hidden.rename(path)


@fault("ConfigurationError")
def files_replaced(scene: Scene) -> Iterator[None]:
    """Another model, or none, under a model's name; and then the model itself again."""
    first, second = scene.draw.sample(sorted(scene.folder.glob("[so]*.gguf")), 2)
    whole, other = first.read_bytes(), second.read_bytes()

    def replace(data: bytes) -> None:
        new = first.with_suffix(".new")
        new.write_bytes(data)
        new.replace(first)

    replace(scene.draw.choice([other, other[: len(other) // 2], b"", b"GGUF"]))
    try:
        _evict(scene)
        yield
    finally:
        replace(whole)
        _evict(scene)


@fault(*PROVIDERS)
def template_processes_killed(scene: Scene) -> Iterator[None]:
    end = time.monotonic() + scene.seconds / 2
    while time.monotonic() < end:
        for pid in children("_chat_worker"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, scene.draw.choice([signal.SIGKILL, signal.SIGTERM]))
        time.sleep(0.02)
    yield


@fault(*PROVIDERS, "ConfigurationError")
def server_killed(scene: Scene) -> Iterator[None]:
    """The RPC server that all models are on goes away, and comes back."""
    server = scene.server
    if server is None:
        yield
        return
    for pid in children(
        f":{server.endpoint.rpartition(':')[2]}", server.endpoint.rpartition(":")[2]
    ):
        os.kill(pid, signal.SIGKILL)
    yield
    port = int(server.endpoint.rpartition(":")[2])
    server.close()
    end = time.monotonic() + 10
    while True:
        try:
            scene.server = pyllama.RpcServer(port=port, n_threads=1)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@fault()
def full_disk(scene: Scene) -> Iterator[None]:
    """No room in the folder for prefixes; requests need not know."""
    filler = scene.folder / "prefixes" / "filler"
    if not os.path.ismount(filler.parent):
        yield
        return
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    yield
    filler.unlink(missing_ok=True)


@fault()
def unwritable_folder(scene: Scene) -> Iterator[None]:
    prefixes = scene.folder / "prefixes"
    if os.path.ismount(prefixes):
        subprocess.run(["mount", "-o", "remount,ro", str(prefixes)], check=False)
        yield
        subprocess.run(["mount", "-o", "remount,rw", str(prefixes)], check=True)
        return
    yield


@fault()
def damaged_prefixes(scene: Scene) -> Iterator[None]:
    for path in (scene.folder / "prefixes").rglob("*"):
        with contextlib.suppress(OSError):
            data = bytearray(path.read_bytes())
            for _ in range(3):
                data[scene.draw.randrange(len(data) or 1) :][:1] = b"x"
            cut = scene.draw.choice([len(data), len(data) // 2, 0])
            path.write_bytes(data[:cut])
    _evict(scene)
    yield


@fault()
def interrupts(scene: Scene) -> Iterator[None]:
    """Ctrl-C in the main thread, at any line of a load, an unload or a request."""

    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + scene.seconds
    while time.monotonic() < end:
        try:
            signal.setitimer(signal.ITIMER_REAL, scene.draw.uniform(0.0005, 0.08))
            name = scene.draw.choice(["small", "other"])
            loaded = scene.pool.load_model(name)
            answer(LlamaCppEngine(loaded, LlamaCppConfig(name)), 1)
            loaded.render([{"role": "user", "content": "hello"}])
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            pass
        finally:
            with contextlib.suppress(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    yield


def _evict(scene: Scene) -> None:
    """Have a model loaded anew by its next request: another one takes its place."""
    with scene.load.paused():
        for _ in range(20):
            try:
                scene.pool.load_model("third")
                return
            except (LlamaCppError, MemoryError):  # in use, or the fault is to blame
                time.sleep(0.02)
            except Exception as error:
                scene.load.outcomes.error(RuntimeError(f"load_model() raised {error!r}"))


def children(*words: str) -> list[int]:
    """The processes of this one, whose command lines hold one of the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            line = (path / "cmdline").read_bytes().decode(errors="replace")
            if parent == os.getpid() and any(word in line for word in words):
                found.append(int(path.name))
    return found
