"""What a shell completes the name of a model to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from adapter.cli import completion
from adapter.models import embedded_model

KEPT = ["lmstudio:owner/repo/m-Q4_0", "lmstudio:owner/repo/m-Q8_0"]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home with models of pyllama's own and of LM Studio."""
    for path in ("own/one.gguf", "own/other.gguf", "own/two.gguf"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for name in KEPT:
        path = tmp_path / ".lmstudio" / "models" / f"{name.partition(':')[2]}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")
    monkeypatch.setattr(completion, "_head", "")


@pytest.fixture
def complete(monkeypatch):
    """The words before the last one, and what bash gets for the last one."""

    def of(*words):
        monkeypatch.setenv("_PYLLAMA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        completion.rejoin_words()
        seen = os.environ["COMP_WORDS"].split("\n")
        assert os.environ["COMP_CWORD"] == str(len(seen) - 1)
        return seen[:-1], sorted(completion.completed(seen[-1]))

    return of


def test_a_shell_completes_the_names_of_models(complete):
    assert completion.completed("o") == ["one", "other"]
    assert complete("pyllama", "run", "lms") == (["pyllama", "run"], KEPT)


@pytest.mark.parametrize("rest", ["", "owner/", "owner/repo/m-Q"])
def test_bash_divides_a_name_at_its_colons_and_gets_the_rest(complete, rest):
    words = ("lmstudio", ":", rest) if rest else ("lmstudio", ":")
    rests = [name.partition(":")[2] for name in KEPT]
    assert complete("pyllama", "rm", "--yes", *words) == (["pyllama", "rm", "--yes"], rests)


def test_what_follows_a_name_with_colons_is_another_word(complete):
    before, _ = complete("pyllama", "run", "hf", ":", "a/b", ":", "Q4_0", "--sch")
    assert before == ["pyllama", "run", "hf:a/b:Q4_0"]


def test_words_that_bash_left_whole_stay_so(complete):
    assert complete("pyllama", "run", "lmstudio:own") == (["pyllama", "run"], KEPT)
    assert complete("pyllama", ":") == (["pyllama"], [])


def test_bash_gets_the_rest_of_a_name_by_the_command(tmp_path):
    program = "import sys; from adapter.cli import main; sys.argv[0] = 'pyllama'; main()"
    words = {"COMP_WORDS": "pyllama\nshow\nlmstudio\n:\nowner/r", "COMP_CWORD": "4"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **words, "_PYLLAMA_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert sorted(done.stdout.split()) == ["owner/repo/m-Q4_0", "owner/repo/m-Q8_0"]
