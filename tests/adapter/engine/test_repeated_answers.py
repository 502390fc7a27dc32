"""Texts that are ended because they repeat themselves: what the answer and the response say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import dspy
import pytest
from dspy.lm15 import Config, Message, Request

from adapter import LlamaCppAdapter, LlamaCppConfig, constrained

SETTING = "metadata['llamacpp']['end_repetitions']"


class Sort(dspy.Signature):
    """Sort it."""

    text: str = dspy.InputField()
    notes: str = dspy.OutputField()
    more: str = dspy.OutputField()
    kind: Literal["bug", "question"] = dspy.OutputField()


@pytest.fixture(scope="module")
def config(loaded):
    """Of a model that writes x wherever it may."""
    x = loaded.answer_tokens("x")[-1]
    return LlamaCppConfig(
        "tiny", temperature=0.0, seed=1, max_tokens=400, enable_cache=False, logit_bias={x: 100.0}
    )


@pytest.fixture(scope="module")
def adapter(loaded, config):
    return LlamaCppAdapter.from_loaded_model(loaded, config)


def ask(adapter, form=None, text="It burns.", **kwargs):
    lm = adapter.lm.copy()
    lm.history = []
    [answer] = (form or adapter)(lm, kwargs, Sort, [], {"text": text})
    return answer, lm.history[-1]["response"]


def is_ended(text):
    """Whether it is 64 times x, and perhaps other tokens that may come first."""
    return text.endswith("x" * 64) and text.count("x") in (64, 65) and "\n" not in text


def adaptations(response, path=SETTING):
    return [one for one in response.adaptations if one.field == path]


def test_a_text_is_ended_and_the_fields_behind_it_come(adapter):
    answer, response = ask(adapter)
    assert is_ended(answer["notes"])
    assert is_ended(answer["more"])
    assert answer["kind"] in ("bug", "question")
    assert response.finish_reason == "stop"
    assert response.usage.output_tokens < 200
    [told] = adaptations(response)
    assert told.applied == {"repeated": ["notes", "more"]}
    assert told.reason == "'notes', 'more' was ended, because it repeated itself"
    assert response.provider_data["repeated"] == ["notes", "more"]
    assert adaptations(response, "config.max_tokens") == []


def test_max_tokens_may_end_another_of_its_texts(adapter):
    answer, response = ask(adapter, max_tokens=120)
    assert is_ended(answer["notes"])
    assert len(answer["more"]) < 64
    assert response.provider_data["repeated"] == ["notes"]
    assert response.provider_data["shortened"] == ["more"]


def test_it_can_be_switched_off(loaded, config, adapter):
    off = LlamaCppAdapter.from_loaded_model(loaded, config, end_repeated_texts=False)
    in_call = {"metadata": {"llamacpp": {"end_repetitions": False}}}
    for answer, response in (ask(off), ask(adapter, **in_call)):
        assert len(answer["notes"]) > 200
        assert adaptations(response) == []
        assert "repeated" not in response.provider_data


def test_dspys_adapters_go_on_unless_asked(adapter):
    form = constrained(dspy.ChatAdapter())
    answer, response = ask(adapter, form)
    assert len(answer["notes"]) > 200
    assert adaptations(response) == []
    asked = {"metadata": {"llamacpp": {"end_repetitions": True}}}
    answer, response = ask(adapter, form, **asked)
    assert is_ended(answer["notes"])
    assert response.provider_data["repeated"] == ["notes", "more"]


def test_nothing_is_ended_in_answers_that_may_be_cut(adapter):
    asked = {"metadata": {"llamacpp": {"complete_answers": False}}}
    with pytest.raises(dspy.utils.exceptions.AdapterParseError, match="cut off"):
        ask(adapter, **asked)


def test_a_stream_reports_it_at_its_end(adapter):
    _, response = ask(adapter)
    lm = adapter.lm.copy()
    lm.history = []
    adapter(lm, {}, Sort, [], {"text": "It burns."})
    system, user = lm.history[-1]["messages"]
    request = Request(
        lm.model,
        (Message.user(user["content"]),),
        system=system["content"],
        config=Config(
            max_tokens=400,
            seed=1,
            extensions={"metadata": lm.history[-1]["kwargs"]["metadata"]},
        ),
    )
    *events, end = lm.engine.stream(request)
    assert end.provider_data["repeated"] == ["notes", "more"]
    assert "".join(one.delta.text for one in events if hasattr(one, "delta")) == response.text


def test_the_same_beside_others(adapter):
    texts = [f"It burns {n} times." for n in range(6)]
    alone = [ask(adapter, text=text)[1].text for text in texts]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda text: ask(adapter, text=text)[1].text, texts))
    assert together == alone
