"""Fixtures of the tests of the binding."""

from __future__ import annotations

import signal

import pytest
from decoding import PROMPT, logits_of
from memories import ARCHITECTURES

from pyllama import Batch, Context, Model


@pytest.fixture
def expected(tiny):
    """The logits after PROMPT, from a context that has seen nothing else."""
    with Context(tiny, n_ctx=256, n_threads=1) as fresh:
        return logits_of(fresh, PROMPT)


@pytest.fixture
def ready(context):
    """A context with one output to sample from."""
    context.decode(Batch.from_tokens(PROMPT))
    return context


@pytest.fixture(scope="session")
def memory_models(write_tiny_model):
    """A model of each architecture in memories.ARCHITECTURES, by its name."""
    made = {name: Model(write_tiny_model(architecture=name)) for name in ARCHITECTURES}
    yield made
    for model in made.values():
        model.close()


@pytest.fixture(params=ARCHITECTURES)
def memory_model(request, memory_models):
    """Each of them in turn."""
    return memory_models[request.param]


@pytest.fixture
def heeding_ctrl_c():
    """Python's own handler: a shell that starts programs in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
