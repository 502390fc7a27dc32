"""A bar on a terminal while a model loads, and nothing elsewhere."""

from __future__ import annotations

import io
import os
import sys
from shutil import copyfile

import pytest

from adapter import InvalidParameterError, ModelPool
from adapter.models.loading_bar import LoadingBar

pty = pytest.importorskip("pty", reason="pseudo-terminals are of POSIX")


class Terminal:
    """Standard error as a terminal of 80 columns, for a block; and what was written to it."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self.written = ""

    def __enter__(self):
        self._ours, theirs = pty.openpty()
        self._stderr = os.fdopen(theirs, "w", encoding="utf-8")
        self._monkeypatch.setenv("TERM", "xterm")
        self._monkeypatch.setenv("COLUMNS", "80")
        self._monkeypatch.setattr(sys, "stderr", self._stderr)
        return self

    def __exit__(self, *exc_info):
        with self._stderr:
            self._stderr.write("end")
        text = b""
        while not text.endswith(b"end"):
            text += os.read(self._ours, 1024)
        os.close(self._ours)
        self.written = text.decode().removesuffix("end")


@pytest.fixture
def terminal(monkeypatch):
    return Terminal(monkeypatch)


@pytest.fixture
def folder(tiny_model_path, tmp_path):
    copyfile(tiny_model_path, tmp_path / "tiny.gguf")
    return tmp_path


def test_a_bar_is_drawn_and_erased(terminal, folder):
    with terminal, ModelPool(folder) as pool:
        pool.load_model("tiny")
    text = terminal.written
    assert "Loading tiny" in text
    assert "100%" in text
    assert "\n" not in text
    assert text.endswith("\r\x1b[2K")
    assert "\x1b[?25l" not in text  # the cursor is never hidden


def test_an_argument_switches_it_off(terminal, folder):
    with terminal, ModelPool(folder, progress=False) as pool:
        pool.load_model("tiny")
    assert terminal.written == ""


def test_a_callback_takes_its_place(terminal, folder):
    told = []
    with terminal, ModelPool(folder, progress=lambda *what: told.append(what)) as pool:
        pool.load_model("tiny")
    assert terminal.written == ""
    assert told[-1] == ("tiny", 1.0)


def test_no_terminal_no_bar(folder, capfd):
    with ModelPool(folder) as pool:
        pool.load_model("tiny")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_without_standard_error_models_load(folder, monkeypatch, stderr):
    if stderr is not None:
        stderr = open(os.devnull, "w")  # noqa: SIM115
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    with ModelPool(folder) as pool:
        assert pool.load_model("tiny").name == "tiny"


def test_a_load_that_fails_leaves_no_bar(terminal):
    def load():
        with LoadingBar("tiny") as draw:
            draw(0.5)
            raise OSError("in the middle")

    with terminal, pytest.raises(OSError, match="in the middle"):
        load()
    assert terminal.written.endswith("\r\x1b[2K")


def test_a_terminal_that_goes_away_stops_no_load(monkeypatch):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, _text):
            raise OSError("the terminal is gone")

    monkeypatch.setattr(sys, "stderr", Gone())
    with LoadingBar("tiny") as draw:
        draw(0.1)
        draw(0.2)


def test_a_long_name_stays_on_one_line(terminal):
    with terminal, LoadingBar("m" * 200) as draw:
        draw(0.5)
    line = terminal.written.split("\x1b[2K")[1]
    assert "…" in line
    assert line.count("m") < 80


def test_what_cannot_watch_is_refused(folder):
    with pytest.raises(InvalidParameterError, match="progress"):
        ModelPool(folder, progress="yes")
