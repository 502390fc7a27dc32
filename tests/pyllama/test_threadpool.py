"""Threadpools: computing with them, sharing them, and letting go of them."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest
from decoding import PROMPT, logits_of, run_python

import pyllama
from pyllama import Batch, Context, Threadpool


def test_a_pool_computes_the_same(context, expected):
    with Threadpool(2) as pool:
        assert "2 threads" in repr(pool)
        context.attach_threadpool(pool)
        assert (context.n_threads, context.n_threads_batch) == (2, 2)
        np.testing.assert_array_equal(logits_of(context, PROMPT), expected)
        context.detach_threadpool()
        np.testing.assert_array_equal(logits_of(context, PROMPT), expected)


def test_one_pool_for_tokens_and_one_for_batches(context, expected):
    with Threadpool(1) as one, Threadpool(3) as several:
        context.attach_threadpool(one, several)
        assert (context.n_threads, context.n_threads_batch) == (1, 3)
        np.testing.assert_array_equal(logits_of(context, PROMPT), expected)
        context.decode_token(1, len(PROMPT))
        context.attach_threadpool(several, one)
        assert (context.n_threads, context.n_threads_batch) == (3, 1)
        context.decode_token(1, len(PROMPT) + 1)


def test_a_pool_has_its_own_number_of_threads(context):
    """With more threads than the pool has, llama.cpp reads beyond the pool's memory."""
    with Threadpool(1) as pool:
        context.attach_threadpool(pool)
        with pytest.raises(ValueError, match="n_threads"):
            context.set_n_threads(4)
        context.detach_threadpool()
        context.set_n_threads(2, 3)
        assert (context.n_threads, context.n_threads_batch) == (2, 3)
        context.set_n_threads(2)
        assert (context.n_threads, context.n_threads_batch) == (2, 2)


@pytest.mark.parametrize("order", ["pool first", "context first", "dropped", "detached"])
def test_closing_in_any_order(tiny, order, expected):
    context, pool = Context(tiny, n_ctx=256, n_threads=1), Threadpool(2)
    context.attach_threadpool(pool)
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)
    freed = pool._handle._finalizer
    if order == "context first":
        context.close()
        assert freed.alive
    elif order == "detached":
        context.detach_threadpool()
    pool.close()
    assert pool.closed
    pool.close()
    if order == "dropped":
        del pool
        gc.collect()
    if order != "context first":
        # The context computes with it, or its backend looks at it once more.
        assert freed.alive
        np.testing.assert_array_equal(logits_of(context, PROMPT), expected)
        assert freed.alive == (order != "detached")
    context.close()
    del context
    gc.collect()
    assert not freed.alive


def test_a_closed_pool_cannot_be_attached(context):
    pool = Threadpool(1)
    pool.close()
    assert "closed" in repr(pool)
    with pytest.raises(pyllama.ClosedError):
        context.attach_threadpool(pool)
    with Threadpool(1) as other, pytest.raises(pyllama.ClosedError):
        context.attach_threadpool(other, pool)
    context.decode(Batch.from_tokens(PROMPT))


def test_contexts_that_share_pools_take_turns(tiny, expected):
    problems = []
    with Threadpool(2) as one, Threadpool(2) as other:

        def work(first, second):
            with Context(tiny, n_ctx=256) as own:
                own.attach_threadpool(first, second)
                for _ in range(10):
                    row = logits_of(own, PROMPT)
                    own.decode_token(1, len(PROMPT))
                    if not np.array_equal(row, expected):
                        problems.append(row)

        pairs = [(one, other), (other, one), (one, one), (other, other)]
        threads = [threading.Thread(target=work, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="placement needs Linux")
def test_threads_stay_on_their_processors(tiny_model_path):
    """In a process of its own: the calling thread is one of the pool's."""
    written = run_python(
        """
        import os, sys, threading
        import pyllama

        cpu = max(os.sched_getaffinity(0))
        model = pyllama.Model(sys.argv[1])
        with pyllama.Threadpool(2, cpus=[cpu], strict_cpu=True, poll=0) as pool:
            with pyllama.Context(model, n_ctx=256) as context:
                context.attach_threadpool(pool)
                context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        print(os.sched_getaffinity(0) == {cpu})
        """,
        tiny_model_path,
    )
    assert written == "True\n"


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"n_threads": 0}, ValueError, "n_threads"),
        ({"n_threads": 513}, ValueError, "n_threads"),
        ({"n_threads": 2.0}, TypeError, "n_threads"),
        ({"n_threads": 1, "cpus": []}, ValueError, "cpus"),
        ({"n_threads": 1, "cpus": [-1]}, ValueError, "cpus"),
        ({"n_threads": 1, "cpus": [512]}, ValueError, "cpus"),
        ({"n_threads": 1, "cpus": 3}, TypeError, "cpus"),
        ({"n_threads": 1, "cpus": "01"}, TypeError, "cpus"),
        ({"n_threads": 1, "prio": "urgent"}, ValueError, "prio"),
        ({"n_threads": 1, "poll": 101}, ValueError, "poll"),
        ({"n_threads": 1, "poll": float("nan")}, TypeError, "poll"),
    ],
)
def test_arguments_are_checked(arguments, error, name):
    with pytest.raises(error, match=name):
        Threadpool(**arguments)


@pytest.mark.parametrize("pool", [None, 2, "pool", object()])
def test_something_that_is_no_pool(context, pool):
    with pytest.raises(TypeError, match="threadpool must be"):
        context.attach_threadpool(pool)
    if pool is not None:
        with Threadpool(1) as good, pytest.raises(TypeError, match="threadpool_batch must be"):
            context.attach_threadpool(good, pool)


def test_the_interpreter_ends_with_pools_alive(tiny_model_path):
    written = run_python(
        """
        import sys
        import pyllama

        pool = pyllama.Threadpool(4)
        context = pyllama.Context(pyllama.Model(sys.argv[1]), n_ctx=256)
        context.attach_threadpool(pool)
        context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        print("done")
        """,
        tiny_model_path,
    )
    assert written == "done\n"
