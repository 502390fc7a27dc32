"""Answers that are complete for every max_tokens that can hold the shortest one."""

from __future__ import annotations

import json
from html import unescape
from typing import Literal

import dspy
import pytest
from dspy.lm15 import Config, Message, Request
from dspy.streaming import StreamListener
from dspy.utils.exceptions import LMError

from adapter import CutAnswerError, LlamaCppAdapter, LlamaCppConfig, constrained


class Sort(dspy.Signature):
    """Sort it."""

    text: str = dspy.InputField()
    notes: str = dspy.OutputField()
    tags: list[str] = dspy.OutputField()
    kind: Literal["bug", "question"] = dspy.OutputField()


def adapter_of(loaded, **settings):
    settings = {"temperature": 1.0, "seed": 1, "enable_cache": False, **settings}
    return LlamaCppAdapter.from_loaded_model(loaded, LlamaCppConfig("tiny", **settings))


def ask(adapter, form=None, **kwargs):
    """The answer of an adapter's form, and the response."""
    lm = adapter.lm.copy()
    lm.history = []
    [answer] = (form or adapter)(lm, kwargs, Sort, [], {"text": "It burns."})
    return answer, lm.history[-1]["response"]


def fewest(adapter, form=None):
    """What the error says that max_tokens must be."""
    with pytest.raises(LMError, match=r"max_tokens=1 is not allowed: .* at least") as refused:
        ask(adapter, form, max_tokens=1)
    return int(str(refused.value).partition("at least ")[2].partition(",")[0])


@pytest.fixture
def nothing_computed(loaded, monkeypatch):
    """Has every computation fail."""
    for generator in loaded.generators.values():
        monkeypatch.setattr(generator, "stream", None)


@pytest.mark.parametrize(
    "form",
    [None, constrained(dspy.ChatAdapter()), constrained(dspy.JSONAdapter())],
    ids=["LlamaCppAdapter", "ChatAdapter", "JSONAdapter"],
)
def test_every_max_tokens_that_holds_an_answer_gives_one(loaded, form):
    adapter = adapter_of(loaded)
    least = fewest(adapter, form)
    for more in (0, 1, 2, 7, 30):
        answer, response = ask(adapter, form, max_tokens=least + more)
        assert response.finish_reason == "stop"
        assert response.usage.output_tokens <= least + more
        assert answer["kind"] in ("bug", "question")
        assert all(isinstance(tag, str) for tag in answer["tags"])


@pytest.mark.usefixtures("nothing_computed")
def test_fewer_are_refused_before_anything_is_computed(loaded):
    adapter = adapter_of(loaded)
    least = fewest(adapter)
    with pytest.raises(LMError, match=f"max_tokens={least - 1} .* at least {least}, "):
        ask(adapter, max_tokens=least - 1)


@pytest.mark.usefixtures("nothing_computed")
def test_a_context_that_holds_no_answer_is_reported(loaded):
    prompt = len(loaded.tokenize(loaded.render([{"role": "user", "content": "Hi."}])))
    lm = adapter_of(loaded, context_length=prompt + 3, max_tokens=None).lm
    config = Config(extensions={"metadata": {"llamacpp": {"grammar": 'root ::= "abcdefgh"'}}})
    request = Request(lm.model, (Message.user("Hi."),), config=config)
    with pytest.raises(LMError, match="of at least 8 tokens included"):
        lm(request)


def test_what_was_shortened_is_reported(loaded):
    adapter = adapter_of(loaded)
    _, response = ask(adapter, max_tokens=fewest(adapter) + 12)
    [told] = [one for one in response.adaptations if one.field == "config.max_tokens"]
    assert "notes" in told.applied["shortened"]
    assert "'notes'" in told.reason
    assert response.provider_data["shortened"] == told.applied["shortened"]


