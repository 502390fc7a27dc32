"""One body for two ways to call: what blocks needs no event loop."""

from __future__ import annotations

import asyncio

import pytest

from adapter.signatures.one_body import blocking, completed


async def doubled(ask, number):
    return 2 * await ask(number)


def test_both_ways_give_the_same():
    async def later(number):
        await asyncio.sleep(0)
        return number + 1

    assert completed(doubled(blocking(lambda number: number + 1), 3)) == 8
    assert asyncio.run(doubled(later, 3)) == 8


def test_an_error_of_a_call_passes_through():
    def fail(_number):
        raise KeyError("no such field")

    with pytest.raises(KeyError, match="no such field"):
        completed(doubled(blocking(fail), 3))


def test_what_does_not_block_is_not_run_without_a_loop():
    async def later(number):
        await asyncio.sleep(0)
        return number

    body = doubled(later, 3)
    with pytest.raises(AssertionError, match="does not block"):
        completed(body)
    body.close()
