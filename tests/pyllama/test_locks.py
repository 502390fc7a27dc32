"""Ctrl-C at every point of a call that takes several locks: none stays locked."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path

import pytest
from interrupts import Interrupt

import pyllama
from pyllama import Batch, Context, Sampler, SamplerChain
from pyllama._locks import holding

_FOLDERS = (str(Path(pyllama.__file__).parent), "contextlib.py")


def is_looked_at(code):
    return code.co_filename.startswith(_FOLDERS[0]) or code.co_filename.endswith(_FOLDERS[1])


def free_for_others(locks):
    """Whether another thread can take each of these."""
    found = []

    def look():
        for lock in locks:
            found.append(lock.acquire(blocking=False))
            if found[-1]:
                lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return all(found)


@pytest.mark.parametrize("n_locks", [0, 1, 8, 9, 30])
def test_all_are_held_and_given_back(n_locks):
    locks = [threading.RLock() for _ in range(n_locks)]
    assert holding(locks, lambda: any(free_for_others([lock]) for lock in locks)) is False
    assert free_for_others(locks)
    with pytest.raises(ZeroDivisionError):
        holding(locks, lambda: 1 // 0)
    assert free_for_others(locks)


def test_ctrl_c_while_several_sample_leaves_no_lock(tiny):
    context = Context(tiny, n_ctx=256, n_threads=1)
    batch = Batch(3)
    for index in range(3):
        batch.add(5 + index, index, (0,), output=True)
    context.decode(batch)
    chains = [SamplerChain([Sampler.greedy()]) for _ in range(3)]
    locks = [context._lock, *(chain._lock for chain in chains)]
    for at in count():
        try:
            with Interrupt(at, is_looked_at):
                pyllama.sample_each(context, dict(enumerate(chains)), n_threads=1)
        except KeyboardInterrupt:
            pass
        else:
            break
        assert free_for_others(locks), f"a lock is held after an interrupt at event {at}"
    assert at > 20
    context.close()
