"""Context variables that have a value for a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def assigned(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Give a context variable a value for the block, and its earlier one after it."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
