"""Wrong options and arguments of every command: exit code 2, and words that a user can look up."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import pyllama
from adapter.cli.app import app
from adapter.models import embedded_model, pool

MODEL, TEXT, FOLDER = "MODEL", "TEXT", "FOLDER"
HUGE = 10**20
LONG = "n" * 300  # no file system has such a name

MISUSES = [
    ("run", MODEL, "hello", "--schema", TEXT, "--grammar", TEXT),
    ("run", MODEL, " "),
    ("run", MODEL, "hello \udcff"),
    ("run", MODEL, "hello", "--system", "\udcff"),
    ("run", MODEL, "hello", "--max-tokens", 0),
    ("run", MODEL, "hello", "--max-tokens", "many"),
    ("run", MODEL, "hello", "--temperature", 3),
    ("run", MODEL, "hello", "--seed", -1),
    ("run", MODEL, "hello", "--seed", HUGE),
    ("run", MODEL, "hello", "--context", 0),
    ("run", MODEL, "hello", "--context", HUGE),
    ("run", MODEL, "hello", "--gpu-layers", -2),
    ("run", MODEL, "hello", "--gpu-layers", HUGE),
    ("run", "a//b", "hello"),
    ("run", "", "hello"),
    ("run", "owner/repo:", "hello"),
    ("run", "lmstudio:../x", "hello"),
    ("run",),
    ("chat", MODEL, "--context", HUGE),
    ("chat", MODEL, "--temperature", -1),
    ("chat", MODEL, "--system", "\udcff"),
    ("chat", "a//b"),
    ("embed", MODEL, "hello", "--pooling", "max"),
    ("embed", MODEL, "hello", "--pooling", "rank"),
    ("embed", MODEL, "hello", " "),
    ("embed", MODEL, "hello", "\udcff"),
    ("embed", MODEL, "hello", "--context", HUGE),
    ("embed", MODEL),
    ("demo", " "),
    ("demo", "hello \udcff"),
    ("demo", "hello", "--max-tokens", 0),
    ("demo", "hello", "--seed", HUGE),
    ("pull", ""),
    ("pull", "a/b/c"),
    ("pull", "owner/repo:"),
    ("pull", "nothing"),
    ("pull", "///"),
    ("pull", "~/none"),
    ("pull", TEXT),
    ("pull", FOLDER),
    ("pull", "./folder"),
    ("pull", "owner/repo", "--sha256", "0" * 64),
    ("pull", MODEL, "--sha256", "abc"),
    ("pull", "https://example.invalid/m.gguf", "--sha256", "z" * 64),
    ("pull", "https://example.invalid/m.bin"),
    ("pull", "https://[::1/m.gguf"),
    ("pull", "https:///m.gguf"),
    ("pull", "ftp://example.invalid/m.gguf"),
    ("show", "a//b"),
    ("show", "./folder"),
    ("show", "./text.txt"),
    ("show", "../none"),
    ("show", MODEL, "--template", "--metadata"),
    ("fit", MODEL, "--context", 0),
    ("fit", MODEL, "--context", HUGE),
    ("rm", "a//b"),
    ("convert", ""),
    ("convert", FOLDER, "--outtype", "q9"),
    ("convert", FOLDER, "--base", "owner/repo"),
    ("convert", FOLDER, "x.bin"),
    ("quantize", MODEL, "Q9"),
    ("quantize", MODEL, "NVFP4"),
    ("quantize", MODEL, "Q8_0", MODEL, "--force"),
    ("quantize", MODEL, "Q8_0", "x.bin"),
    ("quantize", MODEL, "Q8_0", TEXT),
    ("quantize", MODEL, "Q8_0", "-t", 0),
    ("quantize", MODEL),
    ("imatrix", MODEL, TEXT, "--context", 2),
    ("imatrix", MODEL, TEXT, "--chunks", 0),
    ("perplexity", MODEL, TEXT, "--context", HUGE),
    ("perplexity", MODEL, TEXT, "-t", 9999),
    ("bench", MODEL, "-p", 0, "-n", 0),
    ("bench", MODEL, "-p", -1),
    ("bench", MODEL, "--parallel", 0),
    ("models", FOLDER, "more"),
    ("doctor", "more"),
    ("devices", "--none"),
    ("rpc-server", "--host", "localhost"),
    ("rpc-server", "--host", "127.0.0.300"),
    ("rpc-server", "--host", "0.0.0.0"),
    ("rpc-server", "--port", -1),
    ("rpc-server", "--threads", HUGE),
]

ERRORS = [
    ("run", "none", "hello"),
    ("run", MODEL, "hello", "--schema", "none"),
    ("run", MODEL, "hello", "--grammar", FOLDER),
    ("run", MODEL, "hello " * 300, "--context", 256),
    ("embed", MODEL, "hello"),
    ("embed", MODEL, "hello " * 300, "--pooling", "mean", "--context", 256),
    ("run", "a/b/none.gguf", "hello"),
    ("run", "~nobody-here/m.gguf", "hello"),
    ("run", f"{LONG}.gguf", "hello"),
    ("models", "none"),
    ("models", LONG),
    ("models", TEXT),
    ("show", FOLDER),
    ("show", TEXT),
    ("pull", "./none.gguf"),
    ("pull", "none.gguf"),
    ("pull", "a/b/none.gguf"),
    ("pull", "folder/none.gguf"),
    ("pull", "~nobody-here/m.gguf"),
    ("pull", f"{LONG}.gguf"),
    ("pull", LONG),
    ("rm", "none"),
    ("rm", "lmstudio:none"),
    ("convert", "none"),
    ("convert", "~nobody-here/m"),
    ("convert", LONG),
    ("convert", TEXT),
    ("quantize", MODEL, "Q8_0", "--imatrix", "none"),
    ("quantize", MODEL, "Q8_0", "--imatrix", FOLDER),
    ("quantize", MODEL, "Q8_0", "none/x.gguf"),
    ("imatrix", MODEL, "none"),
    ("imatrix", MODEL, FOLDER),
    ("imatrix", MODEL, TEXT, "--output", "none/x.gguf"),
    ("perplexity", MODEL, "none"),
    ("perplexity", MODEL, FOLDER),
    ("perplexity", MODEL, TEXT, "--context", 4096),
    ("bench", "none"),
    ("fit", "none"),
]

NAMES = [
    name
    for function in (pyllama.quantize, pool.ModelPool.__init__, pyllama.RpcServer.__init__)
    for name in inspect.signature(function).parameters
    if "_" in name or name in ("ftype", "src", "dst")
]
PYTHON_NAMES = re.compile(rf"\b(?:{'|'.join(NAMES)})\b|\w+=['\d]|\[Errno|texts\[")


@pytest.fixture
def call(run, tiny_model_path, tmp_path, monkeypatch):
    """Run a command in a folder of its own with a model, a text and a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")
    Path("text.txt").write_text("hello world " * 20)
    Path("folder").mkdir()
    meant = {MODEL: tiny_model_path, TEXT: "text.txt", FOLDER: "folder"}
    return lambda *arguments: run(*(meant.get(each, each) for each in arguments), input="")


