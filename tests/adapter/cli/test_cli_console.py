"""Bars on terminals."""

from __future__ import annotations

import io
import re
from contextlib import suppress

import pytest
from rich.console import Console

from adapter.cli import console, pull


@pytest.fixture
def terminal(monkeypatch):
    """Have the bars drawn on a terminal of a width, and return what it gets."""

    def of(width, kind="xterm"):
        made = Console(
            file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": kind}
        )
        answers = Console(file=made.file, force_terminal=True, width=width, soft_wrap=True)
        monkeypatch.setattr(console, "messages", made)
        monkeypatch.setattr(console, "output", answers)
        monkeypatch.setattr(pull, "messages", made)
        return made.file

    return of


def lines(shown):
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", shown.getvalue()).replace("\r", "\n").split("\n")


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_long_name_does_not_push_the_bar_from_its_line(terminal, width):
    shown = terminal(width)
    with console.progress_bar(f"Loading {'a-long-name-' * 9}") as report:
        report(0.42)
    assert max(map(len, lines(shown))) <= width
    line = next(line for line in lines(shown) if line.endswith(" 42%"))
    assert "… " in line
    assert line.startswith("Loading a-long")
    assert sum(map(line.count, "━╸╺")) >= 10


@pytest.mark.parametrize("width", [80, 60])
def test_the_bar_of_a_download_has_all_its_numbers(terminal, width):
    shown = terminal(width)
    with pull.transfer_bar() as report:
        report(250_000_000, 1_000_000_000)
    assert max(map(len, lines(shown))) <= width
    assert any("0.2/1.0 GB" in line for line in lines(shown))


def test_a_bar_leaves_nothing_behind_it(terminal):
    shown = terminal(80)
    with suppress(KeyboardInterrupt), console.progress_bar("Loading") as report:
        report(0.5)
        raise KeyboardInterrupt
    assert shown.getvalue().count("\x1b[?25l") == shown.getvalue().count("\x1b[?25h") == 1
    assert shown.getvalue().endswith("\x1b[2K")


def test_a_dumb_terminal_gets_no_bar_and_no_empty_line(terminal):
    shown = terminal(80, "dumb")
    with console.progress_bar("Loading") as report, pull.transfer_bar() as other:
        report(0.5)
        other(1, 2)
    assert shown.getvalue() == ""


WORDS = "a sentence of words that no line of a terminal has room for, and which goes on and on"
PATH = "/a/folder/" + "with-a-long-name/" * 6 + "model.gguf"


@pytest.mark.parametrize("write", [console.note, console.warn, console.complain, console.say_prose])
def test_a_terminal_divides_no_word_and_no_path(terminal, write):
    shown = terminal(40)
    write(f"{WORDS} {PATH} {WORDS}\na line of its own")
    assert lines(shown)[-2] == "a line of its own"
    text = " ".join(lines(shown)).strip().removeprefix("error: ")
    assert text == f"{WORDS} {PATH} {WORDS} a line of its own"
    assert all(len(line) <= 40 for line in lines(shown) if line != PATH)
    assert PATH in lines(shown)


def test_a_terminal_divides_no_command(terminal):
    shown = terminal(40)
    console.note("it holds safetensors, of which a GGUF file is made by: pyllama convert a/model")
    assert any("pyllama convert a/model" in line for line in lines(shown))
    assert len(lines(shown)) > 2


def test_in_a_file_a_text_keeps_its_lines(capsys):
    console.note(f"{WORDS} {WORDS}")
    assert capsys.readouterr().err == f"{WORDS} {WORDS}\n"
