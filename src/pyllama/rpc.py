"""Devices of other machines: ggml's RPC backend, its client and its server (ggml-rpc.h).

A build has it when it was asked for: ``pip install . -C cmake.define.GGML_RPC=ON``.

The protocol has no encryption and no password: whoever reaches a server's port controls its
process. Use it on a network that you trust, or over loopback.
"""

# socket, subprocess, queue and the relay with its socket are imported where they are used. They
# would take a fifth of the time of `import pyllama`, and few programs need them.

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING

from pyllama import threads
from pyllama._arguments import integer, real
from pyllama._callbacks import logger
from pyllama._half_made import or_half_made
from pyllama._object import NativeObject
from pyllama._rpc_child import LISTENS, TELLS_PORT
from pyllama._rpc_servers import Server, greet, replaced, servers
from pyllama.device import Device, backends, cpu_math_cores, devices, devices_of, supports_rpc
from pyllama.errors import BackendError
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from queue import SimpleQueue
    from subprocess import Popen


_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
_START += "from pyllama._rpc_child import serve; serve(*json.loads(sys.argv[2]))"

_adding = threading.Lock()


def rpc_devices(endpoint: str, *, timeout: float = 10.0) -> list[Device]:
    """The devices that an RPC server offers, for ``Model(devices=…)``.

    ``ggml_backend_rpc_add_server``. Only this function lists them: ``devices`` does not give them,
    and no model takes them unasked. A server talks to one client at a time, and a process stays
    connected for as long as it has a model there.

    When the server goes away, what is being computed there raises BackendError, and the models
    with a part there cannot be used any more: close them, and load them again once it is back, on
    the devices that a new call gives.

    Args:
        endpoint: ``"host:port"``, with a name or an IPv4 address.
        timeout: seconds to wait for the server's first answer.

    Raises:
        BackendError: no RPC server of this llama.cpp's protocol answers there in time, or this
            build has no RPC backend.
    """
    host, port = _host_and_port(endpoint)
    timeout = real("timeout", timeout, 1e-3, 1e6)
    _require_rpc()
    with _adding:
        server = servers.get(endpoint)
        if server is None or not server.in_use or server.lost:
            greet(endpoint, host, port, timeout)
        if server is not None and server.lost:
            replaced.append(server)
            server = None
        if server is None:
            server = servers[endpoint] = Server(endpoint, host, port)
        for old in [old for old in replaced if not old.in_use]:
            replaced.remove(old)
            old.close()
        found = devices_of(server.reg)
        return [dataclasses.replace(device, description=endpoint) for device in found]


