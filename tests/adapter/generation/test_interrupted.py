"""Ctrl-C at every point of a caller's thread: the next request is computed as if nothing was."""

from __future__ import annotations

import dis
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest
from schedules import request_of, scheduler_of, tokens

from adapter import generation
from adapter.generation.metrics import Metrics
from adapter.generation.scoring import ScoringRequest

_FOLDER = str(Path(generation.__file__).parent)
_CONDITION = {
    getattr(threading.Condition, name).__code__ for name in ("__enter__", "__exit__", "notify")
}
"""Code of the standard library that a signal can meet while a lock is held."""

PROMPT = tokens(1, 30)


def generate(scheduler):
    return scheduler.generate(request_of(PROMPT, max_tokens=3)).text


def score(scheduler):
    return scheduler.score(ScoringRequest(PROMPT, ((5, 6), (7,)), ())).scores


class Interrupt:
    """Raises KeyboardInterrupt at one point of this thread where a signal's handler may run.

    The interpreter looks for signals when a function begins, and after it has called something.
    """

    def __init__(self, at):
        self.left = at
        self.after_call = {}

    def __enter__(self):
        sys.settrace(self._trace)

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        code = frame.f_code
        if code not in _CONDITION and not code.co_filename.startswith(_FOLDER):
            return None
        frame.f_trace_opcodes = True
        if event == "call" or (event == "opcode" and self.after_call.get(frame)):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        if event == "opcode":
            name = dis.opname[code.co_code[frame.f_lasti]]
            self.after_call[frame] = name.startswith(("CALL", "JUMP_BACKWARD"))
        return self._trace


@pytest.mark.parametrize("ask", [generate, score])
def test_ctrl_c_at_any_point_leaves_a_scheduler_that_answers(tiny, ask):
    scheduler = scheduler_of(tiny)
    expected = ask(scheduler)
    answers = []
    for at in count():
        try:
            with Interrupt(at):
                ask(scheduler)
        except KeyboardInterrupt:
            pass
        else:
            break
        # By itself: what nobody waits for any more must not fill the queue until the next request.
        end = time.monotonic() + 60
        while scheduler.n_queued and time.monotonic() < end:
            time.sleep(0.0005)
        assert not scheduler.n_queued, f"a request is forgotten after an interrupt at event {at}"
        other = threading.Thread(target=lambda: answers.append(ask(scheduler)), daemon=True)
        other.start()
        other.join(30)
        assert not other.is_alive(), f"nothing is answered after an interrupt at event {at}"
        assert answers[-1] == expected
        assert scheduler.failed is None
    assert at > 30
    scheduler.close()


def test_a_signal_handler_may_read_the_metrics():
    metrics, read = Metrics(), []

    def handle(frame, event, _):
        if frame.f_code is Metrics.snapshot.__code__ and event == "line":
            read.append(metrics.snapshot())  # as a handler would that runs here
        return handle

    def read_it():
        sys.settrace(handle)
        metrics.snapshot()
        sys.settrace(None)

    reader = threading.Thread(target=read_it, daemon=True)
    reader.start()
    reader.join(60)
    assert not reader.is_alive()
    assert len(read) > 3
