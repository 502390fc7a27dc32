"""The scheduler's thread: it cannot start, starts interrupted, or ends without a word."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from schedules import alone, isolated_of, raising, request_of, same, scheduler_of, tokens

from adapter.errors import ResourceError, TransientError
from adapter.generation import outcomes
from adapter.generation.scoring import ScoringRequest


@pytest.mark.parametrize("make", [scheduler_of, isolated_of])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_cannot_start_fails_the_request_and_the_next_tries_again(
    model, make, error, monkeypatch
):
    scheduler = make(model)
    scored = ScoringRequest(tokens(0, 20), ((5,),), (2,))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", raising(error))
        for ask in (
            lambda: scheduler.generate(request_of(tokens(0, 20))),
            lambda: scheduler.score(scored),
        ):
            with pytest.raises(
                TransientError, match=r"no thread to compute.*the next request"
            ) as caught:
                ask()
            assert caught.value.__cause__ is error
            assert not scheduler.n_queued
    assert scheduler.generate(request_of(tokens(0, 20))).completion_tokens > 0
    assert scheduler.score(scored).scores
    scheduler.close()


def test_an_interrupt_while_the_thread_starts_leaves_one_thread(model, monkeypatch):
    scheduler, start = scheduler_of(model), threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scheduler.generate(request_of(tokens(0, 20)))
    assert not scheduler.n_queued
    request = request_of(tokens(0, 40))
    assert same(scheduler.generate(request), alone(model, request))
    mine = [thread for thread in threading.enumerate() if thread._target == scheduler._run]
    assert mine == [scheduler._thread]
    scheduler.close()


@pytest.mark.parametrize("place", ["_claim_thread", "_run", "_go_on"])
def test_a_thread_that_ends_without_a_word_leaves_nobody_waiting(model, place, monkeypatch):
    """A thread that finds no memory may end anywhere, also before it comes to this package."""
    scheduler = scheduler_of(model)
    go_on = threading.Event()

    def end(*_args):
        go_on.wait(60)
        raise SystemExit

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(scheduler, place, end)
    if place == "_go_on":
        monkeypatch.setattr(scheduler, "_shut_down", end)
    monkeypatch.setattr(outcomes, "LOOK_SECONDS", 0.01)
    first = request_of(tokens(1, 30))
    scored = ScoringRequest(tokens(1, 30), ((5,), (6,)), ())
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(scheduler.generate, first), threads.submit(scheduler.score, scored)]
        while scheduler.n_queued < 2:
            time.sleep(0.001)
        go_on.set()
        for each, request in zip(asked, (first, scored), strict=True):
            with pytest.raises(ResourceError, match="load the model again"):
                each.result(60)
            assert not request.taken.pending
    assert scheduler.failed is not None
    with pytest.raises(ResourceError, match="load the model again"):
        scheduler.generate(request_of(tokens(2, 30)))
    scheduler.close()
