"""Several threads, and decodes that are stopped from another one or by a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import numpy as np
import pytest
from decoding import (
    PROMPT,
    Decoding,
    logits_of,
    run_python,
    slow_batch,
    slow_context,
    until_decoding,
)

import pyllama
from pyllama import Batch, Context


@pytest.fixture(scope="module")
def slow_model(write_tiny_model):
    """A model whose context can be given work for many seconds: attention over 32k tokens."""
    with pyllama.Model(write_tiny_model(n_ctx_train=32_768)) as model:
        yield model


def test_threads_on_one_context_wait_for_each_other(context, expected):
    problems = []
    start = threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(20):
            with context._lock:
                row = logits_of(context, PROMPT)
            if not np.array_equal(row, expected):
                problems.append(row)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_threads_that_race_on_one_context_get_exceptions_at_worst(context, expected):
    """Without any order among them: positions clash, but nothing breaks."""
    start = threading.Barrier(4)
    unexpected = []
    chain = pyllama.SamplerChain([pyllama.Sampler.greedy()])

    def work(number):
        start.wait()
        try:
            for round_ in range(50):
                with contextlib.suppress(pyllama.DecodeError, IndexError):
                    context.decode(Batch.from_tokens([number, round_ % 200], pos=2 * round_))
                    context.logits()
                    chain.sample(context)
                if round_ % 10 == number:
                    context.memory.clear()
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)


def test_contexts_of_one_model_work_side_by_side(tiny, expected):
    problems = []

    def work():
        with Context(tiny, n_ctx=256, n_threads=1) as own:
            rows = [logits_of(own, PROMPT) for _ in range(10)]
            problems.extend(row for row in rows if not np.array_equal(row, expected))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_cancel_stops_a_decode(slow_model):
    with slow_context(slow_model) as context:
        decoding = Decoding(context, slow_batch())
        # A cancel that comes before llama.cpp has begun is forgotten, so ask until it is heard.
        while decoding.is_alive():
            context.cancel()
            decoding.join(0.001)
        assert isinstance(decoding.raised, pyllama.DecodeCancelled)
        assert context.memory.seq_pos_max(0) < 31_999
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        assert np.isfinite(context.logits()).all()


def test_cancel_without_a_decode_does_nothing(context, expected):
    context.cancel()
    np.testing.assert_array_equal(logits_of(context, PROMPT), expected)


def test_closing_waits_for_a_decode_in_another_thread(slow_model):
    context = slow_context(slow_model)
    decoding = Decoding(context, Batch.from_tokens(np.full(4000, 7)))
    context.close()
    decoding.join()
    assert context.closed
    assert decoding.raised is None


def test_closing_the_model_waits_for_a_decode_in_another_thread(write_tiny_model):
    model = pyllama.Model(write_tiny_model(n_ctx_train=32_768))
    context = slow_context(model)
    decoding = Decoding(context, Batch.from_tokens(np.full(4000, 7)))
    model.close()
    decoding.join()
    assert context.closed
    assert decoding.raised is None


def test_threads_that_close_and_use_at_once(tiny_model_path):
    for _ in range(10):
        model = pyllama.Model(tiny_model_path)
        contexts = [Context(model, n_ctx=256, n_threads=1) for _ in range(3)]
        unexpected = []
        start = threading.Barrier(5)

        def use(context, start=start, unexpected=unexpected):
            start.wait()
            try:
                for pos in range(200):
                    context.decode_token(1, pos)
                    context.model.vocab.tokenize("hello")
            except pyllama.ClosedError:
                pass
            except BaseException as error:
                unexpected.append(error)

        def close(model=model, start=start):
            start.wait()
            model.close()

        threads = [threading.Thread(target=use, args=[context]) for context in contexts]
        threads += [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not unexpected
        assert model.closed


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_stops_a_decode(write_tiny_model):
    written = run_python(
        """
        import logging, os, signal, sys, threading
        logging.disable()
        import pyllama

        # A shell that starts programs in the background has them ignore SIGINT.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        model = pyllama.Model(sys.argv[1])
        context = pyllama.Context(model, n_ctx=32768, n_batch=32768, n_ubatch=64, n_threads=1)
        batch = pyllama.Batch.from_tokens([7] * 32000)

        def interrupt():
            while context._lock.acquire(blocking=False):
                context._lock.release()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            context.decode(batch)
        except KeyboardInterrupt:
            print("interrupted at", context.memory.seq_pos_max(0))
        context.memory.clear()
        context.decode(pyllama.Batch.from_tokens([1, 2, 3]))
        print(context.logits().size)
        """,
        write_tiny_model(n_ctx_train=32_768),
    )
    interrupted, size = written.splitlines()
    assert interrupted.startswith("interrupted at ")
    assert int(interrupted.split()[-1]) < 31_999
    assert int(size) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_signal_handler_that_raises_stops_a_decode(slow_model):
    class _Alarm(Exception):
        pass

    def ring(*_):
        raise _Alarm

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with slow_context(slow_model) as context:

            def send():
                until_decoding(context, threading.main_thread())
                os.kill(os.getpid(), signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(_Alarm):
                context.decode(slow_batch())
            sender.join()
            assert context.memory.seq_pos_max(0) < 31_999
    finally:
        signal.signal(signal.SIGUSR1, before)
