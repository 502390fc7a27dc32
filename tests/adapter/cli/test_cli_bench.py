from __future__ import annotations

import json

import pytest

from adapter.generation import processor_load
from adapter.models import hardware


def test_the_rates_of_a_model_are_measured(run, tiny_model_path):
    result = run("bench", tiny_model_path, "-p", 8, "-n", 4, "--parallel", 3, "-r", 2, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [rate["test"] for rate in facts["tokens_per_second"]] == ["pp8", "tg4", "tg4 x3"]
    assert all(rate["mean"] > 0 for rate in facts["tokens_per_second"])
    assert facts["size"] == tiny_model_path.stat().st_size
    assert facts["n_threads"] >= 1


def test_other_work_has_processors_of_its_own(run, tiny_model_path, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_threads", lambda: 2)
    monkeypatch.setattr(processor_load, "n_processors", lambda: 2)
    monkeypatch.setattr(processor_load.ProcessorLoad, "others", lambda *_, **__: 0.9)
    asked = ("bench", tiny_model_path, "-p", 4, "-n", 0, "-r", 1, "--json")
    result = run(*asked)
    assert json.loads(result.stdout)["n_threads"] == 1
    assert "-t 2 uses all" in result.stderr
    result = run(*asked, "-t", 2)
    assert json.loads(result.stdout)["n_threads"] == 2
    assert "uses all" not in result.stderr
    monkeypatch.setattr(processor_load.ProcessorLoad, "others", lambda *_, **__: None)
    assert json.loads(run(*asked).stdout)["n_threads"] == 2


@pytest.mark.parametrize(
    ("options", "tests"),
    [
        (("-p", 0, "-n", 2, "--parallel", 1), ["tg2"]),
        (("-p", 3, "-n", 0), ["pp3"]),
        (("-p", 2100, "-n", 0), ["pp2100"]),
    ],
)
def test_a_test_of_no_tokens_is_left_out(run, tiny_model_path, options, tests):
    result = run("bench", tiny_model_path, *options, "-r", 1, "-t", 1, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    words = [line.split()[0] for line in result.stdout.splitlines() if line.split()]
    assert [word for word in words if word.startswith(("pp", "tg"))] == tests


def test_nothing_to_measure_is_an_error(run, tiny_model_path, tmp_path):
    assert run("bench", tiny_model_path, "-p", 0, "-n", 0).exit_code == 2
    assert run("bench", tmp_path / "none.gguf").exit_code == 1
