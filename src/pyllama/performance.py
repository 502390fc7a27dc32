"""What a context measured about itself (llama_perf_context)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Performance:
    """Times and counts since a context was made, or since ``Context.reset_performance``.

    Times are measured only in contexts with ``no_perf=False``; in others they are 0. llama.cpp
    counts at least 1 token, so dividing by a count is safe. A call whose outputs nobody read or
    waited for is counted together with the next call.
    """

    #: Time of the start on a clock of its own, in milliseconds.
    t_start_ms: float
    #: Time from loading the model to the first result, in milliseconds.
    t_load_ms: float
    #: Time spent on calls with several tokens, in milliseconds.
    t_p_eval_ms: float
    #: Time spent on calls with one token, in milliseconds.
    t_eval_ms: float
    #: Tokens processed by calls with several.
    n_p_eval: int
    #: Tokens processed by calls with one.
    n_eval: int
    #: Calls that used the compute graph of the call before.
    n_reused: int
