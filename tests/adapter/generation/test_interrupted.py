"""Ctrl-C at every point of a caller's thread: the next request is computed as if nothing was."""

from __future__ import annotations

import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest
from interrupts import Interrupt
from schedules import request_of, scheduler_of, tokens

from adapter import generation
from adapter.generation.metrics import Metrics
from adapter.generation.scoring import ScoringRequest
from adapter.generation.token_count import TokenCount

_FOLDER = str(Path(generation.__file__).parent)
_CONDITION = {
    getattr(threading.Condition, name).__code__ for name in ("__enter__", "__exit__", "notify")
}
"""Code of the standard library that a signal can meet while a lock is held."""

PROMPT = tokens(1, 30)


def generate(scheduler, taken):
    return scheduler.generate(request_of(PROMPT, max_tokens=3, taken=taken)).text


def score(scheduler, taken):
    return scheduler.score(ScoringRequest(PROMPT, ((5, 6), (7,)), (), taken=taken)).scores


def is_looked_at(code):
    return code in _CONDITION or code.co_filename.startswith(_FOLDER)


@pytest.mark.parametrize("ask", [generate, score])
def test_ctrl_c_at_any_point_leaves_a_scheduler_that_answers(tiny, ask):
    scheduler = scheduler_of(tiny)
    expected = ask(scheduler, TokenCount())
    answers = []
    for at in count():
        taken = TokenCount()
        try:
            with Interrupt(at, is_looked_at):
                ask(scheduler, taken)
        except KeyboardInterrupt:
            pass
        else:
            break
        # By itself: what nobody waits for any more must not fill the queue until the next request.
        end = time.monotonic() + 60
        while scheduler.n_queued and time.monotonic() < end:
            time.sleep(0.0005)
        assert not scheduler.n_queued, f"a request is forgotten after an interrupt at event {at}"
        other = threading.Thread(
            target=lambda: answers.append(ask(scheduler, TokenCount())), daemon=True
        )
        other.start()
        other.join(30)
        assert not other.is_alive(), f"nothing is answered after an interrupt at event {at}"
        assert answers[-1] == expected
        assert scheduler.failed is None
        assert not taken.pending, f"it counts for ever after an interrupt at event {at}"
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
