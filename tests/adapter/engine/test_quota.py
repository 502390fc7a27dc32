from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapter.engine import quota
from adapter.engine.quota import Quota, RequestRate, Reservation, TokenBudget
from adapter.errors import RateLimitExceededError, TokenBudgetExhaustedError
from adapter.generation.token_count import TokenCount


def test_a_budget_grants_what_is_left_and_no_more():
    budget, held = TokenBudget(100), [Reservation() for _ in range(3)]
    assert budget.reserve(held[0], prompt=30, answer=50) == 50
    assert budget.reserve(held[1], prompt=10, answer=50) == 10
    with pytest.raises(TokenBudgetExhaustedError) as caught:
        budget.reserve(held[2], prompt=1, answer=1)
    assert (caught.value.used, caught.value.limit) == (100, 100)
    assert "100 of 100 tokens" in str(caught.value)


def test_what_was_not_taken_can_be_taken_again():
    budget, held, other = TokenBudget(100), Reservation(), Reservation()
    budget.reserve(held, prompt=40, answer=60)
    budget.charge(held, TokenCount(40, 5))
    assert budget.used == 45
    assert budget.reserve(other, prompt=5, answer=60) == 50


def test_what_is_reserved_ends_with_its_request():
    budget, held = TokenBudget(100), Reservation()
    budget.reserve(held, prompt=40, answer=60)
    assert budget.used == 100
    del held
    assert budget.used == 0


def test_what_a_step_under_way_takes_is_charged_when_it_has_ended():
    budget = TokenBudget(100)
    taken = TokenCount(pending=True)
    with Quota(budget, RequestRate(None)).charged(taken, 30, 20):
        taken.prompt = 8
    assert budget.used == 8  # its caller has gone
    taken.prompt, taken.answer = 30, 1
    assert budget.used == 31
    taken.pending = False
    with Quota(budget, RequestRate(None)).charged(TokenCount(), 30, 100) as granted:
        assert granted == 100 - 31 - 30
    assert budget.used == 31
    assert taken not in budget._unsettled


class CollectingCount(TokenCount):
    """Garbage is collected just when it is looked at."""

    @property
    def total(self):
        gc.collect()
        return super().total


def test_a_request_that_is_dropped_may_end_while_another_begins():
    """A stream in a reference cycle ends wherever the collector runs, in whichever thread."""
    shared = Quota(TokenBudget(1000), RequestRate(10))

    def stream(taken):
        with shared.charged(taken, 100, 50):
            yield

    def begin_another():
        with shared.charged(CollectingCount(1, 2, pending=True), 100, 50):
            pass  # its step goes on, and so it is looked at each time
        dropped = [stream(TokenCount(10, 5)), stream(TokenCount())]
        for each in dropped:
            next(each)
        dropped.append(dropped)
        del dropped, each
        with shared.charged(TokenCount(3), 100, 50):
            pass

    thread = threading.Thread(target=begin_another, daemon=True)
    gc.disable()  # but where it is asked for
    try:
        thread.start()
        thread.join(60)
    finally:
        gc.enable()
    assert not thread.is_alive()
    assert shared.budget.used == 3 + 15 + 3
    with shared.charged(TokenCount(), 1, 1):
        pass
    assert shared.budget.used == 3 + 15 + 3


def test_ctrl_c_at_no_point_leaves_tokens_reserved():
    budget = TokenBudget(1000)
    left = 0

    def interrupt(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename != quota.__file__:
            return None
        frame.f_trace_opcodes = True
        if left <= 0 and not budget._lock.locked():  # no signal is taken between lock and block
            raise KeyboardInterrupt
        left -= 1
        return interrupt

    points = 0
    while True:
        left = points = points + 1
        try:
            sys.settrace(interrupt)
            with Quota(budget, RequestRate(None)).charged(TokenCount(), 100, 50):
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if left > 0:
            break
        assert budget.used == 0, points
    assert points > 50


def test_a_prompt_alone_can_be_too_much():
    budget = TokenBudget(10)
    with pytest.raises(TokenBudgetExhaustedError):
        budget.reserve(Reservation(), prompt=10, answer=1)
    assert budget.used == 0


def test_without_a_limit_tokens_are_counted_only():
    budget, held = TokenBudget(None), Reservation()
    assert budget.reserve(held, 10**9, 10**9) == 10**9
    assert budget.used == 2 * 10**9


def test_threads_never_take_more_than_the_limit_together():
    budget, held = TokenBudget(1000), [Reservation() for _ in range(500)]

    def take(index: int) -> int:
        try:
            return 3 + budget.reserve(held[index], 3, 10)
        except TokenBudgetExhaustedError:
            return 0

    with ThreadPoolExecutor(16) as threads:
        taken = sum(threads.map(take, range(500)))
    assert taken == budget.used <= 1000
    assert taken > 1000 - 4


def test_a_minute_holds_so_many_requests():
    now = 0.0
    rate = RequestRate(2, clock=lambda: now)
    rate.begin(TokenCount())
    now = 20.0
    rate.begin(TokenCount())
    now = 45.0
    with pytest.raises(RateLimitExceededError) as caught:
        rate.begin(TokenCount())
    assert caught.value.retry_after == 15.0
    assert caught.value.requests_per_minute == 2
    now = 60.0
    rate.begin(TokenCount())
    with pytest.raises(RateLimitExceededError, match=r"20\.0 s"):
        rate.begin(TokenCount())


def test_a_request_counts_while_its_first_step_may_still_take_tokens():
    quota = Quota(TokenBudget(None), RequestRate(1, clock=lambda: 0.0))
    taken = TokenCount(pending=True)
    with quota.charged(taken, 30, 20):
        pass  # its caller gave it up within its first step
    refused = pytest.raises(RateLimitExceededError, match="1")
    with refused, quota.charged(TokenCount(), 30, 20):
        pass
    taken.pending = False  # that step was never made
    with quota.charged(taken := TokenCount(pending=True), 30, 20):
        pass
    taken.prompt, taken.pending = 30, False
    with refused, quota.charged(TokenCount(), 30, 20):
        pass


def test_without_a_limit_every_request_may_begin():
    rate = RequestRate(None, clock=lambda: 0.0)
    for _ in range(1000):
        rate.begin(TokenCount())
