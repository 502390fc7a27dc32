"""What one config grants its requests together: tokens in all, and requests in a minute."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from adapter.errors import RateLimitExceededError, TokenBudgetExhaustedError
from adapter.generation.token_count import TokenCount

MINUTE = 60.0


class Reservation:
    """Stands for tokens that one request has reserved, for as long as it lives."""


class TokenBudget:
    """Tokens that requests take from one limit, never more than it. Thread-safe.

    A request reserves what it may take, and is charged for what it took. What it reserved is free
    again at the latest when its reservation is collected: Ctrl-C may end it at any point.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0
        self._unsettled: list[TokenCount] = []
        self._reserved: dict[weakref.ref[Reservation], int] = {}

    @property
    def used(self) -> int:
        """Tokens taken or reserved."""
        unsettled = sum(taken.total for taken in self._unsettled)
        return self._taken + unsettled + sum(self._reserved.copy().values())

    def reserve(self, reservation: Reservation, prompt: int, answer: int) -> int:
        """Reserve a prompt's tokens and up to so many for its answer; return how many of those.

        Raises TokenBudgetExhaustedError when there is no token left for an answer.
        """
        with self._lock:
            self._settle()
            if self.limit is not None:
                used = self.used
                answer = min(answer, self.limit - used - prompt)
                if answer < 1:
                    raise TokenBudgetExhaustedError(used, self.limit)
            # The callback runs no Python, in which Ctrl-C would be lost.
            reference = weakref.ref(reservation, self._reserved.pop)
            self._reserved[reference] = prompt + answer
            return answer

    def charge(self, reservation: Reservation, taken: TokenCount) -> None:
        """End a reservation with the tokens that were taken, and those that still are."""
        with self._lock:
            self._unsettled.append(taken)
            self._reserved.pop(weakref.ref(reservation), None)
            self._settle()

    def _settle(self) -> None:
        """Add up what is known for good."""
        pending, settled = [], self._taken
        for taken in self._unsettled:
            if taken.pending:
                pending.append(taken)
            else:
                settled += taken.total
        self._taken, self._unsettled = settled, pending  # together: Ctrl-C may come anywhere


class _Begun(NamedTuple):
    at: float
    taken: TokenCount


class RequestRate:
    """Lets so many requests begin in any minute. Thread-safe.

    One that took no token does not count. `clock` returns seconds.
    """

    def __init__(
        self, requests_per_minute: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = requests_per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: deque[_Begun] = deque()
        self._unsettled: list[_Begun] = []

    def begin(self, taken: TokenCount) -> _Begun:
        """Count a request that will take so many tokens.

        Raises RateLimitExceededError, counting nothing, when the last minute is full.
        """
        with self._lock:
            begun = _Begun(self._clock(), taken)
            if self._limit is None:
                return begun
            self._settle()
            while self._begun and begun.at - self._begun[0].at >= MINUTE:
                self._begun.popleft()
            if len(self._begun) >= self._limit:
                wait = self._begun[0].at + MINUTE - begun.at
                raise RateLimitExceededError(wait, self._limit)
            self._begun.append(begun)
        return begun

    def end(self, begun: _Begun) -> None:
        """Count a request no more if it took nothing, once that is known for good."""
        if self._limit is not None:
            with self._lock:
                self._unsettled.append(begun)
                self._settle()

    def _settle(self) -> None:
        known = [each for each in self._unsettled if each.taken.total or not each.taken.pending]
        for each in known:
            if not each.taken.total and each in self._begun:
                self._begun.remove(each)
        self._unsettled = [each for each in self._unsettled if each not in known]


class Quota:
    """What one config grants: a budget of tokens and a rate of requests.

    A request is charged for the tokens that it took, whichever way it ends. One that took none,
    because it was refused or given up while it waited, does not count as a request either.
    """

    def __init__(self, budget: TokenBudget, rate: RequestRate) -> None:
        self.budget = budget
        self._rate = rate

    @contextmanager
    def charged(
        self, taken: TokenCount, prompt: int, answer: int, *, is_first: bool = True
    ) -> Iterator[int]:
        """Grant a request its prompt's tokens and up to so many for its answer, for a block.

        The block gets the number granted for the answer. At its end the request is charged for
        what `taken` counts by then, and after that in a step that is under way. `is_first` is False
        for the second part of a request.

        Raises RateLimitExceededError and TokenBudgetExhaustedError, charging nothing.
        """
        begun = self._rate.begin(taken) if is_first else None
        reservation = Reservation()
        try:
            yield self.budget.reserve(reservation, prompt, answer)
        finally:
            self.budget.charge(reservation, taken)
            if begun is not None:
                self._rate.end(begun)
