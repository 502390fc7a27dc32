"""How programs use DSPy, for tests of what depends on it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar

import dspy

Result = TypeVar("Result")


def run_configured(body: Callable[[], Result], **settings: object) -> Result:
    """Run a function as a program that called dspy.configure: outside of a test's context."""

    def run() -> Result:
        dspy.configure(**settings)
        try:
            return body()
        finally:
            dspy.configure(lm=None, adapter=None)

    return contextvars.Context().run(run)
