from __future__ import annotations

import json

import pytest


def test_the_rates_of_a_model_are_measured(run, tiny_model_path):
    result = run("bench", tiny_model_path, "-p", 8, "-n", 4, "--parallel", 3, "-r", 2, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [rate["test"] for rate in facts["tokens_per_second"]] == ["pp8", "tg4", "tg4 x3"]
    assert all(rate["mean"] > 0 for rate in facts["tokens_per_second"])
    assert facts["size"] == tiny_model_path.stat().st_size
    assert facts["n_threads"] >= 1


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
