from __future__ import annotations

import json
from shutil import copyfile
from types import SimpleNamespace

import pytest

import pyllama
from adapter.cli import doctor
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
    assert "answered twice alike" in json.loads(result.stdout)["test"]["result"]


def test_the_rate_does_not_count_the_first_call(run, own_folder, tiny_model_path, monkeypatch):
    own_folder.mkdir()
    copyfile(tiny_model_path, own_folder / f"{embedded_model.MODEL_NAME}.gguf")
    seconds = [0.0]
    lasts = iter([1000.0, 0.5])
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
