from __future__ import annotations

import codeop
import re
from pathlib import Path

import pytest
from dspy_programs import run_configured

from adapter import embedded_model

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "positive",
    "docs/tutorial.md": "Paris",
    "docs/dspy.md": "Cats sleep.",
    "docs/binding.md": "Paris",
    "docs/why_llama_cpp.md": "bytes become",
    "docs/howto/rag.md": "second floor",
    "docs/howto/web_service.md": "Paris",
    "docs/howto/gpus.md": "CPU True",
    "docs/howto/from_llama_cpp_python.md": "Paris",
    "docs/howto/from_ollama.md": "Paris",
}
"""Pages whose code runs from top to bottom, and something that they print."""

LONG_PAGES = {
    "docs/howto/typed_extraction.md": "product=",
    "docs/howto/agents.md": "{",
    "docs/howto/many_models.md": "no room for model",
    "docs/howto/reproducibility.md": "llamacpp/",
    "docs/probabilities.md": "{'mood'",
    "docs/limits.md": "usable",
    "docs/chat_templates.md": "<|im_start|>assistant",
}
"""The same for pages that would keep a real model busy for long: theirs has random weights."""


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, smollm2_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_page(page)
    assert PAGES[page] in capsys.readouterr().out


@pytest.mark.parametrize("page", LONG_PAGES)
def test_the_code_of_a_long_page_runs(page, write_tiny_model, monkeypatch, capsys):
    path = write_tiny_model(n_ctx_train=8192)
    monkeypatch.setattr(embedded_model, "fetch", lambda: path)
    run_page(page)
    assert LONG_PAGES[page] in capsys.readouterr().out


def test_every_how_to_page_is_run():
    pages = {str(path.relative_to(ROOT)) for path in ROOT.glob("docs/howto/*.md")}
    assert pages <= {*PAGES, *LONG_PAGES}


@pytest.mark.parametrize("page", [*PAGES, *LONG_PAGES])
def test_the_code_of_a_page_can_be_pasted_into_a_prompt(page):
    """Python's prompt ends a class or a loop at an empty line, and nowhere else."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        pending = []
        for line in [*block.splitlines(), ""]:
            pending.append(line)
            if codeop.compile_command("\n".join(pending)) is not None:
                pending = []
        assert not any(pending), pending


def run_page(page):
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
