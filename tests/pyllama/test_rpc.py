"""Devices of other machines, over loopback. A build without the RPC backend says how to get it.

For all of it without such a build: GGML_BACKEND_PATH=…/libggml-rpc.so pytest, with that module
built from the same llama.cpp.
"""

from __future__ import annotations

import importlib
import io
import os
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest
from decoding import PROMPT, logits_of

import pyllama
from pyllama import Context, Model, RpcServer, _rpc_child, _rpc_servers, rpc, rpc_devices


@pytest.fixture
def listener():
    """A socket on loopback that takes connections, and its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made, f"127.0.0.1:{made.getsockname()[1]}"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as made:
        return made.getsockname()[1]


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [
        (None, TypeError),
        (b"127.0.0.1:1", TypeError),
        ("", ValueError),
        ("127.0.0.1", ValueError),
        (":50052", ValueError),
        ("127.0.0.1:", ValueError),
        ("127.0.0.1:0", ValueError),
        ("127.0.0.1:65536", ValueError),
        ("127.0.0.1:" + "9" * 5000, ValueError),
        ("127.0.0.1:5.0", ValueError),
        ("127.0.0.1:-1", ValueError),
        ("127.0.0.1:1\0", ValueError),
        ("a\0b:50052", ValueError),
        ("::1:50052", ValueError),
    ],
)
def test_a_wrong_endpoint(endpoint, error):
    with pytest.raises(error, match="endpoint"):
        rpc_devices(endpoint)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"host": 1}, TypeError, "host"),
        ({"port": -1}, ValueError, "port"),
        ({"port": 65536}, ValueError, "port"),
        ({"port": "1"}, TypeError, "port"),
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"devices": []}, TypeError, "devices"),
        ({"devices": ["CPU"]}, TypeError, "devices"),
        ({"devices": 3}, TypeError, "devices"),
        ({"devices": [pyllama.Device("X", "", "gpu", "Y", None)]}, ValueError, "devices"),
    ],
)
def test_wrong_arguments_of_a_server(options, error, name):
    with pytest.raises(error, match=name):
        RpcServer(**{"port": 0, **options})


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "1"])
def test_a_wrong_timeout(timeout):
    with pytest.raises((ValueError, TypeError), match="timeout"):
        rpc_devices("127.0.0.1:50052", timeout=timeout)


# What is checked before llama.cpp connects; it has no need of the backend.


def test_nobody_listens():
    port = free_port()
    with pytest.raises(pyllama.BackendError, match=f"no RPC server at 127.0.0.1:{port}"):
        _rpc_servers.greet(f"127.0.0.1:{port}", "127.0.0.1", port, 5.0)


def test_a_host_that_nothing_is_called():
    for host in ("no.such.host.invalid", "x" * 300):
        with pytest.raises(pyllama.BackendError, match="no RPC server"):
            _rpc_servers.greet(f"{host}:1", host, 1, 5.0)


def test_a_server_that_does_not_answer(listener):
    _, endpoint = listener
    with pytest.raises(pyllama.BackendError, match=r"no answer from .* in 0\.05 s"):
        _rpc_servers.greet(endpoint, *rpc._host_and_port(endpoint), 0.05)


@pytest.mark.parametrize("answer", [b"", b"abc", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_of_another_kind(listener, answer):
    server, endpoint = listener

    def answer_once():
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100)
            connection.sendall(answer)

    thread = threading.Thread(target=answer_once)
    thread.start()
    with pytest.raises(pyllama.BackendError, match="no RPC server"):
        _rpc_servers.greet(endpoint, *rpc._host_and_port(endpoint), 5.0)
    thread.join()


def test_a_server_that_cannot_find_out_its_port_ends(monkeypatch):
    def fail():
        raise PermissionError("no /proc")

    ended = []
    monkeypatch.setattr(_rpc_child, "_listening_port", fail)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(os, "write", lambda _, text: ended.append(text))
    _rpc_child._tell_port()
    assert b"cannot find out which port it listens on: no /proc" in ended[0]
    assert ended[1] == 1


def test_what_a_server_says_is_read_to_its_end_though_memory_is_short(monkeypatch):
    """Nobody else reads it: the server would wait, and whoever started it for its port."""
    read, write = os.pipe()
    process = SimpleNamespace(stdout=os.fdopen(read, encoding="utf-8"))
    with os.fdopen(write, "w", encoding="utf-8") as server:
        server.write(f"first\n{rpc.LISTENS}77\nlast\n")
    shortage = iter([MemoryError])
    output, ports = deque(), SimpleQueue()

    def info(*_args):
        for error in shortage:
            raise error

    monkeypatch.setattr(rpc.logger, "info", info)
    rpc._log_output(process, output, ports)
    assert list(output) == ["first", f"{rpc.LISTENS}77", "last"]
    assert [ports.get(), ports.get()] == [77, None]


def test_whoever_waits_for_a_server_hears_of_the_end_of_what_it_says(monkeypatch):
    process = SimpleNamespace(stdout=io.StringIO())
    ports = SimpleQueue()

    def fail(*_args):
        raise RuntimeError("mine")

    monkeypatch.setattr(rpc, "_log_line", fail)
    with pytest.raises(RuntimeError, match="mine"):
        rpc._log_output(process, deque(), ports)
    assert ports.get() is None


if pyllama.supports_rpc():

    @pytest.mark.parametrize("tells", [True, False])
    def test_a_server_on_a_system_without_proc(monkeypatch, tells):
        monkeypatch.setattr(rpc, "TELLS_PORT", tells)  # in this process alone
        with RpcServer(port=0, n_threads=1) as made:
            assert rpc_devices(made.endpoint)

    @pytest.fixture(scope="module")
    def server():
        with RpcServer(port=0, n_threads=1) as made:
            yield made

    def test_a_model_on_a_remote_device(server, tiny_model_path, tiny):
        (device,) = rpc_devices(server.endpoint)
        assert device.backend == "RPC"
        assert device.description == server.endpoint
        assert 0 < device.memory[0] <= device.memory[1]
        assert device.caps["async"]
        with Context(tiny, n_ctx=256, n_threads=1) as context:
            expected = logits_of(context, PROMPT)
        with (
            Model(tiny_model_path, devices=[device]) as model,
            Context(model, n_ctx=256, n_threads=1) as context,
        ):
            np.testing.assert_allclose(logits_of(context, PROMPT), expected, rtol=1e-4, atol=1e-4)
            # Not asked again while the server is busy with this process.
            assert rpc_devices(server.endpoint) == [device]

    def test_a_busy_server_is_not_waited_for(server, tiny_model_path):
        (device,) = rpc_devices(server.endpoint)
        with Model(tiny_model_path, devices=[device]):
            alias = server.endpoint.replace("127.0.0.1", "localhost")
            with pytest.raises(pyllama.BackendError, match="another client"):
                rpc_devices(alias, timeout=0.05)

    def test_remote_devices_are_in_no_list(server):
        (device,) = rpc_devices(server.endpoint)
        assert device not in pyllama.devices()
        with pytest.raises(ValueError, match="devices of this machine"):
            RpcServer(port=0, devices=[device])

    def test_chosen_devices_are_offered(caplog, tmp_path):
        (cpu,) = [device for device in pyllama.devices() if device.type == "cpu"]
        with RpcServer(port=0, devices=[cpu, cpu], cache_dir=tmp_path) as made:
            assert len(rpc_devices(made.endpoint)) == 2
        assert made.closed
        with pytest.raises(pyllama.BackendError, match="no RPC server"):
            rpc_devices(made.endpoint.replace("127.0.0.1", "localhost"))
        text = "\n".join(record.getMessage() for record in caplog.records)
        assert str(tmp_path) in text

    def test_a_server_that_was_closed_is_an_error():
        with RpcServer(port=0) as made:
            (device,) = rpc_devices(made.endpoint)
        made.close()
        assert "closed" in repr(made)
        with pytest.raises(pyllama.ServerLostError, match=f"{made.endpoint} was lost: .*refused"):
            device.memory  # noqa: B018

    @pytest.mark.parametrize("idle", [False, True])
    def test_a_server_that_dies_is_an_exception(tiny_model_path, idle):
        with RpcServer(port=0, n_threads=1) as made:
            (device,) = rpc_devices(made.endpoint)
            model = Model(tiny_model_path, devices=[device])
            context = Context(model, n_ctx=256, n_threads=1)
            if not idle:
                logits_of(context, PROMPT)
            process = made._open().pointer
            process.kill()
            process.wait()
            with pytest.raises(pyllama.ServerLostError, match=rf"{made.endpoint} was lost"):
                logits_of(context, PROMPT)
            assert model.lost
            with pytest.raises(pyllama.ServerLostError):
                Context(model, n_ctx=256)
            model.close()
            assert context.closed
        with pytest.raises(pyllama.BackendError, match="no RPC server"):
            rpc_devices(made.endpoint)
        port = int(made.endpoint.split(":")[1])
        with RpcServer(port=port, n_threads=1):
            (again,) = rpc_devices(made.endpoint)
            with (
                Model(tiny_model_path, devices=[again]) as model,
                Context(model, n_ctx=256, n_threads=1) as context,
            ):
                assert np.isfinite(logits_of(context, PROMPT)).all()

    def test_a_server_that_dies_while_nothing_is_asked_of_it(tiny_model_path):
        with RpcServer(port=0, n_threads=1) as made:
            (device,) = rpc_devices(made.endpoint)
            with (
                Model(tiny_model_path, devices=[device]) as model,
                Context(model, n_ctx=256, n_threads=1) as context,
            ):
                made.close()
                wait_until(lambda: model.lost)
                assert not context.usable

    def test_a_server_that_dies_while_a_model_is_loaded(tiny_model_path):
        with RpcServer(port=0, n_threads=1) as made:
            (device,) = rpc_devices(made.endpoint)
            process = made._open().pointer

            def kill(fraction):
                process.kill()
                process.wait()

            with pytest.raises(pyllama.ServerLostError, match=f"{made.endpoint} was lost"):
                Model(tiny_model_path, devices=[device], progress=kill)

    def test_a_lost_server_is_had_again_while_a_model_is_left_there(tiny_model_path):
        with RpcServer(port=0, n_threads=1) as made:
            port = int(made.endpoint.split(":")[1])
            (device,) = rpc_devices(made.endpoint)
            lost = Model(tiny_model_path, devices=[device])
            context = Context(lost, n_ctx=256, n_threads=1)
            process = made._open().pointer
            process.kill()
            process.wait()
            with pytest.raises(pyllama.ServerLostError):
                logits_of(context, PROMPT)
        with RpcServer(port=port, n_threads=1) as again:
            (new,) = rpc_devices(again.endpoint)
            assert new != device
            with (
                Model(tiny_model_path, devices=[new]) as model,
                Context(model, n_ctx=256, n_threads=1) as other,
            ):
                assert np.isfinite(logits_of(other, PROMPT)).all()
                assert lost.lost
                assert not model.lost
                lost.close()
                assert np.isfinite(logits_of(other, PROMPT)).all()
                assert rpc_devices(again.endpoint) == [new]

    def test_a_lost_server_has_no_memory_of_zero_bytes(tiny_model_path):
        with RpcServer(port=0, n_threads=1) as made:
            port = int(made.endpoint.split(":")[1])
            (device,) = rpc_devices(made.endpoint)
            model = Model(tiny_model_path, devices=[device])
            process = made._open().pointer
            process.kill()
            process.wait()
            asked = [
                lambda: device.memory,
                lambda: pyllama.memory_use(tiny_model_path, n_ctx=256, devices=[device]),
                lambda: pyllama.memory_fit(tiny_model_path, n_ctx=256, devices=[device]),
            ]
            for connected in (True, False):
                for ask in asked:
                    with pytest.raises(pyllama.ServerLostError, match=f"{made.endpoint} was lost"):
                        ask()
                assert model.lost
                if connected:
                    model.close()
        with RpcServer(port=port, n_threads=1) as again:
            (device,) = rpc_devices(again.endpoint)
            assert device.memory[0] > 0

    def test_a_lost_connection_that_outlives_its_model_is_not_used_again(tiny_model_path):
        with RpcServer(port=0, n_threads=1) as made:
            port = int(made.endpoint.split(":")[1])
            (device,) = rpc_devices(made.endpoint)
            model = Model(tiny_model_path, devices=[device])
            process = made._open().pointer
            process.kill()
            process.wait()
            with pytest.raises(pyllama.ServerLostError):
                device.memory  # noqa: B018
            within_a_call = model._handle
            model.close()
        with RpcServer(port=port, n_threads=1) as again:
            (new,) = rpc_devices(again.endpoint)
            assert new.memory[0] > 0
        assert within_a_call

    class Killing:
        """pyllama's C functions, of which one has a server die before it is called."""

        def __init__(self, module, function, server):
            self.real = module.lib
            self.function = function
            self.endpoint = server.endpoint
            self.process = server._open().pointer

        def __getattr__(self, name):
            if name == self.function and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
                wait_until(lambda: _rpc_servers.servers[self.endpoint].lost)
            return getattr(self.real, name)

    def wait_until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.005)

    def context_on(device, path, **layers):
        with Model(path, devices=[device], **layers) as model:
            Context(model, n_ctx=256, n_threads=1)

    @pytest.mark.parametrize(
        ("module", "function", "use"),
        [
            (
                "memory_fit",
                "guarded_device_memory",
                lambda device, path: pyllama.memory_use(path, n_ctx=256, devices=[device]),
            ),
            (
                "memory_fit",
                "guarded_fit_params",
                lambda device, path: pyllama.memory_fit(path, n_ctx=256, devices=[device]),
            ),
            (
                "model",
                "guarded_model_load_from_file",
                lambda device, path: Model(path, devices=[device]),
            ),
            ("context", "guarded_init_from_model", context_on),
            (
                "context",
                "guarded_init_from_model",
                lambda device, path: context_on(device, path, n_gpu_layers=0),
            ),
        ],
        ids=["memory_use", "memory_fit", "load", "context", "context of a model elsewhere"],
    )
    def test_a_server_that_dies_between_the_question_and_the_work(
        tiny_model_path, monkeypatch, module, function, use
    ):
        module = importlib.import_module(f"pyllama.{module}")
        with RpcServer(port=0, n_threads=1) as made:
            (device,) = rpc_devices(made.endpoint)
            with monkeypatch.context() as patched:
                patched.setattr(module, "lib", Killing(module, function, made))
                with pytest.raises(pyllama.ServerLostError, match=f"{made.endpoint} was lost"):
                    use(device, tiny_model_path)
            with pytest.raises(pyllama.ServerLostError, match=f"{made.endpoint} was lost"):
                use(device, tiny_model_path)
        with RpcServer(port=int(made.endpoint.split(":")[1]), n_threads=1) as again:
            (device,) = rpc_devices(again.endpoint)
            assert pyllama.memory_use(tiny_model_path, n_ctx=256, devices=[device]).devices
            context_on(device, tiny_model_path)

    def test_a_device_of_a_connection_that_was_given_up(tiny_model_path):
        with RpcServer(port=0, n_threads=1) as made:
            port = int(made.endpoint.split(":")[1])
            (old,) = rpc_devices(made.endpoint)
            lost = Model(tiny_model_path, devices=[old])
        with RpcServer(port=port, n_threads=1) as again:
            with pytest.raises(pyllama.ServerLostError):
                old.memory  # noqa: B018
            assert rpc_devices(again.endpoint) != [old]
            lost.close()
            (new,) = rpc_devices(again.endpoint)  # which closes the old connection
            for use in (
                lambda: old.memory,
                lambda: old.caps,
                lambda: pyllama.memory_use(tiny_model_path, n_ctx=256, devices=[old]),
                lambda: Model(tiny_model_path, devices=[old]),
            ):
                with pytest.raises(pyllama.ServerLostError, match=r"Take the devices .* gives"):
                    use()
            assert new.caps["async"]

    def test_a_part_on_a_server_that_is_no_device_of_the_model(server, tiny_model_path):
        (device,) = rpc_devices(server.endpoint)
        with pytest.raises(ValueError, match="outside devices"):
            Model(tiny_model_path, tensor_buft_overrides={"blk": device})

    def test_servers_that_start_at_once_have_ports_of_their_own():
        with ThreadPoolExecutor(4) as threads:
            made = list(threads.map(lambda _: RpcServer(port=0, n_threads=1), range(4)))
        try:
            assert len({server.endpoint for server in made}) == 4
            for server in made:
                assert rpc_devices(server.endpoint)
        finally:
            for server in made:
                server.close()

    def test_an_address_in_use(listener):
        _, endpoint = listener
        with pytest.raises(OSError, match="in use"):
            RpcServer(port=int(endpoint.split(":")[1]))

    def test_an_address_of_another_machine():
        with pytest.raises(OSError, match="assign"):
            RpcServer("192.0.2.1", port=0)
        with pytest.raises(ValueError, match="IPv4 address, got 'localhost'"):
            RpcServer("localhost", port=0)

    def test_a_server_that_cannot_start(monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            monkeypatch.setattr(rpc, "_checked_port", lambda *_: taken.getsockname()[1])
            with pytest.raises(pyllama.BackendError, match=r"did not start: .*cannot listen"):
                RpcServer()

else:

    def test_a_build_without_it_says_how_to_get_it():
        with pytest.raises(pyllama.BackendError, match="GGML_RPC=ON"):
            rpc_devices("127.0.0.1:50052")
        with pytest.raises(pyllama.BackendError, match="GGML_RPC=ON"):
            RpcServer(port=0)
