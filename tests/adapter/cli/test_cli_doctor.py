from __future__ import annotations

import json
from shutil import copyfile
from types import SimpleNamespace

import pytest

import pyllama
from adapter.cli import console, doctor
from adapter.models import embedded_model, loaded


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")
    return tmp_path / "own"


def test_doctor_says_what_is_here(run, own_folder):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for words in ("llama.cpp: ", "CPU (", "threads: ", str(own_folder)):
        assert words in result.stdout
    assert "left out: pyllama demo" in result.stdout
    facts = json.loads(run("doctor", "--no-test", "--json").stdout)
    assert facts["versions"][pyllama.distribution_name()] == pyllama.__version__
    assert "test" not in facts


def test_doctor_has_a_model_answer(run, own_folder, tiny_model_path):
    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / f"{embedded_model.MODEL_NAME}.gguf")
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    assert "answered alike 3 times" in json.loads(result.stdout)["test"]["result"]


def test_the_rate_does_not_count_what_only_the_first_calls_do(
    run, own_folder, tiny_model_path, monkeypatch
):
    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / f"{embedded_model.MODEL_NAME}.gguf")
    seconds = [0.0]
    lasts = iter([1000.0, 500.0, 0.5])
    generate = loaded._LeasedGenerator.generate

    def counted(self, request):
        seconds[0] += next(lasts)
        return generate(self, request)

    monkeypatch.setattr(loaded._LeasedGenerator, "generate", counted)
    clock = SimpleNamespace(perf_counter=lambda: seconds[0])
    monkeypatch.setattr(doctor, "time", clock)
    assert json.loads(run("doctor", "--json").stdout)["test"]["tokens/s"] >= 2


def test_what_is_broken_is_reported_beside_the_rest(run, own_folder, monkeypatch):
    def fail():
        raise RuntimeError("the driver is gone")

    monkeypatch.setitem(doctor._SECTIONS, "devices", fail)
    own_folder.mkdir()
    (own_folder / f"{embedded_model.MODEL_NAME}.gguf").write_bytes(b"GGUF and no more")
    result = run("doctor")
    assert result.exit_code == 1
    assert "the driver is gone" in result.stderr
    assert "test failed: ModelFileError" in result.stderr
    assert "versions:" in result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
            "GCC version:  gcc version 13.3.0\n",
            "580.159.04 (open kernel module)",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n", "470.57.02"),
        ("no  version\n", "no version"),
        ("", ""),
    ],
)
def test_the_driver_is_its_version(text, said):
    assert doctor._driver(text) == said


def test_what_each_backend_uses_is_a_line(monkeypatch):
    told = "CUDA : ARCHS = 900 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX = 1 | "
    monkeypatch.setattr(pyllama, "system_info", lambda: told)
    lines = doctor._backends()
    assert lines[-2:] == ["CUDA: ARCHS=900, USE_GRAPHS=1", "CPU: SSE3=1, AVX=1"]
    assert lines[0].startswith("built: ")


def test_a_terminal_breaks_no_word(run, own_folder, monkeypatch):
    monkeypatch.setattr(console.output, "_force_terminal", True)
    monkeypatch.setattr(console.output, "_width", 80)
    lines = run("doctor", "--no-test").stdout.splitlines()
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)
    monkeypatch.setattr(console.output, "_force_terminal", False)
    assert any(len(line) > 80 for line in run("doctor", "--no-test").stdout.splitlines())
