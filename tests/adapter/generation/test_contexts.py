"""What contexts for requests say while they are made: nothing to a user who set nothing up."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
import synthetic

import pyllama
from adapter.generation.contexts import padded, warnings_as_info

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from adapter import ModelPool
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.generation.scoring import ScoringRequest

folder, options = sys.argv[1], eval(sys.argv[2])
with ModelPool(folder, **options) as pool:
    for execution in ("batched", "isolated"):
        generator = pool.load_model("tiny").generators[execution]
        requests = [
            GenerationRequest(tuple(range(5, 5 + length)), 8, Sampling(), length)
            for length in (10, 90, 200)
        ]
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(generator.generate, requests))
        generator.score(ScoringRequest((5, 6, 7), ((8,), (9, 10)), (2,)))
"""


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba", "jamba"])
@pytest.mark.parametrize("options", [{}, {"context_length": 300, "max_contexts": 3}])
def test_a_program_that_sets_nothing_up_prints_nothing(tmp_path, architecture, options):
    synthetic.write_model(tmp_path / "tiny.gguf", architecture=architecture, n_ctx_train=1000)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), repr(options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stderr == ""
    assert ran.stdout == ""


def test_only_the_thread_that_asks_is_left_out(tiny, caplog):
    """A context that somebody else makes meanwhile warns as ever."""
    begun, ended = threading.Event(), threading.Event()

    def make():
        with warnings_as_info():
            pyllama.Context(tiny, n_ctx=4096 * 8).close()
            begun.set()
            ended.wait()

    other = threading.Thread(target=make)
    with caplog.at_level(logging.INFO):
        other.start()
        begun.wait()
        (about_length,) = _about_length(caplog.records)
        assert about_length.levelno == logging.INFO
        pyllama.Context(tiny, n_ctx=4096 * 8).close()
        ended.set()
        other.join()
    assert [record.levelno for record in _about_length(caplog.records)] == [20, 30]


def test_what_is_info_is_left_out_where_only_warnings_are_wanted(tiny, caplog):
    with caplog.at_level(logging.WARNING, "pyllama.llama_cpp"), warnings_as_info():
        pyllama.Context(tiny, n_ctx=4096 * 8).close()
    assert not caplog.records


def _about_length(records):
    return [record for record in records if "> n_ctx_train" in record.getMessage()]


def test_a_sequence_is_as_long_as_llama_cpp_makes_it(tiny):
    for length in (1, 255, 256, 257, 1000):
        with pyllama.Context(tiny, n_ctx=3 * length, n_seq_max=3, n_batch=8) as context:
            assert context.n_ctx_seq == padded(length)