class RpcServer(NativeObject["Popen[str]"]):
    """Offers devices of this machine to others (``ggml_backend_rpc_start_server``).

    It runs in a process of its own, which ends with ``close``, or with the process that made
    it, and whose output goes to the log. It has no protection: see the top of this module.

    Args:
        host: IPv4 address to listen on.
        port: 0 for one that is free; see ``endpoint``.
        devices: which to offer; None for all GPUs, or the CPU without one.
        n_threads: threads of a CPU that is offered; None for ``cpu_math_cores``.
        cache_dir: a folder in which it keeps large tensors, so that loading a model again sends
            less.

    Raises:
        BackendError: the server did not start, or this build has no RPC backend.
        OSError: the address is not this machine's, or in use.
    """

    _instead_of_copying = "Pass its endpoint on, for rpc_devices(), or start another RpcServer"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 50052,
        *,
        devices: Sequence[Device] | None = None,
        n_threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        import subprocess

        from pyllama._child_process import start

        if not isinstance(host, str):
            raise TypeError(f"host must be a str, got {host!r}")
        if not (host.isascii() and host.isprintable()):
            raise ValueError(f"host must be an IPv4 address, got {host!r}")
        port = integer("port", port, 0, 65535)
        threads = cpu_math_cores() if n_threads is None else n_threads
        threads = integer("n_threads", threads, 1, MAX_THREADS)
        names = _names(devices)
        _require_rpc()
        port = _checked_port(host, port)
        #: Where clients find it: ``"host:port"``.
        self.endpoint = f"{host}:{port}"
        cache = _cache_path(cache_dir)
        modules = [backend.path for backend in backends() if backend.path]
        settings = [self.endpoint, cache, threads, names, modules]
        process = start(
            [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._own(process, _end, at_exit=True)
        try:
            self._wait_until_it_listens(process)
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Block until the server's process ends by itself, or Ctrl-C."""
        self._open().pointer.wait()

    def _wait_until_it_listens(self, process: Popen[str]) -> None:
        import queue

        output: deque[str] = deque(maxlen=20)
        ports: SimpleQueue[int | None] = queue.SimpleQueue()
        threads.start(partial(_log_output, process, output, ports), "rpc-server-log")
        host, _, wanted = self.endpoint.partition(":")
        if TELLS_PORT:
            port = ports.get()
        else:
            port = _probed(process, "127.0.0.1" if host == "0.0.0.0" else host, int(wanted))
        if port is None:
            if not TELLS_PORT:
                ports.get()  # once all its output was read
            raise BackendError(
                f"the RPC server on {self.endpoint} did not start: {'; '.join(output)}"
            )
        self.endpoint = f"{host}:{port}"

    @or_half_made
    def __repr__(self) -> str:
        return f"<pyllama.RpcServer on {self.endpoint}{': closed' if self.closed else ''}>"


def _require_rpc() -> None:
    if not supports_rpc():
        raise BackendError(
            "this build has no RPC backend: install pyllama with "
            "pip install . -C cmake.define.GGML_RPC=ON"
        )


def _host_and_port(endpoint: str) -> tuple[str, int]:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a str, got {endpoint!r}")
    host, colon, port = endpoint.partition(":")
    if not (host and colon and host.isascii() and host.isprintable() and port.isdecimal()):
        raise ValueError(f"endpoint must be 'host:port', got {endpoint!r}")
    return host, integer("endpoint's port", int(port[:9]), 1, 65535)


def _cache_path(folder: str | os.PathLike[str] | None) -> str | None:
    if folder is None:
        return None
    path = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise TypeError(f"cache_dir must be a str or a path, got {folder!r}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"cache_dir must be the name of a folder, got {folder!r}") from None
    if "\0" in path:
        raise ValueError(f"cache_dir must not contain a null character, got {folder!r}")
    return os.path.abspath(path)


def _names(offered: Sequence[Device] | None) -> list[str]:
    """The names of the devices to offer."""
    present = devices()
    if offered is None:
        return [device.name for device in present if device.type in ("gpu", "igpu", "meta")] or [
            device.name for device in present if device.type == "cpu"
        ]
    if not isinstance(offered, Sequence) or not offered:
        raise TypeError(f"devices must be a sequence of pyllama.Device objects, got {offered!r}")
    for device in offered:
        if not isinstance(device, Device):
            raise TypeError(f"devices must hold pyllama.Device objects, got {device!r}")
        if device not in present:
            raise ValueError(f"devices must hold devices of this machine, got {device!r}")
    return [device.name for device in offered]


def _checked_port(host: str, port: int) -> int:
    """The port; 0 where the server itself finds a free one.

    Raises:
        OSError: nothing can listen there.
    """
    import socket

    try:
        address = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        raise ValueError(f"host must be an IPv4 address, got {host!r}") from None
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind((address, port))
        free: int = tried.getsockname()[1]
        return port if TELLS_PORT else free


def _probed(process: Popen[str], host: str, port: int) -> int | None:
    """The port once the server listens there; None if the process ended."""
    import socket

    while process.poll() is None:
        with suppress(OSError):
            socket.create_connection((host, port), timeout=1.0).close()
            return port
        time.sleep(0.02)
    return None


def _log_output(process: Popen[str], output: deque[str], ports: SimpleQueue[int | None]) -> None:
    """Log a server's output, and return its port once it listens; None if it ended."""
    assert process.stdout is not None
    try:
        with process.stdout:
            while _log_line(process.stdout, output, ports):
                pass
    finally:
        ports.put(None)


def _log_line(stream: IO[str], output: deque[str], ports: SimpleQueue[int | None]) -> bool:
    """Whether there is more. A lack of memory costs a line, and does not block the server."""
    try:
        line = stream.readline()
        port = line.partition(LISTENS)[2].strip()
        if port:
            ports.put(int(port))
        if line:
            output.append(line.strip())
            logger.info("RPC server: %s", line.rstrip())
        return bool(line)
    except MemoryError:
        time.sleep(0.01)
        return True


def _end(process: Popen[str]) -> None:
    """End the server, by closing its standard input."""
    import subprocess

    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
