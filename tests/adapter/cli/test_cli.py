"""What holds for every command."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import adapter
import pyllama
from adapter.cli.app import app
from adapter.models.hardware import HardwareManager

COMMANDS = [
    command.name or command.callback.__name__.replace("_", "-")
    for command in app.registered_commands
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_and_fits_80_columns(run, command):
    result = run(command, "--help", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    examples = result.stdout.partition("Examples:")[2]
    assert f"pyllama {command}" in examples
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_of_a_help_ends_before_the_width_does(run, command):
    text = run(command, "--help", env={"COLUMNS": "80"}).stdout.partition("╭")[0]
    lines = [line.strip() for line in text.splitlines()]
    for line, following in itertools.pairwise(lines):
        if line and following:
            assert len(f"{line} {following.split()[0]}") > 78


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_documentation(command):
    page = Path(__file__).parents[3] / "docs" / "cli.md"
    assert f"| `pyllama {command}" in page.read_text(encoding="utf-8")


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from adapter.cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(sorted({'dspy', 'numpy', 'pyllama', 'huggingface_hub'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_is_exit_code_130(run, monkeypatch):
    def interrupt(_self):
        raise KeyboardInterrupt

    monkeypatch.setattr(HardwareManager, "choices", interrupt)
    result = run("devices")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_an_unknown_command_is_a_usage_error(run):
    assert run("modles").exit_code == 2


def test_every_public_name_is_there_and_imported_when_used():
    for name in adapter.__all__:
        assert getattr(adapter, name) is not None
    assert set(adapter.__all__) <= set(dir(adapter))
    with pytest.raises(AttributeError, match="NoSuchName"):
        _ = adapter.NoSuchName


def test_the_package_is_the_command_too():
    command = [sys.executable, "-m", "pyllama", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "python -m pyllama" in result.stdout
    assert "demo" in result.stdout
    assert result.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_file_whose_name_is_no_text_is_listed(tiny_model_path, tmp_path):
    folder = os.fsencode(tmp_path)
    with open(folder + b"/odd-\xff.gguf", "wb") as file:
        file.write(tiny_model_path.read_bytes())
    for options in ([], ["--json"]):
        command = [sys.executable, "-m", "pyllama", "models", str(tmp_path), *options]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert b"odd-" in done.stdout


def test_the_version_is_that_of_the_package_and_of_llama_cpp(run):
    result = run("--version")
    assert result.exit_code == 0
    assert pyllama.__version__ in result.stdout
    assert pyllama.llama_cpp_version() in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo-terminals")
@pytest.mark.parametrize("no_color", [True, False])
def test_errors_are_red_on_a_terminal_unless_no_color_is_set(no_color):
    import pty

    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pyllama", "models", "/no/such/folder"]
    done = subprocess.run(command, env=environment, stderr=theirs, stdout=theirs, timeout=120)
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 1
    assert b"error: " in shown
    assert (b"\x1b[31m" in shown) != no_color
