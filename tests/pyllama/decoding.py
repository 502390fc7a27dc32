"""What several test modules use to decode, in this process and in others."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np

from pyllama import Batch, Context

PROMPT = [1, 10, 20, 30, 40]


def logits_of(context, tokens, **options):
    context.memory.clear()
    context.decode(Batch.from_tokens(tokens, **options))
    return context.logits()


def slow_context(model):
    return Context(model, n_ctx=32_768, n_batch=32_768, n_ubatch=64, n_threads=1)


def slow_batch():
    return Batch.from_tokens(np.full(32_000, 7))


def until_decoding(context, thread):
    """Wait until that thread is inside a call on the context."""
    while context._lock.acquire(blocking=False):
        context._lock.release()
        assert thread.is_alive()


class Decoding(threading.Thread):
    """Decodes in a thread of its own, from the start on, and keeps what came of it."""

    def __init__(self, context, batch):
        super().__init__()
        self.context, self.batch, self.raised = context, batch, None
        self.start()
        until_decoding(context, self)

    def run(self):
        try:
            self.context.decode(self.batch)
        except BaseException as error:
            self.raised = error


def run_python(code, *arguments, **options):
    """Run code in an interpreter of its own, and return what it wrote."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    assert result.stderr == ""
    return result.stdout
