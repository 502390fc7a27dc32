"""Stands between llama.cpp and an RPC server, so that losing the server raises an exception.

llama.cpp's client ends the process when its server goes away: the assertion fails on one of its own
threads, where nothing can catch it. So the client connects to a relay in this process, which never
goes away. Once the server is lost, the relay answers with zeros instead. llama.cpp finishes what it
is doing and frees what it holds. The relay notifies the models that have a part there, which refuse
further use.

llama.cpp keeps some of those zeros for the rest of the process, under the relay's address. So a
relay that has lost a server is not used for another connection. See the protocol in ggml-rpc.cpp.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial

from pyllama import threads

logger = logging.getLogger("pyllama.rpc")

_HEADER = struct.Struct("<BQ")  # command, size of what follows
_SIZE = struct.Struct("<Q")
_CHUNK = 1 << 20
_ZEROS = memoryview(bytes(_CHUNK))
_HELLO, _GET_TENSOR = 14, 8

# The sizes of answers, by command; other commands have none. Values other than zero in substitute
# answers: an alignment, and that a tensor is there already and need not be sent.
_ANSWERS = {0: 16, 1: 8, 2: 8, 3: 8, 7: 1, 9: 1, 11: 16, 13: 8, _HELLO: 28, 15: 4}
_STAND_INS = {1: _SIZE.pack(128), 7: b"\1"}

_GREETING_SECONDS = 10.0
"""Seconds for a server to accept a connection, and as many to answer. A busy server does not."""

_SILENCE = 30
"""Seconds without a sign of life from the server's system after which it counts as lost."""

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds until the next try to accept a connection, after one, two and more failures."""

# Neither takes a descriptor.
_SELECTOR: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)

_SOCKETS, _DESCRIPTORS = "/proc/self/net/tcp", "/proc/self/fd"
"""Where Linux lists the owners of sockets."""


class Relay:
    """Listens on loopback for this process, and passes data on to ``host:port``.

    On Linux a connection of any other process is closed. Other systems do not report whose it is.
    There, another user of the machine who finds the port reaches what is reachable anyway: the
    server.

    Args:
        on_loss: called once for each connection whose server is lost, before llama.cpp receives
            anything that the server did not send.
    """

    def __init__(self, host: str, port: int, on_loss: Callable[[str], None]) -> None:
        self._target = host, port
        self._on_loss = on_loss
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = False
        #: Why a connection that llama.cpp had open was lost; None if none was.
        self.lost: str | None = None
        #: How often a connection was lost or could not be made, and the last reason.
        self.n_failures = 0
        self.failure = ""
        #: The address that llama.cpp connects to.
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        try:
            threads.start(self._accept, "rpc-relay")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening. Open connections stay."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread: on Linux closing does not
        self._listener.close()

    def _accept(self) -> None:
        n_failed = 0
        while not self._closed:
            if self._accept_one():
                n_failed = 0
            else:
                n_failed = min(n_failed + 1, len(_PAUSES) - 1)
                time.sleep(_PAUSES[n_failed])

    def _accept_one(self) -> bool:
        """Accept a connection and serve it on a thread. Returns whether that worked."""
        client = None
        try:
            client, _ = self._listener.accept()
            threads.start(partial(self._serve, client), "rpc-connection")
            return True
        except Exception as error:  # no descriptor, thread or memory
            with contextlib.suppress(Exception):
                if client is not None:
                    client.close()  # its greeting fails, which raises an exception
                if not self._closed:
                    logger.warning("cannot take a connection to %s:%s: %s", *self._target, error)
            return False

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if not _is_of_this_process(client):
                    logger.warning("closed a connection that another process made to the relay")
                    return
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.create_connection(self._target, _GREETING_SECONDS)
            except (OSError, MemoryError) as error:
                logger.info("no connection to %s:%s: %s", *self._target, error)
                self._fail(error)
                return  # the client's greeting fails, which raises an exception
            # After llama.cpp has closed its side, this is an OSError.
            with server, contextlib.suppress(OSError, MemoryError):
                _keep_alive(server)
                _Connection(client, server, self._lose).run()

    def _lose(self, connection: _Connection, error: OSError) -> None:
        reason = self._fail(error)
        if connection.greeted:
            self.lost = reason
            self._on_loss(reason)

    def _fail(self, error: BaseException) -> str:
        host, port = self._target
        self.failure = f"the RPC server at {host}:{port} was lost: {error}"
        self.n_failures += 1
        return self.failure


def _is_of_this_process(client: socket.socket) -> bool:
    """Whether this process has the other end of a connection. True if that is unknown."""
    if not os.path.exists(_SOCKETS):
        return True
    ends = [_as_in_proc(*client.getpeername()), _as_in_proc(*client.getsockname())]
    with open(_SOCKETS, encoding="ascii") as table:
        rows = [row.split() for row in table]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1:3] == ends}
    for descriptor in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if os.readlink(f"{_DESCRIPTORS}/{descriptor}") in sockets:
                return True
    return False


def _as_in_proc(host: str, port: int) -> str:
    address = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{address:08X}:{port:04X}"


class _Connection:
    """One client's requests and their answers, in order.

    It allocates its memory at the beginning. llama.cpp would end the process if the connection
    ended for want of it.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        lost: Callable[[_Connection, OSError], None],
    ) -> None:
        self._client, self._server, self._on_loss = client, server, lost
        self._is_lost = False
        #: Whether the server has answered.
        self.greeted = False
        self._buffer = memoryview(bytearray(_CHUNK))
        self._both = _SELECTOR()
        self._both.register(client, selectors.EVENT_READ)
        self._both.register(server, selectors.EVENT_READ)

    def run(self) -> None:
        while self._is_asked() and (header := self._receive(_HEADER.size)) is not None:
            command, size = _HEADER.unpack(header)
            size_of_answer = _ANSWERS.get(command, 0)
            self._to_server(header)
            left, end = size, b""
            while left:
                chunk = self._receive(min(left, _CHUNK))
                if chunk is None:
                    return
                left -= len(chunk)
                end = bytes(chunk[-8:])
                self._to_server(chunk)
            if command == _GET_TENSOR:
                (size_of_answer,) = _SIZE.unpack(end)
            if size_of_answer and not self._answer(command, size_of_answer):
                return
            if not self.greeted:
                self.greeted = True
                self._server.settimeout(None)  # a computation may take any time

    def _is_asked(self) -> bool:
        """Wait for the client. If the server sends something meanwhile, it is lost."""
        while self.greeted and not self._is_lost:
            ready = [key.fileobj for key, _ in self._both.select()]
            if self._client in ready:
                break
            try:
                unasked = self._server.recv(1)
                raise ConnectionError(
                    "it sent data that nobody asked for" if unasked else "it closed the connection"
                )
            except OSError as error:
                self._lose(error)
        return True

    def _receive(self, size: int) -> memoryview | None:
        """This many bytes of the client, at most _CHUNK; None once it has closed its side."""
        done = 0
        while done < size:
            received = self._client.recv_into(self._buffer[done:size])
            if not received:
                return None
            done += received
        return self._buffer[:size]

    def _to_server(self, data: memoryview) -> None:
        if not self._is_lost:
            try:
                self._server.sendall(data)
            except OSError as error:
                self._lose(error)

    def _answer(self, command: int, size: int) -> bool:
        """Pass on the answer, or a substitute for the rest of it."""
        sent, whole = 0, _SIZE.size + size
        while sent < whole and not self._is_lost:
            try:
                received = self._server.recv_into(self._buffer[: min(whole - sent, _CHUNK)])
                if not received:
                    raise ConnectionError("it closed the connection")
            except OSError as error:
                self._lose(error)
                break
            self._client.sendall(self._buffer[:received])
            sent += received
        if self._is_lost:
            if not self.greeted:
                return False
            answer = _SIZE.pack(size) + _STAND_INS.get(command, b"")
            self._client.sendall(answer[sent:])
            sent = max(sent, len(answer))
            while sent < whole:
                self._client.sendall(_ZEROS[: min(whole - sent, _CHUNK)])
                sent += min(whole - sent, _CHUNK)
        return True

    def _lose(self, error: OSError) -> None:
        self._is_lost = True
        self._on_loss(self, error)
        self._server.close()  # even if it lives, it only now accepts the next connection


def _keep_alive(server: socket.socket) -> None:
    """Detect a machine or network that is gone, however long a computation takes."""
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE * 1000)
