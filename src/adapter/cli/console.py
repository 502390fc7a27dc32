"""Output of the commands: answers to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column, Table

# Control characters except tab and line feed, and those that reverse the direction of a line.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

output = Console(soft_wrap=True, highlight=False, emoji=False)
messages = Console(stderr=True, highlight=False, emoji=False)

_BAR_AND_PERCENTAGE = 20
"""Columns of the terminal that both take at least, with the spaces before them."""


def examples(*commands: str) -> str:
    """The last paragraph of a command's help."""
    return "\n\n".join(("Examples:", *(f"  {escape(command)}" for command in commands)))


def paragraphs(text: str) -> str:
    """A text whose paragraphs have one line each, for any width of a terminal to break."""
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def say(text: str) -> None:
    """Write a line of the answer unchanged."""
    with _written():
        output.print(visible(text), markup=False)


def say_prose(text: str, indent: str = "") -> None:
    """Write a line of the answer in words. On a terminal no word is divided, and in a file it
    stays one line.

    Args:
        indent: what the second and later lines begin with.
    """
    say(_broken(text, output, indent))


def say_piece(text: str) -> None:
    """Write a part of a line of the answer, at once."""
    with _written():
        output.print(visible(text), end="", markup=False)
        output.file.flush()


def note(text: str) -> None:
    """Write a line for the user that is not part of the answer."""
    messages.print(_broken(visible(text), messages), markup=False, soft_wrap=True)


def fail(text: str) -> NoReturn:
    """Write an error, and end the command with exit code 1."""
    warn(text)
    raise typer.Exit(1)


def refuse(text: str) -> NoReturn:
    """Write an error about an option or argument that is wrong on every machine, and end the
    command with exit code 2.
    """
    warn(text)
    raise typer.Exit(2)


def warn(text: str) -> None:
    """Write an error, and go on."""
    complain(f"error: {text}")


def complain(text: str) -> None:
    """Write a line in the colour of errors."""
    shown = _broken(visible(text), messages)
    messages.print(shown, style="red", markup=False, soft_wrap=True)


_COMMAND = re.compile(r"(?<=: )(?:pyllama|pip|python) .*$")
_GLUE = "\0"  # for a space at which a line is not broken


def _broken(text: str, console: Console, indent: str = "") -> str:
    """A text with line breaks between words where a terminal would break within them. To be copied,
    a path without spaces stays in one piece, and so does a command at the end of a line.
    """
    if not console.is_terminal:
        return text
    lines = [
        textwrap.fill(
            _COMMAND.sub(lambda command: command[0].replace(" ", _GLUE), line),
            console.width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ).replace(_GLUE, " ")
        if len(line) > console.width
        else line
        for line in text.split("\n")
    ]
    return "\n".join(lines)


@contextmanager
def _written() -> Iterator[None]:
    """End the command if standard output takes no more. Other errors are the command's own."""
    try:
        yield
    except OSError as error:
        write_failed(error)
        raise typer.Exit(1) from None


def write_failed(error: OSError) -> None:
    """Say that standard output takes no more, and have Python not try again when it ends.

    Nothing is said of a reader that has gone, such as head.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        with suppress(OSError):
            warn(f"standard output cannot be written: {error.strerror or error}")


def visible(text: str) -> str:
    """A text without terminal control sequences: names and metadata are untrusted."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def say_json(value: object) -> None:
    """Write a value as JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=not _speaks_utf8())
    with _written():
        sys.stdout.write(f"{text}\n")


def file_text(path: Path) -> str:
    """The text of a file, which ends the command if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"{path} is no UTF-8 text: {place_of(error)}")


def standard_input() -> str:
    """All of standard input, which ends the command if it is not text."""
    if sys.stdin.isatty():
        note("reading standard input; Ctrl-D ends it")
    try:
        return sys.stdin.read()
    except OSError as error:
        fail(f"standard input cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        fail(f"standard input is no UTF-8 text: {place_of(error)}")


def typed(mark: str) -> str:
    """A line from the terminal. Where the user ends instead, the next output has a line of its own.

    Without a terminal for answers, input() would write the mark among them.
    """
    if not sys.stdout.isatty():
        messages.print(mark, end="", markup=False)
        mark = ""
    try:
        return input(mark)
    except (EOFError, KeyboardInterrupt):
        messages.print()
        raise


def require_text(what: str, text: str | None) -> None:
    """End the command if an argument holds bytes that are not text."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        refuse(f"{what} is no UTF-8 text: its character {error.start} is a byte that is no text")


def place_of(error: UnicodeDecodeError) -> str:
    """Where a text stops being one."""
    return f"its byte {error.start} is {error.object[error.start]:#04x}"


def table(*columns: Column | str) -> Table:
    """A table whose columns wrap on a narrow terminal, and are never cut."""
    folded = [
        Column(column, overflow="fold") if isinstance(column, str) else column for column in columns
    ]
    return Table(*folded, box=SIMPLE_HEAD, pad_edge=False, header_style="bold")


def row(made: Table, *cells: object) -> None:
    """Add a row of plain texts; None is an empty cell."""
    made.add_row(*("" if cell is None else escape(visible(str(cell))) for cell in cells))


def show(made: Table) -> None:
    """Write a table."""
    with _written():
        output.print(made, soft_wrap=False)


def _cut(width: int) -> Column:
    return Column(max_width=width, no_wrap=True, overflow="ellipsis")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal for the block. The block gets a function of the fraction done."""
    # A long title is cut, and neither the bar nor the percentage.
    room = max(messages.width - _BAR_AND_PERCENTAGE, 1)
    text = TextColumn("{task.description}", markup=False, table_column=_cut(room))
    columns = text, BarColumn(), TaskProgressColumn()
    shown = messages.is_interactive  # no dumb terminal
    with Progress(*columns, console=messages, transient=True, disable=not shown) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda done: bar.update(task, completed=done)


def _speaks_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
