"""A program may end at any moment of any request: no signal, no hang, and who waits is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXITS = Path(__file__).with_name("ends.py")
SEED = int(os.environ.get("PYLLAMA_EXIT_SEED", "1"))
RUNS = int(os.environ.get("PYLLAMA_EXIT_RUNS", "1"))
"""Of every way; more for a long search."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forked")
def test_a_program_ends_cleanly_whatever_is_computed(write_tiny_model):
    import ends as ways

    path = write_tiny_model(n_embd=256, n_ff=512, n_ctx_train=4096)
    done = subprocess.run(
        [sys.executable, EXITS, path, str(RUNS), str(SEED)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXITS.parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=600 * RUNS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ends) == RUNS * len(ways.EXPECTED)
    expected = {way.__name__: code for way, code in ways.EXPECTED.items()}
    odd = [end for end in ends if end[2] != expected[end[0]]]
    assert not odd, (odd, done.stderr[-2000:])
    written = {name: text for name, _, _, text in ends}
    assert len(written["workers_end_first"]) == 3
    assert len(written["executor_ends_first"]) == 6
    assert set(written["workers_end_first"] + written["executor_ends_first"]) <= {"length", "stop"}
    assert set(written["first_requests_after_the_main_thread"]) <= {"length", "stop"}
    assert len(written["first_requests_after_the_main_thread"]) == 2
    refused = sys.version_info[:2] == (3, 12)  # which starts no thread then
    expected = ["ModelNotLoadedError" if refused else "loaded"]
    assert written["first_load_after_the_main_thread"] == expected
    assert written["called_by_exit_handlers"][-1] == "ModelNotLoadedError"
    assert set(written["forked_children"]) <= {"0"}