@pytest.mark.parametrize("arguments", MISUSES, ids=ascii)
def test_a_wrong_option_or_argument_is_exit_code_2(call, arguments):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "rror" in result.stderr
    assert "Traceback" not in result.output
    assert not PYTHON_NAMES.search(result.stderr)


@pytest.mark.parametrize("arguments", ERRORS, ids=ascii)
def test_what_another_machine_might_do_is_exit_code_1(call, arguments):
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.output
    assert not PYTHON_NAMES.search(result.stderr)


def test_each_command_has_wrong_uses():
    commands = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert {arguments[0].replace("-", "_") for arguments in MISUSES} == {
        name.replace("-", "_") for name in commands
    }


def test_a_file_that_may_not_be_read_is_no_wrong_argument():
    readable = {
        (command.callback.__name__, name): hint.__metadata__[0].readable
        for command in app.registered_commands
        for name, hint in get_type_hints(command.callback, include_extras=True).items()
        if "Path" in str(hint)
    }
    assert len(readable) == 9
    assert [path for path, is_checked in readable.items() if is_checked] == []


def test_pythons_names_are_recognized():
    for text in ("dst must be", "model_dir is", "n_gpu_layers", "pooling='x'", "[Errno 2]"):
        assert PYTHON_NAMES.search(text)
    assert not PYTHON_NAMES.search("--gpu-layers: give --pooling mean, or -t 4")
