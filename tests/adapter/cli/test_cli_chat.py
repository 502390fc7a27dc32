from __future__ import annotations

import io
import json
from contextlib import suppress
from types import SimpleNamespace

import pytest
from fake_generator import fake_model
from rich.console import Console

from adapter.cli import chat, console, conversation
from adapter.cli.conversation import Answer, Conversation, show_answer
from adapter.models import embedded_model


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "own")


def talk(run, path, *lines, **options):
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return run("chat", path, "-n", 4, "-c", 256, *flags, input="\n".join(lines))


def test_questions_are_answered_in_turn_and_the_context_grows(run, tiny_model_path):
    result = talk(run, tiny_model_path, "hello", "", "again", "/bye", "never")
    assert result.exit_code == 0, result.output
    first, second = [line for line in result.stderr.splitlines() if "tokens/s" in line]
    used = [int(line.partition("s/s, ")[2].split()[0]) for line in (first, second)]
    assert used[0] < used[1] < 256


def test_a_conversation_is_saved_loaded_undone_and_retried(run, tiny_model_path, tmp_path):
    path = tmp_path / "talk.json"
    first = talk(run, tiny_model_path, "hello", "/retry", f"/save {path}", temperature=0)
    assert first.exit_code == 0, first.output
    answers = first.stdout.splitlines()
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved] == ["user", "assistant"]
    assert first.stdout.count(saved[1]["content"]) == 2, answers
    assert [one.name for one in tmp_path.glob(".*")] == []
    more = talk(run, tiny_model_path, f"/load {path}", "/system Brief!", "again", f"/save {path}")
    assert more.exit_code == 0, more.output
    saved = json.loads(path.read_text())
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [message["role"] for message in saved] == roles
    talk(run, tiny_model_path, f"/load {path}", "/undo", f"/save {path}")
    assert len(json.loads(path.read_text())) == 3
    talk(run, tiny_model_path, f"/load {path}", "/clear", "/system", f"/save {path}")
    assert json.loads(path.read_text()) == []


@pytest.mark.parametrize(
    "line", ["/none", "/undo", "/retry", "/save", "/load /no/such/file", "/save /no/such/folder/f"]
)
def test_a_command_that_cannot_be_is_reported(run, tiny_model_path, line):
    result = talk(run, tiny_model_path, line)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("text", ["[", "{}", "[7]", '[{"role": "user", "content": "x"}]', "null"])
def test_a_file_that_holds_no_conversation_changes_nothing(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    kept = SimpleNamespace(system="before", turns=[("user", "a"), ("assistant", "b")])
    with pytest.raises(ValueError):  # noqa: PT011 - its text is json's for the first
        chat.load(kept, path)
    assert kept.turns == [("user", "a"), ("assistant", "b")]


def test_several_lines_between_quotes_are_one_question(run, tiny_model_path, tmp_path):
    path = tmp_path / "talk.json"
    talk(run, tiny_model_path, '"""one', "/two", 'three"""', '"""x"""', f"/save {path}")
    asked = [one["content"] for one in json.loads(path.read_text()) if one["role"] == "user"]
    assert asked == ["one\n/two\nthree", "x"]


def test_a_question_that_is_too_long_is_an_error_and_no_turn(run, tiny_model_path):
    result = talk(run, tiny_model_path, "long " * 300)
    assert result.exit_code == 1
    assert "/clear makes room" in result.stderr


def test_ctrl_c_in_a_pipe_ends_the_chat_with_130(run, tiny_model_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "show_answer", interrupt)
    assert talk(run, tiny_model_path, "hello").exit_code == 130


def test_what_was_written_before_ctrl_c_stays_in_the_conversation():
    talked = Conversation(fake_model("abc"), {})
    answer = Answer()
    pieces = talked.ask("hello", answer)
    next(pieces)
    pieces.close()
    assert talked.turns == [("user", "hello"), ("assistant", answer.text)]
    assert answer.finish_reason is None


def test_thoughts_are_dim_on_a_terminal_and_nowhere_else(monkeypatch):
    class Talked:
        def ask(self, _text, answer):
            yield "thinking", "hm "
            yield "thinking", "so"
            yield "text", "yes\x1b[2J"

    for is_terminal in (True, False):
        shown, beside = io.StringIO(), io.StringIO()
        made = Console(file=beside, force_terminal=is_terminal, width=80, color_system="standard")
        monkeypatch.setattr(conversation, "messages", made)
        monkeypatch.setattr(console, "output", Console(file=shown, width=80))
        show_answer(Talked(), "?", Answer())
        assert shown.getvalue() == "yes\N{REPLACEMENT CHARACTER}[2J\n"
        assert ("\x1b[2mhm \x1b[0m" in beside.getvalue()) == is_terminal
        assert ("so" in beside.getvalue()) == is_terminal


@pytest.mark.parametrize("command", [("run",), ("chat",), ("embed", "--pooling", "mean")])
def test_standard_input_that_is_no_text_is_one_line(run, tiny_model_path, command):
    name, *options = command
    result = run(name, tiny_model_path, *options, "-c", 256, input=b"caf\xe9\n")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "UTF-8 text" in line


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_mark_is_no_answer_and_its_line_ends(monkeypatch, end, is_terminal):
    asked = []

    def typed(mark):
        asked.append(mark)
        if len(asked) == 1:
            return "/undo"
        raise end

    monkeypatch.setattr("builtins.input", typed)
    for stream in ("stdin", "stdout"):
        here = is_terminal or stream == "stdin"
        terminal = SimpleNamespace(isatty=lambda here=here: here)
        monkeypatch.setattr(chat.sys, stream, terminal)
    shown = Console(file=io.StringIO())
    for module in (chat, console):
        monkeypatch.setattr(module, "messages", shown)
    with suppress(KeyboardInterrupt):
        chat._Chat(SimpleNamespace(turns=[])).run()
    mark = "" if is_terminal else ">>> "
    assert asked == [">>> " if is_terminal else ""] * 2
    assert shown.file.getvalue() == f"{mark}there is nothing before\n{mark}\n"


def test_on_a_terminal_a_line_that_is_no_text_is_read_again(tiny_model_path, monkeypatch):
    lines = iter(["caf\udce9", "/bye"])
    monkeypatch.setattr("builtins.input", lambda _mark: next(lines))
    monkeypatch.setattr(chat.sys, "stdin", SimpleNamespace(isatty=lambda: True, encoding="utf-8"))
    shown = Console(file=io.StringIO())
    for module in (chat, console):
        monkeypatch.setattr(module, "messages", shown)
    chat._Chat(SimpleNamespace(turns=[])).run()
    assert "no UTF-8 text" in shown.file.getvalue()
