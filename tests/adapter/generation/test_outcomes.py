"""What a scheduler's thread hands over, and who is called back for it."""

from __future__ import annotations

import threading

import pytest

from adapter.generation.outcomes import Outcomes


@pytest.fixture
def outcomes():
    return Outcomes(None, threading.Event())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_listener_that_fails_is_called_again(outcomes, error):
    """What gives an outcome neither fails over it, nor gives it twice."""
    calls = []

    def ready():
        calls.append(len(calls))
        if len(calls) < 3:
            raise error

    outcomes.listen(ready)
    outcomes.put("one")
    assert calls == [0]
    outcomes.wake()
    outcomes.put("two")
    assert calls == [0, 1, 2]
    outcomes.wake()  # it was called
    assert calls == [0, 1, 2]
    assert [outcomes.take(lambda: True) for _ in range(2)] == ["one", "two"]
