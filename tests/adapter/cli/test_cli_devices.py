from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

import pyllama
from pyllama import backend_choice


def test_devices_lists_the_cpu(run):
    result = run("devices")
    assert result.exit_code == 0
    assert "CPU" in result.stdout
    assert "llama.cpp" in result.stdout
    assert "CPU is used: " in result.stdout
    assert "threads: " in result.stdout
    assert re.search(r"[0-9]+\.[0-9]{2} GB / [0-9]+\.[0-9]{2} GB", result.stdout)


def test_devices_says_what_was_built(run):
    result = run("devices", "--build")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert "yes" in rows["CPU"]
    assert {"CUDA", "VULKAN", "METAL", "OPENCL", "RPC"} <= set(rows)


@pytest.mark.parametrize("command", [("devices",), ("doctor", "--no-test")])
def test_a_backend_whose_loader_is_not_here_is_told(run, monkeypatch, command):
    build = [pyllama.BackendBuild(name, True, "") for name in ("CPU", "VULKAN", "CUDA", "RPC")]
    loaded = [SimpleNamespace(name=name) for name in ("CPU", "CUDA")]
    monkeypatch.setattr(backend_choice, "build_info", lambda: build)
    monkeypatch.setattr(backend_choice, "backends", lambda: loaded)
    told = [line for line in run(*command).stdout.splitlines() if "is not loaded" in line]
    (line,) = told
    assert line.strip().startswith("VULKAN is not loaded: its loader or driver")
    assert "libvulkan1" in line


def test_a_backend_that_is_not_here_is_one_line(run, monkeypatch):
    monkeypatch.setenv("PYLLAMA_BACKEND", "sycl")
    result = run("devices")
    assert result.exit_code == 1
    assert "Devices here:" in result.stderr
    assert "Traceback" not in result.output


def test_an_rpc_server_is_not_exposed_by_accident(run):
    result = run("rpc-server", "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 2
    assert "--expose" in result.stderr
    assert "no password" in result.stderr


@pytest.mark.skipif(pyllama.supports_rpc(), reason="this build has RPC")
def test_a_build_without_rpc_says_how_to_get_it(run):
    result = run("rpc-server", "--port", "0")
    assert result.exit_code == 1
    assert "GGML_RPC=ON" in result.stderr


@pytest.mark.skipif(not pyllama.supports_rpc(), reason="this build has no RPC")
def test_an_rpc_server_serves_until_ctrl_c():
    command = [
        sys.executable,
        "-c",
        "from adapter.cli.app import main; main()",
        "rpc-server",
        "--port",
        "0",
        "--threads",
        "1",
    ]
    # A shell that runs tests in the background has them ignore Ctrl-C.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as server:
        try:
            line = server.stdout.readline()
            endpoint = line.removeprefix("serving on ").strip()
            (device,) = pyllama.rpc_devices(endpoint)
            assert device.description == endpoint
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=20) == 0
        finally:
            server.kill()


def test_devices_as_json(run):
    result = run("devices", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    (cpu,) = [device for device in facts["devices"] if device["type"] == "cpu"]
    assert cpu["used"]
    assert cpu["reason"]
    assert cpu["memory_total"] >= cpu["memory_free"] >= 0
    assert facts["threads"] >= 1
    built = json.loads(run("devices", "--build", "--json").stdout)
    assert {entry["name"]: entry["built"] for entry in built}["CPU"]
