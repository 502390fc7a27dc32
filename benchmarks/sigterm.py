"""The end of a benchmark by SIGTERM, which otherwise leaves the processes that it started."""

from __future__ import annotations

import signal
import sys


def exit_at_sigterm() -> None:
    """Have SIGTERM end the program as an exception does, through what ends other processes."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
