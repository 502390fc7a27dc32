"""Objects whose construction failed. A traceback or a debugger may still show them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Described = TypeVar("Described", bound=Any)


def or_half_made(describe: Callable[[Described], str]) -> Callable[[Described], str]:
    """Let a ``__repr__`` report that an object lacks its attributes."""

    @wraps(describe)
    def described(self: Described) -> str:
        try:
            return describe(self)
        except AttributeError as error:
            if error.obj is not self:
                raise
            return f"<pyllama.{type(self).__name__}, which could not be made>"

    return described
