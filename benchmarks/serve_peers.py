"""Those that serve.py compares, each as a dspy.LM and as a stream of text.

An engine that DSPy has no client for gets the shortest one that works: messages and settings in,
text and counts out.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import dspy
from dspy.adapters import Adapter
from dspy.lm15 import Config, Message, Request, Response, TextPart, Usage

N_CTX = 2 * 1024  # for each of the requests that are answered at once


class Options(NamedTuple):
    """What every peer is started with."""

    model: str
    threads: int
    parallel: int
    server: str = ""
    example: str = ""
    backend: str | None = None

    @property
    def n_ctx(self) -> int:
        """Tokens of all requests together."""
        return N_CTX * self.parallel


def placed(backend: str | None) -> tuple[str, ...]:
    """How llama.cpp's programs are told where to compute."""
    if backend is None:
        return ("-dev", "none")
    import pyllama  # which the peers' interpreter need not have

    (device, *_) = pyllama.backend_devices(backend)
    return ("-dev", device.name, "-ngl", "99", "-fa", "on")


Messages = list[dict[str, Any]]


class Peer(ABC):
    """One of those compared."""

    lm: dspy.LM

    adapter: Adapter | None = None
    """What it has its programs written by, where it has an own one."""

    @abstractmethod
    def stream(self, messages: Messages, max_tokens: int) -> Iterator[str]:
        """The pieces of an answer, as they come."""

    def peak_memory(self) -> int:
        """Bytes that were resident at most in processes other than this one."""
        return 0

    def cpu_seconds(self) -> float:
        """Processor time of processes other than this one."""
        return 0.0

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End what runs."""


class Pyllama(Peer):
    """pyllama's engine, and its adapter where that is asked for."""

    def __init__(
        self,
        options: Options,
        execution: str = "batched",
        *,
        own_adapter: bool = False,
        reproducible: bool = True,
    ) -> None:
        from adapter import HardwareManager, LlamaCppAdapter, LlamaCppConfig, ModelPool

        path = Path(options.model)
        self.pool = ModelPool(
            path.parent,
            context_length=2 * N_CTX,
            max_contexts=max(1, options.parallel // 2),
            hardware=HardwareManager(backend=options.backend or "cpu"),
            reproducible=reproducible,
        )
        self.loaded = loaded = self.pool.load_model(path.stem)
        config = LlamaCppConfig(
            loaded.name, seed=1, temperature=0, enable_cache=False, execution=execution
        )
        adapter = LlamaCppAdapter.from_loaded_model(loaded, config)
        self.lm = adapter.lm
        if own_adapter:
            self.adapter = adapter

    def stream(self, messages: Messages, max_tokens: int) -> Iterator[str]:
        """Through the engine's own events."""
        first, *others = messages
        system = first["content"] if first["role"] == "system" else None
        request = Request(
            self.lm.model,
            tuple(
                Message(message["role"], (TextPart(message["content"]),))
                for message in (messages if system is None else others)
            ),
            system=system,
            config=Config(max_tokens=max_tokens),
        )
        for event in self.lm.engine.stream(request):
            if event.type == "delta" and event.delta.type == "text":
                yield event.delta.text

    def close(self) -> None:
        """Unload the model."""
        self.pool.close()


class ServerProcess(Peer):
    """A server in a process of its own, as dspy.LM talks to it.

    Args:
        command: starts it on a port of 127.0.0.1, which its log names.
        listening: begins the line of its log that has its address.
    """

    def __init__(self, command: list[str], listening: str) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.address = self._listening(listening)
        self.lm = remote_lm(self.address)

    def _listening(self, listening: str) -> str:
        assert self.process.stderr is not None
        log = ""
        for line in self.process.stderr:
            log += line
            if listening in line:
                break
        else:
            raise SystemExit(f"the server did not start:\n{log}")
        # What it writes from now on is read and forgotten, or it would wait.
        threading.Thread(target=deque, args=(self.process.stderr, 0), daemon=True).start()
        (address,) = set(re.findall(r"http://[\d.]+:\d+", log))
        return str(address)

    def stream(self, messages: Messages, max_tokens: int) -> Iterator[str]:
        """Over HTTP."""
        return streamed(self.address, messages, max_tokens)

    def peak_memory(self) -> int:
        """The server's."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return 1024 * int(found[1])

    def cpu_seconds(self) -> float:
        """The server's."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the server, also one that hangs."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


TUNINGS = {
    "llama-server, -kvu": ("-kvu",),
    "llama-server, --cache-ram 0": ("--cache-ram", "0"),
    "llama-server, --cache-reuse 64": ("--cache-reuse", "64"),
    "llama-server, n-gram speculation": ("--spec-type", "ngram-simple"),
}
"""What its users set to have it faster. Its row for a task is the best of these and none."""


class LlamaServer(ServerProcess):
    """llama-server.

    Args:
        tuning: further options.
        sized: whether it is told how many requests to answer at once, and with how many threads.
    """

    def __init__(self, options: Options, *tuning: str, sized: bool = True) -> None:
        size = ("-t", str(options.threads), "-np", str(options.parallel), "-c", str(options.n_ctx))
        super().__init__(
            [
                *(options.server, "-m", options.model, "--no-webui", *placed(options.backend)),
                *(size if sized else ()),
                *tuning,
                *("--host", "127.0.0.1", "--port", "0"),
            ],
            "listening on http",
        )


class LlamaCppPythonServer(ServerProcess):
    """The server with continuous batching among llama-cpp-python's examples."""

    def __init__(self, options: Options) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        config = {
            "server": {"host": "127.0.0.1", "port": port},
            "model": {
                "alias": "local",
                "path": options.model,
                "n_ctx": options.n_ctx,
                "n_seq_max": options.parallel,
                "threads": options.threads,
                "threads_batch": options.threads,
                "kv_unified": True,
            },
        }
        with NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(config, file)
        super().__init__([sys.executable, options.example, "-C", file.name], "running on http")


class XLlamaCpp(Peer):
    """xllamacpp: llama.cpp's server inside the process."""

    def __init__(self, options: Options) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = options.model
        parameters.n_ctx = options.n_ctx
        parameters.n_parallel = options.parallel
        parameters.cpuparams.n_threads = options.threads
        parameters.cpuparams_batch.n_threads = options.threads
        self.server = xllamacpp.Server(parameters)
        self.lm = local_lm("xllamacpp", self.server.handle_chat_completions, nullcontext())

    def stream(self, messages: Messages, max_tokens: int) -> Iterator[str]:
        """Over HTTP, which it speaks too."""
        return streamed(self.server.listening_address, messages, max_tokens)


class LlamaCppPython(Peer):
    """llama-cpp-python behind a lock, for it has one context and no queue."""

    def __init__(self, options: Options) -> None:
        from llama_cpp import Llama

        llama = Llama(
            options.model, n_ctx=2 * N_CTX, n_threads=options.threads,
            n_threads_batch=options.threads, verbose=False,
        )  # fmt: skip
        self.lock = threading.Lock()
        self.create = llama.create_chat_completion
        self.lm = local_lm("llama-cpp-python", self._complete, self.lock)

    def _complete(self, body: dict[str, Any]) -> Any:
        asked = body.pop("response_format", None)
        if asked is not None:  # a form of its own
            schema = asked["json_schema"]["schema"]
            body["response_format"] = {"type": "json_object", "schema": schema}
        return self.create(**body)

    def stream(self, messages: Messages, max_tokens: int) -> Iterator[str]:
        """Through its iterator."""
        with self.lock:
            chunks = self.create(messages, max_tokens=max_tokens, temperature=0, stream=True)
            for chunk in chunks:
                yield chunk["choices"][0]["delta"].get("content") or ""


class LocalEngine:
    """A chat completion function in OpenAI's form, as an engine of DSPy."""

    supports_response_schema = True
    supported_params = frozenset({"max_tokens", "temperature", "response_format"})

    def __init__(self, complete: Callable[[dict[str, Any]], Any], turn: Any) -> None:
        self._complete, self._turn = complete, turn

    def complete(self, request: Request) -> Response:
        """Answer a request."""
        with self._turn:
            answer = self._complete(openai_body(request))
        choice, usage = answer["choices"][0], answer["usage"]
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(choice["message"]["content"] or ""),
            finish_reason="length" if choice["finish_reason"] == "length" else "stop",
            usage=Usage(usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]),
        )

    def close(self) -> None:
        """Nothing of its own to end."""


