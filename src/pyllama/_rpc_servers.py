"""The RPC servers that this process is connected to, and what happens when one is lost."""

# socket and the relay are imported where they are used: few programs need them.

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pyllama._guard import raise_caught
from pyllama._handle import Handle
from pyllama._native._binding import ffi, lib
from pyllama._object import NativeObject
from pyllama.errors import (
    BackendError,
    LlamaError,
    ModelLoadCancelled,
    NativeError,
    ServerLostError,
)

if TYPE_CHECKING:
    from pyllama._native._binding import (
        Pointer,
        ggml_backend,
        ggml_backend_device,
        ggml_backend_reg,
    )

# The first message of every version of the protocol: its number, the size of what follows, and the
# abilities of the client's network. The answer begins with its own size.
_HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)
_HELLO_ANSWER = (28).to_bytes(8, "little")

#: By the endpoint that the user gave.
servers: dict[str, Server] = {}
#: Lost servers, until what is on them has been freed.
replaced: list[Server] = []


class OnServer(Protocol):
    """What is used of a ``Device`` to find its server."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def _pointer(self) -> Pointer[ggml_backend_device]: ...


class Server:
    """A server that devices were requested of, for the rest of the process: ggml forgets none."""

    def __init__(self, endpoint: str, host: str, port: int) -> None:
        self._endpoint = endpoint
        self._models: weakref.WeakSet[NativeObject[Any]] = weakref.WeakSet()
        from pyllama._rpc_relay import Relay

        self._relay = Relay(host, port, self._lose)
        try:
            #: Its entry in ggml's registry, which has its devices.
            self.reg = _add_server(self._relay.endpoint, endpoint)
        except BaseException:
            self._relay.close()
            raise
        count = lib.ggml_backend_reg_dev_count(self.reg)
        self._pointers = {lib.ggml_backend_reg_dev_get(self.reg, index) for index in range(count)}

    def has(self, device: OnServer) -> bool:
        return device._pointer in self._pointers

    def connect(self) -> Handle[Pointer[ggml_backend]]:
        """Keep llama.cpp connected as long as the handle lives."""
        backend = lib.guarded_dev_init(next(iter(self._pointers)))
        if backend == ffi.NULL:
            try:
                raise_caught(f"connecting to {self._endpoint}")
            except NativeError as error:
                raise BackendError(str(error)) from None
        return Handle(backend, lib.guarded_backend_free)

    @property
    def in_use(self) -> bool:
        """Whether a model has a part there, which occupies its one connection."""
        return any(not model.closed for model in self._models)

    @property
    def lost(self) -> bool:
        """Whether its connection was lost. It is not connected to again then."""
        return self._relay.lost is not None

    @property
    def n_failures(self) -> int:
        """How often it was lost, or could not be reached."""
        return self._relay.n_failures

    def failure(self, since: int) -> str | None:
        """Why it is lost, or why it failed after this many failures; None if it did not."""
        return self._relay.failure if self.lost or self.n_failures != since else None

    def close(self) -> None:
        """Accept no connection any more."""
        self._relay.close()

    def watch(self, model: NativeObject[Any]) -> None:
        self._models.add(model)
        if self._relay.lost is not None:  # and others have not closed what they have there
            model._lose(self._relay.lost)

    def _lose(self, reason: str) -> None:
        for model in list(self._models):
            model._lose(reason)


def watch(model: NativeObject[Any], devices: Sequence[OnServer]) -> bool:
    """Notify a model if a server with a part of it is lost. False if one is lost already."""
    found = _servers_of(devices)
    for server in found:
        server.watch(model)
    return bool(found)


@contextmanager
def require_answers(devices: Sequence[OnServer]) -> Iterator[list[Handle[Any]]]:
    """For queries of devices: a lost server's answers are zeros to llama.cpp.

    Gives the existing connections to their servers. llama.cpp itself would connect with locks held,
    which an assertion on a thread of its own would leave locked for ever.

    Raises:
        ServerLostError: one of their servers did not answer.
    """
    asked = [(server, server.n_failures) for server in _servers_of(devices)]
    connections: list[Handle[Any]] = []
    error: LlamaError | None = None
    try:
        connections.extend(server.connect() for server, _ in asked)
        yield connections
    except ModelLoadCancelled:
        raise
    except LlamaError as raised:
        error = raised
    finally:
        connections.clear()  # an exception's traceback would keep them alive
    reasons = [reason for server, since in asked if (reason := server.failure(since))]
    if reasons:
        raise ServerLostError(
            f"{reasons[0]}. Once it is back, rpc_devices() gives its devices again"
        ) from error
    if error is not None:
        raise error


def _servers_of(devices: Sequence[OnServer]) -> list[Server]:
    known = [*servers.values(), *replaced]
    found = [server for server in known if any(server.has(device) for device in devices)]
    for device in devices:
        if device.backend == "RPC" and not any(server.has(device) for server in found):
            raise ServerLostError(
                f"{device.name} was on a connection to {device.description} that was lost. Take "
                "the devices that a new call of rpc_devices() gives"
            )
    return found


def greet(endpoint: str, host: str, port: int, timeout: float) -> None:
    """Raise unless an RPC server answers. llama.cpp itself would wait for ever."""
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
