from __future__ import annotations

import re
from pathlib import Path

import pytest
from dspy_programs import run_configured

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "positive",
    "docs/tutorial.md": "Paris",
    "docs/dspy.md": "Cats sleep.",
    "docs/binding.md": "Paris",
    "docs/why_llama_cpp.md": "bytes become",
    "docs/howto/typed_extraction.md": "12 chair",
    "docs/howto/rag.md": "second floor",
    "docs/howto/agents.md": "price",
    "docs/howto/web_service.md": "Paris",
    "docs/howto/many_models.md": "Paris",
    "docs/howto/gpus.md": "CPU True",
    "docs/howto/reproducibility.md": "SmolLM2",
    "docs/howto/from_llama_cpp_python.md": "Paris",
    "docs/howto/from_ollama.md": "Paris",
}
"""Pages whose code runs from top to bottom, and something that they print."""


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, smollm2_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    if "starlette" in text:
        pytest.importorskip("starlette")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python")
    namespace = {"__name__": "page"}

    def run():
        for block in blocks:
            # Lines of the file, so that a failure points at the page itself.
            offset = text[: block.start(1)].count("\n")
            code = compile("\n" * offset + block[1], ROOT / page, "exec", dont_inherit=True)
            exec(code, namespace)

    run_configured(run)
    assert PAGES[page] in capsys.readouterr().out
