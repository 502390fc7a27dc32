from __future__ import annotations

import re
import signal
import subprocess
import sys
from functools import partial
from shutil import copyfile

import pytest
from typer.testing import CliRunner

import pyllama
from adapter.cli import app
from adapter.models import embedded_model
from adapter.models.pool import ModelPool


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, list(arguments))


@pytest.mark.model
def test_the_demo_answers_and_counts_what_it_says(run, smollm2_path):
    result = run("demo", "What is the capital of France?")
    assert result.exit_code == 0, result.output
    answer, _, counts = result.stdout.rpartition("\n\n")
    assert "Paris" in answer
    numbers = dict(re.findall(r"^(.+):\s+([\d.]+)$", counts, re.MULTILINE))
    assert float(numbers["tokens/s"]) > 0
    assert "device:" in counts
    with ModelPool(smollm2_path.parent) as pool:
        loaded = pool.load_model(smollm2_path.stem)
        assert 0 < int(numbers["completion tokens"]) <= 128
        assert int(numbers["prompt tokens"]) > len(
            loaded.tokenize("What is the capital of France?")
        )


def test_an_empty_question_is_refused(run):
    result = run("demo", " ")
    assert result.exit_code == 1
    assert "empty" in result.stderr


def test_a_model_that_cannot_be_fetched_is_one_line(run, monkeypatch):
    def fail():
        raise embedded_model.EmbeddedModelError("no network; do this next")

    monkeypatch.setattr(embedded_model, "fetch", fail)
    result = run("demo", "Hello?")
    assert result.exit_code == 1
    assert "do this next" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("option", ["--max-tokens", "--seed"])
def test_a_number_out_of_range_is_refused(run, option):
    assert run("demo", "Hello?", option, "-1").exit_code == 2


def test_devices_lists_the_cpu(run):
    result = run("devices")
    assert result.exit_code == 0
    assert "CPU" in result.stdout
    assert "llama.cpp" in result.stdout
    assert "CPU is used: " in result.stdout
    assert "threads: " in result.stdout


def test_models_lists_a_folder_and_tells_problems(run, tiny_model_path, tmp_path):
    copyfile(tiny_model_path, tmp_path / "tiny.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and no more")
    result = run("models", str(tmp_path))
    assert result.exit_code == 0
    [row] = [line for line in result.stdout.splitlines() if "tiny" in line]
    assert "llama" in row
    assert "109K" in row
    assert "bad: " in result.stderr


def test_models_of_no_folder_is_one_line(run, tmp_path):
    result = run("models", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.output


def test_devices_says_what_was_built(run):
    result = run("devices", "--build")
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if "│" in line}
    assert "yes" in rows["CPU"]
    assert {"CUDA", "VULKAN", "METAL", "OPENCL", "RPC"} <= set(rows)


def test_a_backend_that_is_not_here_is_one_line(run, monkeypatch):
    monkeypatch.setenv("PYLLAMA_BACKEND", "sycl")
    result = run("devices")
    assert result.exit_code == 1
    assert "Devices here:" in result.stderr
    assert "Traceback" not in result.output


def test_an_rpc_server_is_not_exposed_by_accident(run):
    result = run("rpc-server", "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 1
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
        "from adapter.cli import main; main()",
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
