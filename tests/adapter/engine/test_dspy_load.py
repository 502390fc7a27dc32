"""Five hundred requests at once through DSPy's own evaluation."""

from __future__ import annotations

import dspy
import pytest
from memory import MEASURABLE, earlier_objects_apart, memory_in_use

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool

REQUESTS = 500
THREADS = 16
GROWTH = 24 * 2**20
"""Bytes that may stay of the last 400 requests: contexts and caches have bounds of their own."""

OBJECTS = 80
"""Objects of Python that may stay of a request. A third of them do: answers, and lines of logs."""

pytestmark = pytest.mark.skipif(not MEASURABLE, reason="asks glibc 2.33 or later")


@pytest.fixture
def adapter(tiny_model_path):
    """A model of random weights: what it writes is noise, and another noise for each prompt."""
    with ModelPool(tiny_model_path.parent, context_length=512) as pool:
        loaded = pool.load_model(tiny_model_path.stem)
        config = LlamaCppConfig(loaded.name, seed=6, temperature=1.0, max_tokens=18)
        yield LlamaCppAdapter.from_loaded_model(loaded, config, use_json_adapter_fallback=False)


def test_five_hundred_requests_neither_mix_nor_grow(adapter):
    devset = [
        dspy.Example(question=f"What is {number}?").with_inputs("question")
        for number in range(REQUESTS)
    ]
    predict = dspy.Predict("question -> answer")

    def evaluate(examples, num_threads):
        evaluation = dspy.Evaluate(
            devset=examples,
            metric=lambda *_: 1.0,
            num_threads=num_threads,
            display_progress=False,
            max_errors=1,
        )
        return [prediction.answer for _, prediction, _ in evaluation(predict).results]

    # DSPy's own cache and history hold every answer on purpose.
    lm = adapter.lm.copy(cache=False)
    context = dspy.context(lm=lm, adapter=adapter, disable_history=True)
    with earlier_objects_apart(), context:
        together = evaluate(devset[:100], THREADS)
        before = memory_in_use()
        together += evaluate(devset[100:], THREADS)
        growth = memory_in_use().since(before)
        alone = evaluate(devset, 1)
    assert len(set(alone)) > REQUESTS // 2  # a mixed answer would show
    assert together == alone
    assert growth.allocated < GROWTH
    assert growth.blocks < OBJECTS * (REQUESTS - 100)
