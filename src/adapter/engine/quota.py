"""The quota of one config: tokens in all, and requests in a minute.

A request may end anywhere: the garbage collector ends a stream that was dropped, in whichever
thread it runs, even within a block of this module. So what ends a request takes no lock.
"""

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
    """Stands for the tokens that one request has reserved, as long as it lives."""


class TokenBudget:
    """A token budget that several requests share. Thread-safe.

    A request reserves the tokens that it may take, and is charged for those that it took. A
    reservation that was never ended, because of Ctrl-C for example, ends when it is
    garbage-collected.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()  # for beginnings
        self._taken = 0
        self._unsettled: dict[TokenCount, None] = {}
        self._reserved: dict[weakref.ref[Reservation], int] = {}

    @property
    def used(self) -> int:
        """Tokens taken or reserved."""
        # In this order: a request that ends meanwhile counts twice rather than not at all.
        reserved = sum(self._reserved.copy().values())
        unsettled = sum(taken.total for taken in self._unsettled.copy())
        return reserved + unsettled + self._taken

    def reserve(self, reservation: Reservation, prompt: int, answer: int) -> int:
        """Reserve tokens for a prompt and its answer.

        Args:
            prompt: tokens of the prompt.
            answer: the most tokens that the answer may have.

        Returns:
            how many tokens the answer may have.

        Raises:
            TokenBudgetExhaustedError: no token is left for an answer.
        """
        with self._lock:
            self._settle()
            if self.limit is not None:
                used = self.used
                answer = min(answer, self.limit - used - prompt)
                if answer < 1:
                    raise TokenBudgetExhaustedError(used, self.limit)
            # The callback runs no Python code, in which Ctrl-C would be lost.
            reference = weakref.ref(reservation, self._reserved.pop)
            self._reserved[reference] = prompt + answer
            return answer

    def charge(self, reservation: Reservation, taken: TokenCount) -> None:
        """End a reservation, and charge for the tokens that were taken."""
        self._unsettled[taken] = None
        self._reserved.pop(weakref.ref(reservation), None)

    def _settle(self) -> None:
        """Add up the counts that are final."""
        for taken in list(self._unsettled):
            if not taken.pending:
                total = taken.total
                # Nothing comes between these two, no signal either: neither calls anything.
                self._taken += total
                del self._unsettled[taken]


class _Counted(NamedTuple):
    at: float
    taken: TokenCount


class RequestRate:
    """Limits how many requests may begin in a minute. Thread-safe.

    A request that took no token does not count.

    Args:
        clock: returns seconds.
    """

    def __init__(
        self, requests_per_minute: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = requests_per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[_Counted] = deque()
        self._unsettled: deque[_Counted] = deque()

    def begin(self, taken: TokenCount) -> _Counted:
        """Count a request that will take tokens.

        Raises:
            RateLimitExceededError: the last minute is full. The request does not count.
        """
        with self._lock:
            counted = _Counted(self._clock(), taken)
            if self._limit is None:
                return counted
            self._settle()
            while self._recent and counted.at - self._recent[0].at >= MINUTE:
                self._recent.popleft()
            if len(self._recent) >= self._limit:
                wait = self._recent[0].at + MINUTE - counted.at
                raise RateLimitExceededError(wait, self._limit)
            self._recent.append(counted)
        return counted

    def end(self, counted: _Counted) -> None:
        """Stop counting a request that took no token, once that is certain."""
        if self._limit is not None:
            self._unsettled.append(counted)

    def _settle(self) -> None:
        for each in list(self._unsettled):
            took_some = each.taken.total > 0
            if took_some or not each.taken.pending:
                if not took_some and each in self._recent:
                    self._recent.remove(each)
                self._unsettled.remove(each)


class Quota:
    """The quota of one config: a token budget and a request rate.

    A request is charged for the tokens that it took, however it ends. A request that took none,
    because it was refused or cancelled while it waited, does not count for the rate either.
    """

    def __init__(self, budget: TokenBudget, rate: RequestRate) -> None:
        self.budget = budget
        self._rate = rate

    @contextmanager
    def charged(
        self, taken: TokenCount, prompt: int, answer: int, *, is_first: bool = True
    ) -> Iterator[int]:
        """Grant a request the tokens of its prompt and of its answer, for a block.

        The block gets the number of tokens that the answer may have. At its end the request is
        charged for the tokens that `taken` counts. A step that is still running is added later.

        Args:
            is_first: False for the second part of a request.

        Raises:
            RateLimitExceededError: nothing is charged.
            TokenBudgetExhaustedError: nothing is charged.
        """
        counted = self._rate.begin(taken) if is_first else None
        reservation = Reservation()
        try:
            yield self.budget.reserve(reservation, prompt, answer)
        finally:
            self.budget.charge(reservation, taken)
            if counted is not None:
                self._rate.end(counted)
