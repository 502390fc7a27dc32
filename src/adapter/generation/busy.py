"""What computes requests in this process. Work that nobody waits for leaves it the processors."""

from __future__ import annotations

import os

BUSY: set[object] = set()
"""Schedulers that have requests, and calls of embedders. The threads that add them remove them."""

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork()
    os.register_at_fork(after_in_child=BUSY.clear)
