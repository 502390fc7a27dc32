"""The programs of examples/ run as they stand.

The model has random weights: what it writes has the right form, and no sense.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import dspy
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTED = {
    "typed_extraction": r'(?s)\d{4}-\d\d-\d\d \{"product":".*"currency":"(EUR|USD)"\}\n$',
    "rag": r"(?s)^Where is the printer\? .*Are cats allowed\? ",
    "react_agent": r"(?s)^thought_0: .*\ntool_name_0: (price|stock|finish)\n.*\nanswer: -?\d+\n$",
    "batch_evaluation": r" % right, [\d.]+ requests/s\n\d+ of \d+ prompt tokens were shared",
}


@pytest.fixture(autouse=True)
def own_cache():
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    yield
    dspy.cache = before


@pytest.fixture
def model(write_tiny_model):
    return write_tiny_model(n_ctx_train=8192)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_runs(name, model, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](model)
    assert re.search(PRINTED[name], capsys.readouterr().out)


def test_the_web_service_answers_and_streams(model, monkeypatch):
    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    monkeypatch.setenv("PYLLAMA_MODEL", str(model))
    app = runpy.run_path(str(EXAMPLES / "web_service.py"))["app"]
    question = {"question": "What is the capital of France?"}
    with TestClient(app) as client:
        answer = client.get("/answer", params=question).json()["answer"]
        assert answer
        assert client.get("/stream", params=question).text == answer
        assert client.get("/answer").status_code == 400


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*PRINTED, "web_service"}
