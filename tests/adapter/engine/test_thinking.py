"""Reasoning of a model in memory: its budget, where it goes, and how its tokens are counted."""

from __future__ import annotations

import dspy
import pytest
from chats import TOOLS_AND_THINKING
from dspy.lm15 import Config, Message, Reasoning, Request, TextPart, ThinkingPart

from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.models.pool import ModelPool
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter

BEGIN = "{{- '<|im_start|>assistant\n' }}"
THINK = "{%- if enable_thinking is not defined or enable_thinking %}<think>{%- endif %}"
THINKING_AT_ONCE = TOOLS_AND_THINKING.replace(BEGIN, BEGIN + "\n" + THINK)
"""A template that begins the reasoning itself, as DeepSeek R1 has it."""


@pytest.fixture(scope="module")
def loaded(write_tiny_model):
    """Random weights, biased below to write one letter for ever."""
    path = write_tiny_model(chat_template=THINKING_AT_ONCE, n_ctx_train=2048)
    with ModelPool(path.parent, context_length=1024) as pool:
        yield pool.load_model(path.stem)


@pytest.fixture
def letter(loaded):
    """What makes the model write nothing but the letter a."""
    [token] = loaded.answer_tokens("a")
    return {str(token): 100}


@pytest.fixture(params=["batched", "isolated"])
def engine(loaded, request):
    return LlamaCppEngine(loaded, LlamaCppConfig(loaded.name, seed=1, execution=request.param))


@pytest.fixture
def ask(engine, letter):
    def make(*, llamacpp=None, **config):
        extensions = {"logit_bias": letter, "metadata": {"llamacpp": llamacpp or {}}}
        config = Config(max_tokens=60, extensions=extensions, **config)
        return Request(engine.model, (Message.user("Hi"),), config=config)

    return make


@pytest.mark.parametrize("budget", [1, 20])
def test_a_budget_ends_the_reasoning(engine, loaded, ask, budget):
    response = engine.complete(ask(reasoning=Reasoning("low", thinking_budget=budget)))
    n_end = len(loaded.answer_tokens("</think>"))
    assert [type(part) for part in response.message.parts] == [ThinkingPart, TextPart]
    assert [part.text for part in response.message.parts] == [
        "a" * budget,
        "a" * (60 - budget - n_end),
    ]
    assert response.usage.reasoning_tokens == budget + n_end
    assert response.usage.output_tokens == 60
    assert [a.field for a in response.adaptations] == ["config.reasoning.effort"]


def test_a_budget_of_nothing(engine, loaded, ask):
    response = engine.complete(ask(llamacpp={"reasoning_budget_tokens": 0}))
    assert response.text == "a" * (60 - len(loaded.answer_tokens("</think>")))


def test_without_a_budget_it_continues(engine, ask):
    response = engine.complete(ask(reasoning=Reasoning("low")))
    assert not response.text
    assert response.usage.reasoning_tokens == 60


def test_a_budget_through_dspys_settings(engine, ask):
    asked = engine.complete(ask(reasoning=Reasoning("low", thinking_budget=20)))
    told = engine.complete(ask(llamacpp={"reasoning_budget_tokens": 20}))
    assert told.message == asked.message
    assert told.adaptations == ()


def test_switched_off_there_is_none(engine, ask):
    response = engine.complete(ask(reasoning=Reasoning("off")))
    assert response.text == "a" * 60
    assert not response.usage.reasoning_tokens


def test_the_stream_has_the_same_parts(engine, ask):
    request = ask(reasoning=Reasoning("low", thinking_budget=20))
    response = engine.complete(request)
    texts = {"thinking": "", "text": ""}
    for event in engine.stream(request):
        if event.type == "delta":
            texts[event.delta.type] += event.delta.text
    [thought, answer] = response.message.parts
    assert texts == {"thinking": thought.text, "text": answer.text}
    assert event.usage.reasoning_tokens == response.usage.reasoning_tokens


def test_in_dspy_reasoning_has_a_field_of_its_own(loaded, letter):
    """dspy.Reasoning takes what the model thought, and the other fields what it answered."""

    class Question(dspy.Signature):
        """Answer."""

        question: str = dspy.InputField()
        reasoning: dspy.Reasoning = dspy.OutputField()
        answer: str = dspy.OutputField()

    adapter = LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig(loaded.name, seed=1))
    metadata = {"llamacpp": {"reasoning_budget_tokens": 12}}
    with dspy.context(lm=adapter.lm, adapter=adapter):
        predict = dspy.Predict(Question, max_tokens=100, metadata=metadata, logit_bias=letter)
        found = predict(question="Why?")
    [entry] = adapter.lm.history
    n_end = len(loaded.answer_tokens("</think>"))
    assert str(found.reasoning) == "a" * 12
    assert found.answer.endswith("aa")
    assert "reasoning" not in entry["messages"][0]["content"]  # it is no field to write
    assert entry["usage"]["completion_tokens_details"]["reasoning_tokens"] == 12 + n_end
