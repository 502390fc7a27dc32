"""DSPy gives up its jobs, and what they asked for ends."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import threading
import time
import traceback

import dspy
import pytest
from dspy.lm15 import LM15Error
from engines import engine_of, lm_of, request_to

from adapter import ModelPool
from adapter.engine.given_up import given_up

LENGTH = 2**16
LONG = "root ::= line{250}\nline ::= letter{250}\nletter ::= [a-z]"
"""A minute of writing for the model of these tests."""
HANGS = 60.0


@pytest.fixture
def loaded(tiny_model_path):
    with ModelPool(tiny_model_path.parent, context_length=LENGTH) as pool:
        yield pool.load_model(tiny_model_path.stem)


class Ask(dspy.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, question):
        return dspy.Prediction(answer=dspy.settings.lm(question, **self.settings)[0])


def evaluate(program, **settings):
    examples = [dspy.Example(question=f"{n}?").with_inputs("question") for n in range(6)]
    evaluation = dspy.Evaluate(
        devset=examples,
        metric=lambda *_: 1.0,
        num_threads=2,
        display_progress=False,
        **settings,
    )
    return evaluation(program)


def running_jobs(before):
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread.name.startswith("ThreadPoolExecutor")
    ]


def main_threads_codes():
    frame = sys._current_frames()[threading.main_thread().ident]
    return [each.f_code for each, _ in traceback.walk_stack(frame)]


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill() ends the process there")
def test_ctrl_c_in_an_evaluation_cancels_what_runs_and_the_next_one_works(loaded):
    began = threading.Barrier(3)

    class LongAnswers(Ask):
        def forward(self, question):
            began.wait(HANGS)
            return super().forward(question)

    def interrupt():
        began.wait(HANGS)
        # Elsewhere, such as in an import, Python itself may leave a lock behind.
        while not any(code is concurrent.futures.wait.__code__ for code in main_threads_codes()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = set(threading.enumerate())
    with dspy.context(lm=lm_of(loaded, max_tokens=LENGTH), disable_history=True):
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            evaluate(LongAnswers(grammar=LONG))
        thread.join()
        for job in running_jobs(before):
            job.join(HANGS)
        assert not running_jobs(before)
        assert evaluate(Ask(max_tokens=2)).score == 100.0


def test_too_many_errors_cancel_the_jobs_that_still_run(loaded):
    before = set(threading.enumerate())
    began = threading.Barrier(2)

    class FailsOnce(Ask):
        def forward(self, question):
            began.wait(HANGS)
            if question == "0?":
                raise RuntimeError("no answer")
            return super().forward(question)

    with dspy.context(lm=lm_of(loaded, max_tokens=LENGTH), disable_history=True):
        with pytest.raises(Exception, match="cancelled"):
            evaluate(FailsOnce(grammar=LONG), max_errors=1)
        for job in running_jobs(before):
            job.join(HANGS)
        assert not running_jobs(before)


def test_a_stream_in_a_job_that_was_given_up_is_an_error(loaded):
    engine = engine_of(loaded, max_tokens=LENGTH)
    asked = request_to(engine, extensions={"metadata": {"llamacpp": {"grammar": LONG}}})
    errors, ended = [], threading.Event()

    def stream(_item):
        events = engine.stream(asked)
        next(events)
        given_up().set()
        with pytest.raises(LM15Error, match="was cancelled") as caught:
            list(events)
        errors.append(caught.value)
        ended.set()

    executor = dspy.utils.parallelizer.ParallelExecutor(num_threads=2, disable_progress_bar=True)
    with pytest.raises(Exception, match="cancelled"):
        executor.execute(stream, [1])
    assert ended.wait(HANGS)  # the executor does not wait for its threads
    assert len(errors) == 1


def test_outside_of_such_a_job_nothing_is_given_up():
    assert given_up() is None