def openai_body(request: Request) -> dict[str, Any]:
    """A request as OpenAI's chat completions take it."""
    system = request.system
    messages = [{"role": "system", "content": system}] if isinstance(system, str) else []
    messages += [
        {"role": message.role, "content": "".join(part.text for part in message.parts)}
        for message in request.messages
    ]
    config = request.config
    body = {"messages": messages, "max_tokens": config.max_tokens, "temperature": 0.0}
    asked = config.response_format
    if asked is not None:
        schema = {"name": "answer", "schema": asked.get("schema", {"type": "object"})}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def local_lm(name: str, complete: Callable[[dict[str, Any]], Any], turn: Any) -> dspy.LM:
    """A dspy.LM of a chat completion function."""
    return dspy.LM(name, engine=LocalEngine(complete, turn), cache=False, temperature=0.0)


def remote_lm(address: str) -> dspy.LM:
    """A dspy.LM of a server, as DSPy's documentation has it."""
    return dspy.LM(
        "openai/local", api_base=f"{address}/v1", api_key="none", cache=False, temperature=0.0
    )


def streamed(address: str, messages: Messages, max_tokens: int) -> Iterator[str]:
    """The pieces of a server's answer."""
    body = {
        "model": "local", "messages": messages, "max_tokens": max_tokens, "temperature": 0,
        "stream": True,
    }  # fmt: skip
    asked = urllib.request.Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with closing(urllib.request.urlopen(asked)) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                yield choice["delta"].get("content") or ""


PEERS: dict[str, Callable[[Options], Peer]] = {
    "pyllama": Pyllama,
    "pyllama, isolated": lambda options: Pyllama(options, "isolated"),
    "pyllama, reproducible=False": lambda options: Pyllama(options, reproducible=False),
    "pyllama, LlamaCppAdapter": lambda options: Pyllama(options, own_adapter=True),
    "llama-server": LlamaServer,
    "llama-server, defaults": lambda options: LlamaServer(options, sized=False),
    **{
        name: lambda options, tuning=tuning: LlamaServer(options, *tuning)  # type: ignore[misc]
        for name, tuning in TUNINGS.items()
    },
    "xllamacpp": XLlamaCpp,
    "llama-cpp-python": LlamaCppPython,
    "llama-cpp-python, server example": LlamaCppPythonServer,
}
