"""Devices of other machines: ggml's RPC backend, its client and its server (ggml-rpc.h).

A build has it when it was asked for: ``pip install . -C cmake.define.GGML_RPC=ON``.

The protocol has no encryption and asks for no password: whoever reaches a server's port has its
process in hand. Use it on a network that you trust, or over loopback.
"""

# socket, subprocess, queue and the relay with its socket are imported where they are used: they
# would take a fifth of the time of `import pyllama`, and few programs come here.

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pyllama._arguments import integer, real
from pyllama._callbacks import logger
from pyllama._guard import check, raise_caught
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.device import (
    Device,
    backends,
    cpu_math_cores,
    devices,
    devices_of,
    load_backend,
    registered,
    supports_rpc,
)
from pyllama.errors import (
    BackendError,
    LlamaError,
    ModelLoadCancelled,
    NativeError,
    ServerLostError,
)
from pyllama.threadpool import MAX_THREADS

if TYPE_CHECKING:
    from queue import SimpleQueue
    from subprocess import Popen

    from pyllama._native._binding import Pointer, ggml_backend, ggml_backend_reg

# The first message of every version of the protocol: its number, the size of what follows, and
# what the client's network can do. The answer begins with its own size.
_HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)
_HELLO_ANSWER = (28).to_bytes(8, "little")

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import pyllama.rpc as rpc; "
_START += "rpc._serve(*json.loads(sys.argv[2]))"

# On Linux, with /proc, a server's process finds out which port it listens on, and says so: no other
# process can have taken that since it was chosen. Elsewhere it is chosen before the process starts.
_TELLS_PORT = sys.platform == "linux" and os.path.isdir("/proc/self/fd")
_LISTENS = "pyllama: listening on port "

_servers: dict[str, _Server] = {}
_replaced: list[_Server] = []
_adding = threading.Lock()


