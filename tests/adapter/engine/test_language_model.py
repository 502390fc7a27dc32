"""The settings that drive DSPy's own mechanisms: cache, retries, streaming."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace

import dspy
import pytest
from dspy.clients import execution
from dspy.lm15 import Message, Request, UnsupportedFeatureError
from dspy.utils import exceptions as public
from fake_generator import fake_model

from adapter.engine.config import LlamaCppConfig
from adapter.engine.language_model import ExpiringLM, language_model
from adapter.generation.sampling import MAX_TOP_K


def lm_of(model, **settings):
    return language_model(model, LlamaCppConfig(model.name, **settings))


def _sleep_of_dspy(monkeypatch, sleep):
    """Other threads may sleep meanwhile."""
    monkeypatch.setattr(execution, "time", SimpleNamespace(**{**vars(time), "sleep": sleep}))


@pytest.mark.parametrize(("enable_cache", "computed"), [(True, 1), (False, 2)])
def test_a_repeated_call_is_answered_from_the_cache_if_it_may(enable_cache, computed):
    model = fake_model("x")
    lm = lm_of(model, enable_cache=enable_cache)
    assert lm("Hello") == lm("Hello") == ["x"]
    assert len(model.generator.requests) == computed


def test_cached_answers_expire(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    model = fake_model("x")
    lm = lm_of(model, cache_ttl_secs=60)
    for now, computed in ((1000.0, 1), (1010.0, 1), (1080.0, 2), (1081.0, 2)):  # noqa: B007
        lm("Hello")
        assert len(model.generator.requests) == computed


def test_a_copy_expires_too(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    copied = lm_of(fake_model("x"), cache_ttl_secs=60).copy(temperature=0.5)
    before = copied.model
    now = 1080.0
    assert copied.model != before


def test_an_expiring_model_is_saved_by_its_own_name():
    lm = lm_of(fake_model("x"), cache_ttl_secs=60)
    state = lm.dump_state()
    assert state["model"] == lm.engine.model
    loaded = ExpiringLM.load_state(state, allow_custom_lm_class=True)
    assert loaded.model == lm.model
    assert loaded.engine is lm.engine


def test_too_many_requests_are_retried_by_dspy_as_often_as_the_config_says(monkeypatch):
    waits = []
    _sleep_of_dspy(monkeypatch, waits.append)
    lm = lm_of(
        fake_model("x"),
        requests_per_minute=1,
        max_retries=2,
        max_backoff_ms=200,
        enable_cache=False,
    )
    assert lm("one") == ["x"]
    with pytest.raises(public.LMRateLimitError, match="requests_per_minute"):
        lm("two")
    assert waits == [0.2, 0.2]


def test_a_token_budget_ends_with_an_error_that_is_not_retried(monkeypatch):
    _sleep_of_dspy(monkeypatch, pytest.fail)
    model = fake_model("x" * 40)
    lm = lm_of(model, token_budget_limit=80, enable_cache=False)
    assert len(lm("Hello")[0]) == 40
    prompt = len("User: Hello\nAssistant:")
    assert lm.engine.budget.used == prompt + 40
    with pytest.raises(public.LMProviderError, match="token budget"):
        lm("Hello")
    assert len(model.generator.requests) == 1


def test_an_answer_is_cut_where_the_budget_ends():
    model = fake_model("x" * 40)
    lm = lm_of(model, token_budget_limit=30, enable_cache=False)
    assert len(lm("Hello")[0]) == 30 - len("User: Hello\nAssistant:")
    [adaptation] = lm.history[-1]["adaptations"]
    assert (adaptation.field, adaptation.action) == ("config.max_tokens", "clamped")
    assert "budget" in adaptation.reason


def test_tokens_of_a_call_that_failed_are_given_back():
    model = fake_model("x" * 40)
    model.generator.before_token = lambda: 1 / 0
    lm = lm_of(model, token_budget_limit=100, enable_cache=False)
    with pytest.raises(public.LMProviderError, match="ZeroDivisionError"):
        lm("Hello")
    assert lm.engine.budget.used == len("User: Hello\nAssistant:")


def test_settings_of_llama_cpp_are_taken_wherever_dspys_own_are():
    model = fake_model("[[ ## answer ## ]]\nx")
    lm = lm_of(model, enable_cache=False)
    lm("Hello", min_p=0.25, logit_bias={5: 1.5, "6": -2}, top_k=-1, metadata={"tag": "a"})
    lm.copy(min_p=0.25, mirostat=2)("Hello", repeat_penalty=1.25, max_tokens=-1)
    with dspy.context(lm=lm):
        dspy.Predict("question -> answer", min_p=0.25)(question="?", config={"dry_multiplier": 0.5})
    asyncio.run(lm.acall("Hello", min_p=0.25))
    first, second, third, _ = model.generator.requests
    assert all(one.sampling.min_p == 0.25 for one in model.generator.requests)
    assert first.sampling.logit_bias == {5: 1.5, 6: -2.0}
    assert first.sampling.top_k == MAX_TOP_K
    assert (second.sampling.mirostat, second.sampling.repeat_penalty) == (2, 1.25)
    assert second.max_tokens == 4096 - len(second.prompt)
    assert third.sampling.dry_multiplier == 0.5
    with pytest.raises(public.LMInvalidRequestError, match="min_p"):
        lm("Hello", min_p=7)


def test_a_saved_lm_works_where_something_else_computes_the_same_model():
    lm = lm_of(fake_model("here"), seed=3, min_p=0.2)
    state = json.loads(json.dumps(lm.dump_state()))
    lm.engine.close()
    elsewhere = lm_of(fake_model("there", computation=("threads=64",)), seed=3, min_p=0.2)
    loaded = type(lm).load_state(state, allow_custom_lm_class=True)
    assert loaded.model == elsewhere.model != lm.model
    assert loaded("Hello") == ["there"]


def test_a_copy_under_another_name_is_not_answered():
    lm = lm_of(fake_model("x"))
    with pytest.raises(public.LMConfigurationError, match=r"'llamacpp/other'.*" + lm.model):
        lm.copy(model="llamacpp/other")("Hello")
    assert lm.copy(temperature=0.2)("Hello") == ["x"]


def test_streaming_can_be_switched_off():
    model = fake_model("x")
    engine = lm_of(model, enable_streaming=False).engine
    request = Request(model=engine.model, messages=(Message.user("Hello"),))
    with pytest.raises(UnsupportedFeatureError, match="enable_streaming=False") as caught:
        next(engine.stream(request))
    assert caught.value.feature == "stream"
    assert model.generator.requests == []
    assert engine.complete(request).text == "x"


def test_fine_tuning_is_refused_with_what_it_would_take():
    lm = language_model(fake_model("x"), LlamaCppConfig("fake"))
    with pytest.raises(public.LMUnsupportedFeatureError, match="convert the result to GGUF"):
        lm.finetune([], None)