def test_a_stream_reports_it_at_its_end(loaded):
    adapter = adapter_of(loaded)
    least = fewest(adapter)
    _, response = ask(adapter, max_tokens=least + 12)
    grammar = adapter.lm.copy()
    grammar.history = []
    adapter(grammar, {"max_tokens": least + 12}, Sort, [], {"text": "It burns."})
    metadata = grammar.history[-1]["kwargs"]["metadata"]
    prompt = grammar.history[-1]["messages"]
    request = Request(
        adapter.lm.model,
        (Message.user(prompt[-1]["content"]),),
        system=prompt[0]["content"],
        config=Config(max_tokens=least + 12, seed=1, extensions={"metadata": metadata}),
    )
    *events, end = adapter.lm.engine.stream(request)
    assert end.finish_reason == "stop"
    assert "notes" in end.provider_data["shortened"]
    assert "".join(e.delta.text for e in events if hasattr(e, "delta")) == response.text


@pytest.mark.parametrize("form", [dspy.ChatAdapter, dspy.XMLAdapter])
def test_dspys_listener_sees_no_marker_that_ends_a_text(loaded, form):
    """It takes a marker of more than ten pieces for text. This vocabulary spells each letter."""
    program = dspy.Predict("question -> story, moral_of_the_story")
    listener = StreamListener("story")
    stream = dspy.streamify(program, stream_listeners=[listener], async_streaming=False)
    with dspy.context(lm=adapter_of(loaded).lm, adapter=constrained(form())):
        *chunks, prediction = stream(question="Who?", config={"max_tokens": 150})
    streamed = unescape("".join(chunk.chunk for chunk in chunks))  # XML has &lt; for <
    assert streamed.strip() == prediction.story.strip()
    assert chunks[-1].is_last_chunk


def test_a_setting_lets_answers_be_cut_off(loaded):
    off = {"llamacpp": {"complete_answers": False}}
    for adapter, kwargs in (
        (adapter_of(loaded, complete_answers=False), {}),
        (adapter_of(loaded), {"metadata": off}),
    ):
        with pytest.raises(CutAnswerError):
            ask(adapter, max_tokens=8, **kwargs)


def test_json_of_a_schema_is_closed(loaded):
    schema = {
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"type": "string"}}},
        "required": ["names"],
    }
    lm = adapter_of(loaded).lm
    for max_tokens in (20, 40, 60):
        config = Config(
            response_format={"type": "json_schema", "schema": schema}, max_tokens=max_tokens
        )
        response = lm(Request(lm.model, (Message.user("Names?"),), config=config))
        assert response.finish_reason == "stop"
        assert isinstance(json.loads(response.text)["names"], list)


def test_an_answer_without_a_form_is_cut_as_ever(loaded):
    lm = adapter_of(loaded, max_tokens=5).lm
    response = lm(Request(lm.model, (Message.user("Hi."),), config=Config()))
    assert response.finish_reason in ("length", "stop")
    assert response.usage.output_tokens <= 5
    assert "shortened" not in response.provider_data


def test_probabilities_are_told_of_a_shortened_answer(loaded):
    adapter = adapter_of(loaded)
    least = fewest(adapter)
    _, response = ask(adapter, max_tokens=least + 9, logprobs=True)
    assert response.finish_reason == "stop"
    assert len(response.logprobs) == response.usage.output_tokens


@pytest.mark.model
def test_a_shortened_text_is_the_beginning_of_the_longer_one(smollm2_adapter):
    """No word is spoilt where it ends: greedily, nothing else is written before that."""
    think = dspy.ChainOfThought("question -> answer")

    def reasoning(max_tokens):
        smollm2_adapter(max_tokens=max_tokens)
        return think(question="Why is the sky blue?").reasoning

    whole = reasoning(120)
    for max_tokens in (30, 35, 40, 45, 60):
        shortened = reasoning(max_tokens)
        assert len(shortened) > 20
        assert whole.startswith(shortened)
        assert not whole[len(shortened)].isalpha()
