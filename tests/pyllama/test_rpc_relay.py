"""The relay to an RPC server: it goes on after every error, and serves this process alone."""

from __future__ import annotations

import errno
import mmap
import socket
import subprocess
import sys
import threading

import pytest

from pyllama import _rpc_relay
from pyllama._rpc_relay import Relay

HELLO = bytes([14]) + (24).to_bytes(8, "little") + bytes(24)


@pytest.fixture
def server():
    """A server that answers each connection's first bytes with the same bytes."""

    def serve():
        while True:
            try:
                connection, _ = made.accept()
            except OSError:
                return
            with connection:
                assert connection.recv(len(HELLO))
                connection.sendall((28).to_bytes(8, "little") + bytes(28))
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as made:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield made.getsockname()
        made.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture
def relay(server):
    made = Relay(*server, lambda _: None)
    yield made
    made.close()


def greets(relay):
    """Whether a connection to the relay reaches the server."""
    host, port = relay.endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(HELLO)
            return len(connection.recv(100)) > 0
        except ConnectionError:
            return False


class Failing:
    """A listener that fails a few times, as a process without descriptors does."""

    def __init__(self, real, errors):
        self.real = real
        self.errors = errors

    def accept(self):
        if self.errors:
            raise self.errors.pop()
        return self.real.accept()

    def __getattr__(self, name):
        return getattr(self.real, name)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ECONNABORTED, "aborted"),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: repr(error),
)
def test_it_takes_connections_again_after_an_error(relay, error, caplog):
    relay._listener = Failing(relay._listener, [error] * 3)
    assert greets(relay)  # its thread was within accept()
    assert greets(relay)
    assert "cannot take a connection" in caplog.text


def no_thread(monkeypatch):
    def fail(*_args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)


def no_room(monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)


def no_beginning(monkeypatch):
    monkeypatch.setattr(threading.Thread, "run", lambda _: None)


SHORTAGES = {
    no_thread: (RuntimeError, "can't start"),
    no_room: (MemoryError, "no room for another thread"),
    no_beginning: (MemoryError, "before it began"),
}


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_thread_that_cannot_start_costs_one_connection(relay, shortage):
    with pytest.MonkeyPatch.context() as patch:
        shortage(patch)
        assert not greets(relay)
    assert greets(relay)


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_relay_that_gets_no_thread_listens_no_more(shortage, monkeypatch):
    made, real = [], socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda *args: made.append(real(*args)) or made[-1])
    kind, message = SHORTAGES[shortage]
    with pytest.MonkeyPatch.context() as patch:
        shortage(patch)
        with pytest.raises(kind, match=message):
            Relay("127.0.0.1", 1, lambda _: None)
    assert made[0].fileno() == -1


def test_a_server_that_is_not_there_ends_the_connection_alone(relay, monkeypatch):
    target, relay._target = relay._target, ("127.0.0.1", 1)
    assert not greets(relay)
    relay._target = target
    assert greets(relay)


def test_a_server_that_takes_a_connection_and_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(_rpc_relay, "_GREETING_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        made = Relay(*busy.getsockname(), lambda _: None)
        assert not greets(made)
        assert "timed out" in made.failure
        assert made.lost is None
        made.close()


def test_a_closed_relay_ends_its_thread(server):
    before = set(threading.enumerate())
    made = Relay(*server, lambda _: None)
    assert greets(made)
    made.close()
    with pytest.raises(OSError, match="refused"):
        greets(made)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


_STRANGER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    connection.sendall(bytes([14]) + (24).to_bytes(8, "little") + bytes(24))
    try:
        print(len(connection.recv(100)))
    except ConnectionError:
        print(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a connection is")
def test_a_connection_of_another_process_is_closed(relay):
    command = [sys.executable, "-c", _STRANGER, *relay.endpoint.split(":")]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, check=True)
    assert ended.stdout == "0\n"
    assert greets(relay)


def test_a_connection_of_unknown_origin_is_taken(relay, monkeypatch):
    monkeypatch.setattr(_rpc_relay, "_SOCKETS", "/nowhere")
    assert greets(relay)
