"""What one config grants its requests together: tokens in all, and requests in a minute."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from adapter.errors import RateLimitExceededError, TokenBudgetExhaustedError

MINUTE = 60.0


class TokenBudget:
    """Tokens that requests take from one limit, never more than it. Thread-safe.

    A request reserves what it may take, and gives back what it did not.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._used = 0

    @property
    def used(self) -> int:
        """Tokens taken or reserved."""
        return self._used

    def reserve(self, prompt: int, answer: int) -> int:
        """Reserve a prompt's tokens and up to so many for its answer; return how many of those.

        Raises TokenBudgetExhaustedError when there is no token left for an answer.
        """
        with self._lock:
            if self.limit is not None:
                answer = min(answer, self.limit - self._used - prompt)
                if answer < 1:
                    raise TokenBudgetExhaustedError(self._used, self.limit)
            self._used += prompt + answer
            return answer

    def give_back(self, tokens: int) -> None:
        """Return tokens that were reserved and not taken."""
        with self._lock:
            self._used -= tokens


class RequestRate:
    """Lets so many requests begin in any minute. Thread-safe.

    `clock` returns seconds.
    """

    def __init__(
        self, requests_per_minute: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = requests_per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: deque[float] = deque()

    def begin(self) -> None:
        """Count a request.

        Raises RateLimitExceededError, counting nothing, when the last minute is full.
        """
        if self._limit is None:
            return
        with self._lock:
            now = self._clock()
            while self._begun and now - self._begun[0] >= MINUTE:
                self._begun.popleft()
            if len(self._begun) >= self._limit:
                raise RateLimitExceededError(self._begun[0] + MINUTE - now, self._limit)
            self._begun.append(now)
