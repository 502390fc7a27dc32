from __future__ import annotations

import re
from pathlib import Path

import pytest
from dspy_programs import run_configured

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


@pytest.mark.model
def test_the_tutorial_runs_from_top_to_bottom(smollm2_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = TUTORIAL.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python")
    namespace = {"__name__": "tutorial"}

    def run():
        for block in blocks:
            # Lines of the file, so that a failure points at the tutorial itself.
            offset = text[: block.start(1)].count("\n")
            code = compile("\n" * offset + block[1], TUTORIAL, "exec", dont_inherit=True)
            exec(code, namespace)

    run_configured(run)
    assert "Paris" in capsys.readouterr().out
    assert namespace["prediction"].answer
