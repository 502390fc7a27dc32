"""DSPy on the real model: what users do first, and what breaks other bindings."""

from __future__ import annotations

from typing import Literal

import dspy
import pytest

from adapter import LlamaCppAdapter, LlamaCppConfig, ModelPool
from adapter.models.hardware import HardwareManager

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def pool(smollm2_path):
    with ModelPool(smollm2_path.parent, context_length=1024) as pool:
        yield pool


@pytest.fixture(scope="module")
def loaded(pool, smollm2_path):
    return pool.load_model(smollm2_path.stem)


@pytest.fixture
def adapter(loaded):
    config = LlamaCppConfig(loaded.name, max_tokens=24, temperature=0.0)
    return LlamaCppAdapter.from_loaded_model(loaded, config)


def test_usage_equals_a_separate_tokenisation(loaded, adapter):
    with dspy.context(lm=adapter.lm, adapter=adapter, track_usage=True):
        prediction = dspy.Predict("question -> answer")(question="What is the capital of France?")
    entry = adapter.lm.history[-1]
    usage = prediction.get_lm_usage()[adapter.lm.model]
    prompt = loaded.render(entry["messages"]).prompt
    completion = entry["outputs"][0]
    completion = completion["text"] if isinstance(completion, dict) else completion

    assert usage["prompt_tokens"] == len(loaded.tokenize(prompt))
    # BOS and special tokens are the prompt's; the answer is plain text.
    with loaded.lease() as model:
        assert usage["completion_tokens"] == len(
            model.vocab.tokenize(completion, add_special=False)
        )
    assert "Paris" in prediction.answer


def test_twelve_threads_at_once_answer_like_one(smollm2_path):
    """On a CPU: GPUs choose kernels by the size of a batch, and nothing is promised there."""
    hardware = HardwareManager(backend="cpu")
    with ModelPool(smollm2_path.parent, context_length=1024, hardware=hardware) as pool:
        loaded = pool.load_model(smollm2_path.stem)
        config = LlamaCppConfig(loaded.name, max_tokens=24, temperature=0.0)
        check_twelve_threads(LlamaCppAdapter.from_loaded_model(loaded, config))


def check_twelve_threads(adapter):
    questions = [f"What is {n} plus {n}?" for n in range(12)]
    ask = dspy.Predict("question -> answer", cache=False)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        alone = [ask(question=question).answer for question in questions]
        pairs = [(ask, dspy.Example(question=q).with_inputs("question")) for q in questions]
        together = dspy.Parallel(num_threads=12, disable_progress_bar=True)(pairs)
    assert [prediction.answer for prediction in together] == alone


def test_a_few_demos_lead_to_a_typed_answer(adapter):
    class Sentiment(dspy.Signature):
        """Say whether the review is positive or negative."""

        review: str = dspy.InputField()
        sentiment: Literal["positive", "negative"] = dspy.OutputField()

    classify = dspy.Predict(Sentiment)
    classify.demos = [
        dspy.Example(review="I loved every minute.", sentiment="positive"),
        dspy.Example(review="A waste of time.", sentiment="negative"),
        dspy.Example(review="Wonderful and moving.", sentiment="positive"),
        dspy.Example(review="Boring and far too long.", sentiment="negative"),
    ]
    with dspy.context(lm=adapter.lm, adapter=adapter):
        assert classify(review="I enjoyed it a lot.").sentiment in ("positive", "negative")


def test_a_prompt_longer_than_the_context_is_dspys_own_error(adapter):
    with (
        dspy.context(lm=adapter.lm, adapter=adapter),
        pytest.raises(dspy.ContextWindowExceededError, match="1024"),
    ):
        dspy.Predict("text -> summary")(text="word " * 2000)
