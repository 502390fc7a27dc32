"""Shows the progress of a load: to a callback, as a bar on a terminal, or not at all."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from adapter.errors import InvalidParameterError

if TYPE_CHECKING:
    from rich.console import Console

Progress: TypeAlias = Callable[[str, float], None] | bool | None
"""A function of a model's name and the fraction loaded, or whether to draw a bar."""

Watch: TypeAlias = Callable[[str], AbstractContextManager[Callable[[float], None]]]
"""Makes, for one load of a model, the function of the fraction loaded."""

_WIDTH = 30


def watch(progress: Progress) -> Watch:
    """Return the watch for a pool's `progress`. Raises InvalidParameterError for other values."""
    if callable(progress):
        return lambda name: nullcontext(partial(progress, name))
    if progress is not None and not isinstance(progress, bool):
        raise InvalidParameterError("progress", progress, "a function, True or False")
    return LoadingBar if progress else lambda _name: nullcontext(_ignore)


def weakly(watch: Watch) -> Watch:
    """A watch that works as long as something else keeps the user's function.

    A pool's thread may keep it. The user's function often refers to the pool, which would then
    never be collected.
    """
    found = weakref.ref(watch)

    def of(name: str) -> AbstractContextManager[Callable[[float], None]]:
        kept = found()
        return nullcontext(_ignore) if kept is None else kept(name)

    return of


class LoadingBar:
    """A bar on standard error while a model loads, erased at the end. Only a terminal gets one.

    The cursor stays visible, and no thread redraws the bar: a program may end at any moment.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._console: Console | None = None
        self._percent = -1

    def __enter__(self) -> Callable[[float], None]:
        if _is_terminal():
            from rich.console import Console  # slow to import, and useless without a terminal

            self._console = Console(file=sys.stderr)
        return self._draw

    def __exit__(self, *exc_info: object) -> None:
        console, self._console = self._console, None
        if console is not None and self._percent >= 0:
            with suppress(OSError, ValueError):
                _erase_line(console)

    def _draw(self, fraction: float) -> None:
        console, percent = self._console, int(fraction * 100)
        if console is None or percent == self._percent:
            return
        self._percent = percent
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        label = Text(f"Loading {self._name} ")
        label.truncate(max(console.width - _WIDTH - 6, 0), overflow="ellipsis")
        try:
            _erase_line(console)
            console.print(label, end="")
            console.print(ProgressBar(total=100, completed=percent, width=_WIDTH), end="")
            console.print(Text(f" {percent:3}%"), end="")
        except (OSError, ValueError):  # the terminal is gone, or standard error is closed
            self._console = None


def _erase_line(console: Console) -> None:
    from rich.control import Control
    from rich.segment import ControlType

    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def _ignore(_fraction: float) -> None:
    pass
