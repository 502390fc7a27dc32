from __future__ import annotations

import re

import pytest

from adapter.models import embedded_model
from adapter.models.pool import ModelPool


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
    assert result.exit_code == 2
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


def test_a_request_that_is_refused_is_one_line(run, smollm2_path):
    """DSPy raises errors of its own."""
    result = run("demo", "Tell a story.", "--max-tokens", "2")
    assert result.exit_code == 1
    assert "max_tokens=2 is not allowed" in result.stderr
    assert "Traceback" not in result.output