def rpc_devices(endpoint: str, *, timeout: float = 10.0) -> list[Device]:
    """The devices that an RPC server offers, for ``Model(devices=…)``.

    ``ggml_backend_rpc_add_server``. They are in no list but this: ``devices`` does not give
    them, and no model takes them unasked. A server talks to one client at a time, and a process
    stays connected for as long as it has a model there.

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
        server = _servers.get(endpoint)
        if server is None or not server.in_use or server.lost:
            _greet(endpoint, host, port, timeout)
        if server is not None and server.lost:
            _replaced.append(server)  # until what is there has been freed
            server = None
        if server is None:
            server = _servers[endpoint] = _Server(endpoint, host, port)
        for old in [old for old in _replaced if not old.in_use]:
            _replaced.remove(old)
            old.close()
        return server.devices()


class _Server:
    """A server that devices were asked of, for the rest of the process: ggml forgets none."""

    def __init__(self, endpoint: str, host: str, port: int) -> None:
        self._endpoint = endpoint
        self._models: weakref.WeakSet[NativeObject[Any]] = weakref.WeakSet()
        from pyllama._rpc_relay import Relay

        self._relay = Relay(host, port, self._lose)
        try:
            self._reg = _add_server(self._relay.endpoint, endpoint)
        except BaseException:
            self._relay.close()
            raise
        self.pointers = {device._pointer for device in devices_of(self._reg)}

    def devices(self) -> list[Device]:
        found = devices_of(self._reg)
        return [dataclasses.replace(device, description=self._endpoint) for device in found]

    def has(self, device: Device) -> bool:
        return device._pointer in self.pointers

    def connect(self) -> Handle[Pointer[ggml_backend]]:
        """Have llama.cpp be connected for as long as the handle lives."""
        backend = lib.guarded_dev_init(next(iter(self.pointers)))
        if backend == ffi.NULL:
            try:
                raise_caught(f"connecting to {self._endpoint}")
            except NativeError as error:
                raise BackendError(str(error)) from None
        return Handle(backend, lib.guarded_backend_free)

    @property
    def in_use(self) -> bool:
        """Whether a model has a part there, which keeps its one connection busy."""
        return any(not model.closed for model in self._models)

    @property
    def lost(self) -> bool:
        """Whether what it was connected to went away. It is not connected to again then."""
        return self._relay.lost is not None

    @property
    def n_failures(self) -> int:
        """How often it was lost, or could not be reached."""
        return self._relay.n_failures

    def failure(self, since: int) -> str | None:
        """Why it is lost, or failed after it had so many times; None if it did not."""
        return self._relay.failure if self.lost or self.n_failures != since else None

    def close(self) -> None:
        """Take no connection any more."""
        self._relay.close()

    def watch(self, model: NativeObject[Any]) -> None:
        self._models.add(model)
        if self._relay.lost is not None:  # and others have not closed what they have there
            model._lose(self._relay.lost)

    def _lose(self, reason: str) -> None:
        for model in list(self._models):
            model._lose(reason)


def watch(model: NativeObject[Any], devices: Sequence[Device]) -> bool:
    """Have a model told when a server is lost that it has a part on; False if it has none."""
    servers = _servers_of(devices)
    for server in servers:
        server.watch(model)
    return bool(servers)


@contextmanager
def require_answers(devices: Sequence[Device]) -> Iterator[list[Handle[Any]]]:
    """For what is asked of devices: a lost server's answers are zeros to llama.cpp.

    Gives the connections to their servers, which are there already: llama.cpp itself would connect
    with locks held that an assertion on a thread of its own leaves locked for ever.

    Raises:
        ServerLostError: a server of theirs did not answer.
    """
    servers = [(server, server.n_failures) for server in _servers_of(devices)]
    connections: list[Handle[Any]] = []
    error: LlamaError | None = None
    try:
        connections.extend(server.connect() for server, _ in servers)
        yield connections
    except ModelLoadCancelled:
        raise
    except LlamaError as raised:
        error = raised
    finally:
        connections.clear()  # an exception's traceback would keep them
    reasons = [reason for server, since in servers if (reason := server.failure(since))]
    if reasons:
        raise ServerLostError(
            f"{reasons[0]}. Once it is back, rpc_devices() gives its devices anew"
        ) from error
    if error is not None:
        raise error


def _servers_of(devices: Sequence[Device]) -> list[_Server]:
    known = [*_servers.values(), *_replaced]
    found = [server for server in known if any(server.has(device) for device in devices)]
    for device in devices:
        if device.backend == "RPC" and not any(server.has(device) for server in found):
            raise ServerLostError(
                f"{device.name} was on a connection to {device.description} that was lost. Take "
                "the devices that a new call of rpc_devices() gives"
            )
    return found


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
        reader = threading.Thread(target=_log_output, args=(process, output, ports), daemon=True)
        reader.start()
        host, _, wanted = self.endpoint.partition(":")
        if _TELLS_PORT:
            port = ports.get()
        else:
            port = _probed(process, "127.0.0.1" if host == "0.0.0.0" else host, int(wanted))
        if port is None:
            reader.join()
            raise BackendError(
                f"the RPC server on {self.endpoint} did not start: {'; '.join(output)}"
            )
        self.endpoint = f"{host}:{port}"

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


def _greet(endpoint: str, host: str, port: int, timeout: float) -> None:
    """Raise unless an RPC server answers. llama.cpp itself would wait without end."""
    import socket

    try:
        address = socket.gethostbyname(host), port  # IPv4, as llama.cpp resolves it
        with socket.create_connection(address, timeout) as connection:
            connection.sendall(_HELLO)
            with connection.makefile("rb") as stream:
                answer = stream.read(len(_HELLO_ANSWER))
    except TimeoutError:
        raise BackendError(
            f"no answer from {endpoint} in {timeout} s. Is another client connected to it?"
        ) from None
    except (OSError, UnicodeError) as error:
        raise BackendError(f"no RPC server at {endpoint}: {error}") from None
    if answer != _HELLO_ANSWER:
        raise BackendError(f"what answers at {endpoint} is no RPC server of this llama.cpp")


def _add_server(relay: str, endpoint: str) -> Pointer[ggml_backend_reg]:
    reg = lib.guarded_rpc_add_server(relay.encode())
    if reg == ffi.NULL:
        try:
            raise_caught(f"connecting to {endpoint}")
        except NativeError as error:
            raise BackendError(f"{error}: it offers no device to this version") from None
    return reg


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
        return port if _TELLS_PORT else free


def _probed(process: Popen[str], host: str, port: int) -> int | None:
    """The port once somebody listens there; None when the process ended."""
    import socket

    while process.poll() is None:
        with suppress(OSError):
            socket.create_connection((host, port), timeout=1.0).close()
            return port
        time.sleep(0.02)
    return None


def _log_output(process: Popen[str], output: deque[str], ports: SimpleQueue[int | None]) -> None:
    """Log what a server says, and tell its port once it listens; None when it ended."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            told = line.partition(_LISTENS)[2].strip()
            if told:
                ports.put(int(told))
            output.append(line.strip())
            logger.info("RPC server: %s", line.rstrip())
    ports.put(None)


def _end(process: Popen[str]) -> None:
    """End the server, by the end of its standard input."""
    import subprocess

    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(
    endpoint: str, cache_dir: str | None, n_threads: int, names: list[str], modules: list[str]
) -> None:
    """The server's own process: the backends of the process that made it, until that one ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _TELLS_PORT:
        threading.Thread(target=_tell_port, daemon=True).start()
    built_in = [backend.path for backend in registered()]
    for module in modules:
        if module not in built_in:
            load_backend(module)
    present = {device.name: device for device in devices()}
    pointers = ffi.new("ggml_backend_dev_t[]", [present[name]._pointer for name in names])
    cache = ffi.NULL if cache_dir is None else ffi.new("char[]", os.fsencode(cache_dir))
    check(
        lib.guarded_rpc_start_server(endpoint.encode(), cache, n_threads, len(names), pointers),
        f"serving {', '.join(names)}",
    )
    sys.exit(f"llama.cpp cannot listen on {endpoint}")


def _tell_port() -> None:
    """Say which port llama.cpp listens on. It may have chosen that itself, and does not say."""
    try:
        while (port := _listening_port()) is None:
            time.sleep(0.01)
    except OSError as error:  # nobody would hear of this server
        os.write(1, f"cannot find out which port it listens on: {error}\n".encode())
        os._exit(1)
    else:
        os.write(1, f"{_LISTENS}{port}\n".encode())


def _listening_port() -> int | None:
    """The port of a socket of this process that listens."""
    import socket

    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # no socket, or closed meanwhile
            found = socket.socket(fileno=descriptor)
            try:
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    port: int = found.getsockname()[1]
                    return port
            finally:
                found.detach()
    return None


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)
