"""DSPy's own adapters over the engine, on the real model."""

from __future__ import annotations

import asyncio

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from fake_generator import fake_model

from adapter.engine.config import LlamaCppConfig
from adapter.signatures.bound_answers import CutAnswerError
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter

pytestmark = pytest.mark.model

DEMOS = [
    dspy.Example(question="1+1?", answer=2),
    dspy.Example(question="3+4?", answer=7),
]


def predict_sums():
    predict = dspy.Predict("question -> answer: int", cache=False)
    predict.demos = DEMOS
    return predict


@pytest.mark.parametrize(
    ("adapter", "form"),
    [
        (dspy.ChatAdapter(use_json_adapter_fallback=False), "[[ ## answer ## ]]"),
        (dspy.JSONAdapter(), '"answer":'),
        (dspy.XMLAdapter(), "<answer>"),
        (BAMLAdapter(), '"answer":'),
    ],
    ids=["chat", "json", "xml", "baml"],
)
def test_dspys_adapters_get_their_form_from_the_model(smollm2_adapter, adapter, form):
    ours = smollm2_adapter(max_tokens=20)
    predict = predict_sums()
    with dspy.context(adapter=adapter):
        assert isinstance(predict(question="2+2?").answer, int)
        assert isinstance(asyncio.run(predict.acall(question="2+2?")).answer, int)
    first, second = (entry["outputs"][0] for entry in ours.lm.history)
    assert form in first
    assert first == second


def test_two_step_adapter_has_its_answers_read_by_another_lm(smollm2_adapter):
    """The reader's answers are scripted: SmolLM2 cannot extract fields without an example."""
    ours = smollm2_adapter(max_tokens=8)
    reader = fake_model("[[ ## answer ## ]]\n4\n\n[[ ## completed ## ]]")
    extraction = LlamaCppAdapter.from_loaded_model(reader, LlamaCppConfig("fake")).lm
    predict = predict_sums()
    with dspy.context(adapter=dspy.TwoStepAdapter(extraction)):
        assert predict(question="2+2?").answer == 4
        assert asyncio.run(predict.acall(question="2+2?")).answer == 4
    assert len(ours.lm.history) == len(extraction.history) == 2
    assert ours.lm.history[0]["outputs"][0] in reader.rendered[0][-1]["content"]


def test_our_adapter_asks_once_where_the_answer_is_cut(smollm2_adapter):
    """Another form would be cut before its integer, too."""
    adapter = smollm2_adapter(max_tokens=1, complete_answers=False)
    with pytest.raises(CutAnswerError, match="max_tokens=1"):
        predict_sums()(question="2+2?")
    assert len(adapter.lm.history) == 1
