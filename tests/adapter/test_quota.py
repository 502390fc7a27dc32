from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from adapter.errors import RateLimitExceededError, TokenBudgetExhaustedError
from adapter.quota import RequestRate, TokenBudget


def test_a_budget_grants_what_is_left_and_no_more():
    budget = TokenBudget(100)
    assert budget.reserve(prompt=30, answer=50) == 50
    assert budget.reserve(prompt=10, answer=50) == 10
    with pytest.raises(TokenBudgetExhaustedError) as caught:
        budget.reserve(prompt=1, answer=1)
    assert (caught.value.used, caught.value.limit) == (100, 100)
    assert "100 of 100 tokens" in str(caught.value)


def test_what_was_not_taken_can_be_taken_again():
    budget = TokenBudget(100)
    budget.reserve(prompt=40, answer=60)
    budget.give_back(55)
    assert budget.used == 45
    assert budget.reserve(prompt=5, answer=60) == 50


def test_a_prompt_alone_can_be_too_much():
    budget = TokenBudget(10)
    with pytest.raises(TokenBudgetExhaustedError):
        budget.reserve(prompt=10, answer=1)
    assert budget.used == 0


def test_without_a_limit_tokens_are_counted_only():
    budget = TokenBudget(None)
    assert budget.reserve(10**9, 10**9) == 10**9
    assert budget.used == 2 * 10**9


def test_threads_never_take_more_than_the_limit_together():
    budget = TokenBudget(1000)

    def take(_: int) -> int:
        try:
            return 3 + budget.reserve(3, 10)
        except TokenBudgetExhaustedError:
            return 0

    with ThreadPoolExecutor(16) as threads:
        taken = sum(threads.map(take, range(500)))
    assert taken == budget.used <= 1000
    assert taken > 1000 - 4


def test_a_minute_holds_so_many_requests():
    now = 0.0
    rate = RequestRate(2, clock=lambda: now)
    rate.begin()
    now = 20.0
    rate.begin()
    now = 45.0
    with pytest.raises(RateLimitExceededError) as caught:
        rate.begin()
    assert caught.value.retry_after == 15.0
    assert caught.value.requests_per_minute == 2
    now = 60.0
    rate.begin()
    with pytest.raises(RateLimitExceededError, match=r"20\.0 s"):
        rate.begin()


def test_without_a_limit_every_request_may_begin():
    rate = RequestRate(None, clock=lambda: 0.0)
    for _ in range(1000):
        rate.begin()
