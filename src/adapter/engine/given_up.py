"""Whether DSPy still wants what a thread computes.

dspy.Evaluate, dspy.Parallel and the optimizers run programs in threads. On Ctrl-C, or after too
many errors, they stop waiting for these threads without a word to what runs there. A request would
be computed to its end, and the interpreter would wait for it.
"""

from __future__ import annotations

import sys
import threading

from dspy.utils import parallelizer


def given_up() -> threading.Event | None:
    """The event that is set when DSPy gives up the jobs of this thread; None outside of such a job.

    DSPy hands it to nobody, so it is looked up among the callers of this function.
    """
    frame = sys._getframe().f_back
    while frame is not None:
        if frame.f_globals is vars(parallelizer):
            for value in frame.f_locals.values():
                if isinstance(value, parallelizer.ParallelExecutor):
                    jobs: threading.Event = value.cancel_jobs
                    return jobs
        frame = frame.f_back
    return None
