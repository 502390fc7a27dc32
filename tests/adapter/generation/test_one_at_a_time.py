"""Isolated execution: one request at a time, in one context, which depends on nothing before."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import pytest
from schedules import endless, isolated_of, request_of, tokens

import pyllama
from adapter.errors import QueueFullError, RequestTimeoutError
from adapter.generation import scheduler as scheduler_module
from adapter.generation.scoring import ScoringRequest


@pytest.fixture
def contexts(monkeypatch):
    """All contexts that were made."""
    made = []
    init = pyllama.Context.__init__

    def noting(context, *args, **options):
        init(context, *args, **options)
        made.append(context)

    monkeypatch.setattr(pyllama.Context, "__init__", noting)
    return made


@pytest.fixture
def scheduler(tiny):
    made = isolated_of(tiny)
    yield made
    made.close()


def scoring_request(seed=0):
    return ScoringRequest(tokens(seed, 200), ((5,), (6, 7)), (2,))


def test_nothing_is_reused(scheduler):
    request = request_of(tokens(0, 300))
    scored = scoring_request()
    assert [scheduler.generate(request).cache_read_tokens for _ in range(2)] == [0, 0]
    assert [scheduler.score(scored).cache_read_tokens for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("waits", ["for an answer", "for a score"])
def test_who_waits_for_a_turn_has_a_timeout_and_can_be_cancelled(scheduler, waits):
    held = scheduler.stream(endless(1))
    next(held)
    cancelled = threading.Event()

    def ask(timeout):
        if waits == "for a score":
            return scheduler.score(replace(scoring_request(), timeout=timeout), cancelled)
        return list(scheduler.stream(request_of(tokens(2, 20), timeout=timeout), cancelled))

    with pytest.raises(RequestTimeoutError, match=r"timeout_secs=0\.05"):
        ask(0.05)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, None)
        time.sleep(0.05)
        assert not waiting.done()
        cancelled.set()
        assert not waiting.result(30)
    held.close()
    assert scheduler.generate(request_of(tokens(2, 20))).completion_tokens > 0


def test_one_context_at_a_time_serves_answers_and_scores_in_order(scheduler, contexts, monkeypatch):
    """However they mix: peak memory is one context, and neither kind starves the other."""
    open_at_once, kinds = set(), []
    decode = pyllama.Context.decode

    def counting(context, batch):
        open_at_once.add(sum(not other.closed for other in contexts))
        kinds.append("score" if context.n_seq_max > 1 else "answer")
        return decode(context, batch)

    monkeypatch.setattr(pyllama.Context, "decode", counting)
    request, scored = request_of(tokens(1, 90)), scoring_request(2)
    answer, scores = scheduler.generate(request), scheduler.score(scored)

    def ask(index):
        found = scheduler.score(scored) if index % 2 else scheduler.generate(request)
        assert found == (scores if index % 2 else answer)

    held = scheduler.stream(endless(1))
    next(held)
    kinds.clear()
    with ThreadPoolExecutor(8) as threads:
        asked = []
        for index in range(8):
            asked.append(threads.submit(ask, index))
            while scheduler.n_queued < index + 1:
                time.sleep(0.001)
        held.close()
        for each in asked:
            each.result()
    assert open_at_once == {1}
    assert [kind for kind, _ in groupby(kinds)] == ["answer", "score"] * 4


def test_its_context_is_freed_when_nobody_asks_for_a_while(tiny, contexts, monkeypatch):
    monkeypatch.setattr(scheduler_module, "IDLE_SECONDS", 0.05)
    scheduler = isolated_of(tiny)
    first = scheduler.generate(request_of(tokens(0, 30)))
    scheduler.score(scoring_request())
    deadline = time.monotonic() + 30
    while not all(context.closed for context in contexts) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert contexts
    assert all(context.closed for context in contexts)
    assert scheduler.generate(request_of(tokens(0, 30))) == first
    scheduler.close()


def test_between_requests_that_follow_each_other_it_is_kept(scheduler, contexts):
    for seed in range(4):
        scheduler.generate(request_of(tokens(seed, 30 + 400 * seed)))
    assert len(contexts) == 1


def test_a_full_queue_refuses(tiny):
    scheduler = isolated_of(tiny, max_queued=0)
    with pytest.raises(QueueFullError):
        scheduler.generate(request_of(tokens(0, 10)))
    scheduler.close()
