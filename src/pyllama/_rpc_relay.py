"""What stands between llama.cpp and an RPC server, so that losing the server is an exception.

llama.cpp's client ends the process when its server goes away: the assertion fires on a thread of
its own, where nothing can catch it. So it is given a relay in this process, which never goes away.
Once the server is lost, the relay answers in its place with zeros, so that llama.cpp comes to the
end of what it is doing and frees what it holds; and it tells the models that have a part there,
which refuse to be used any more. See the protocol in ggml-rpc.cpp.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

_HEADER = struct.Struct("<BQ")  # command, size of what follows
_SIZE = struct.Struct("<Q")
_CHUNK = 1 << 20
_HELLO, _GET_TENSOR = 14, 8

# The sizes of answers, by command; other commands have none. What is no zero in the answers that
# stand in for a server's: an alignment, and that a tensor is there already and need not be sent.
_ANSWERS = {0: 16, 1: 8, 2: 8, 3: 8, 7: 1, 9: 1, 11: 16, 13: 8, _HELLO: 28, 15: 4}
_STAND_INS = {1: _SIZE.pack(128), 7: b"\1"}

_SILENCE = 30
"""Seconds without a sign of life from the server's system, after which it is given up."""


class Relay:
    """Listens on loopback for this process, and passes on to ``host:port``.

    :param on_loss: called once for each connection whose server is lost, before llama.cpp hears
        anything that the server did not say.
    """

    def __init__(self, host: str, port: int, on_loss: Callable[[str], None]) -> None:
        self._target = host, port
        self._on_loss = on_loss
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: Why the connection that llama.cpp has open leads nowhere; None while it leads somewhere.
        self.lost: str | None = None
        #: What llama.cpp connects to.
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="rpc-relay", daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                server = socket.create_connection(self._target, timeout=10.0)
            except OSError:
                return  # the client's greeting fails, which is an exception
            with server:
                _keep_alive(server)
                with contextlib.suppress(OSError):  # llama.cpp has closed its side
                    _Connection(client, server, self._lose).run()
                self.lost = None

    def _lose(self, reason: str) -> None:
        self.lost = f"the RPC server at {self._target[0]}:{self._target[1]} was lost: {reason}"
        self._on_loss(self.lost)


class _Connection:
    """One client's requests and their answers, in order."""

    def __init__(
        self, client: socket.socket, server: socket.socket, lost: Callable[[str], None]
    ) -> None:
        self._client, self._server, self._on_loss = client, server, lost
        self._is_lost = False
        self._greeted = False

    def run(self) -> None:
        while header := _receive(self._client, _HEADER.size):
            command, size = _HEADER.unpack(header)
            size_of_answer = _ANSWERS.get(command, 0)
            self._to_server(header)
            left, chunk = size, b""
            while left:
                chunk = self._read(min(left, _CHUNK))
                left -= len(chunk)
                self._to_server(chunk)
            if command == _GET_TENSOR:
                (size_of_answer,) = _SIZE.unpack(chunk[-8:])
            if size_of_answer and not self._answer(command, size_of_answer):
                return
            self._greeted = True

    def _read(self, size: int) -> bytes:
        data = _receive(self._client, size)
        if data is None:
            raise ConnectionError("llama.cpp closed the connection")
        return data

    def _to_server(self, data: bytes) -> None:
        if not self._is_lost:
            try:
                self._server.sendall(data)
            except OSError as error:
                self._lose(error)

    def _answer(self, command: int, size: int) -> bool:
        """Pass on the answer, or what stands in for the rest of it."""
        sent = 0
        answer = _SIZE.pack(size) + _STAND_INS.get(command, bytes(0 if size > _CHUNK else size))
        whole = _SIZE.size + size
        if not self._is_lost:
            try:
                while sent < whole:
                    data = self._server.recv(min(whole - sent, _CHUNK))
                    if not data:
                        raise ConnectionError("it closed the connection")
                    self._client.sendall(data)
                    sent += len(data)
            except OSError as error:
                self._lose(error)
        if self._is_lost:
            if not self._greeted:
                return False
            self._client.sendall(answer[sent:])
            sent = max(sent, len(answer))
            while sent < whole:
                self._client.sendall(bytes(min(whole - sent, _CHUNK)))
                sent += min(whole - sent, _CHUNK)
        return True

    def _lose(self, error: OSError) -> None:
        self._is_lost = True
        if self._greeted:
            self._on_loss(str(error))


def _receive(source: socket.socket, size: int) -> bytes | None:
    """Exactly so many bytes; None where the connection has ended."""
    parts = bytearray()
    while len(parts) < size:
        data = source.recv(size - len(parts))
        if not data:
            return None
        parts += data
    return bytes(parts)


def _keep_alive(server: socket.socket) -> None:
    """Find out about a machine or a network that is gone, however long a computation takes."""
    server.settimeout(None)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE * 1000)
