"""Fixtures of the tests of the binding."""

from __future__ import annotations

import pytest
from decoding import PROMPT, logits_of

from pyllama import Context


@pytest.fixture
def expected(tiny):
    """The logits after PROMPT, from a context that has seen nothing else."""
    with Context(tiny, n_ctx=256, n_threads=1) as fresh:
        return logits_of(fresh, PROMPT)
