"""Which language model answers a call that DSPy makes through LlamaCppAdapter."""

from __future__ import annotations

import asyncio

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from dspy_programs import run_configured
from fake_generator import adapter_of, echo, fake_model

from adapter.errors import ConfigurationError
from adapter.signatures.llama_cpp_adapter import LlamaCppAdapter

QA = "question -> answer"


def test_a_call_with_another_lm_goes_to_our_model_under_that_lms_history(configured):
    outer = DummyLM([{"answer": "from the dummy"}])
    adapter = configured(fake_model("answer: ours"), lm=outer)
    predict = dspy.Predict(QA)
    with dspy.track_usage() as tracker:
        assert predict(question="q").answer == "ours"
        assert asyncio.run(predict.acall(question="other")).answer == "ours"
    assert [entry["model"] for entry in outer.history] == [adapter.lm.model] * 2
    assert adapter.lm.history == []
    assert set(tracker.get_total_tokens()) == {adapter.lm.model}


def test_the_other_lms_settings_are_taken_over(configured):
    outer = dspy.LM(
        "openai/none",
        temperature=0.9,
        max_tokens=33,
        cache=False,
        num_retries=7,
        top_p=0.7,
        seed=4,
        stop=["END"],
        metadata={"llamacpp": {"min_p": 0.25}},
    )
    model = fake_model("answer: ours")
    adapter = configured(model, lm=outer, temperature=0.1, seed=1)
    predict = dspy.Predict(QA)
    predict(question="q")
    predict(question="q", config={"max_tokens": 44})
    first, second = model.generator.requests
    assert (first.max_tokens, first.seed, first.stop) == (33, 4, ("END",))
    assert (first.sampling.temperature, first.sampling.top_p) == (0.9, 0.7)
    assert first.sampling.min_p == 0.25
    assert second.max_tokens == 44
    routed = adapter._route(outer)
    assert (routed.cache, routed.num_retries) == (False, 7)


def test_what_the_other_lm_leaves_open_comes_from_our_config(configured):
    model = fake_model("answer: ours")
    configured(model, lm=dspy.LM("openai/none"), temperature=0.1, max_tokens=77)
    dspy.Predict(QA)(question="q")
    [asked] = model.generator.requests
    assert (asked.sampling.temperature, asked.max_tokens) == (0.1, 77)


def test_a_reasoning_models_max_tokens_are_taken_over_too(configured):
    model = fake_model("answer: ours", context_length=100_000)
    configured(model, lm=dspy.LM("openai/gpt-5", temperature=1.0, max_tokens=16000))
    dspy.Predict(QA)(question="q")
    assert model.generator.requests[0].max_tokens == 16000


def test_the_other_lms_callbacks_hear_of_the_call(configured):
    heard = []

    class Listener(dspy.utils.BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            heard.append(instance.model)

    outer = dspy.LM("openai/none", callbacks=[Listener()])
    adapter = configured(fake_model("answer: ours"), lm=outer)
    dspy.Predict(QA)(question="q")
    assert heard == [adapter.lm.model]


def test_a_copy_of_our_lm_is_used_as_it_is():
    adapter = adapter_of(fake_model("answer: ours"))
    copied = adapter.lm.copy(temperature=0.5, rollout_id=3)
    assert adapter._route(copied) is copied
    assert adapter._route(adapter.lm) is adapter.lm


def test_rollouts_of_another_lm_bypass_the_cache(configured):
    model = fake_model(echo)
    outer = dspy.LM("openai/none", temperature=1.0)
    configured(model, lm=outer)
    predict = dspy.Predict(QA)
    answers = {predict(question="q", lm=outer.copy(rollout_id=i)).answer for i in (1, 2, 3, 3)}
    assert len(answers) == 3


def lm_that_answers(text, model="dummy"):
    lm = DummyLM([{"answer": text}] * 9, adapter=dspy.ChatAdapter())
    lm.model = model
    return lm


@pytest.mark.parametrize(
    ("route_other_lms", "teacher_answers"), [(None, True), (True, False), (False, True)]
)
def test_a_teacher_answers_itself_unless_routed(route_other_lms, teacher_answers):
    model, teacher = fake_model("answer: ours"), lm_that_answers("the teacher's", "teacher")
    adapter = adapter_of(model, route_other_lms=route_other_lms)
    predict = dspy.Predict(QA)

    def program():
        assert predict(question="q").answer == "ours"
        with dspy.context(lm=teacher):
            return predict(question="q").answer

    answer = run_configured(program, lm=adapter.lm, adapter=adapter)
    assert ("the teacher's" in answer) is teacher_answers
    assert len(teacher.history) == 1
    assert len(model.generator.requests) == (1 if teacher_answers else 2)


@pytest.mark.parametrize(("route_other_lms", "ours"), [(None, True), (True, True), (False, False)])
def test_the_lm_that_dspy_is_configured_with_is_taken_over(route_other_lms, ours):
    configured, teacher = (
        lm_that_answers("the lm's own"),
        lm_that_answers("the teacher's", "teacher"),
    )
    adapter = adapter_of(fake_model("answer: ours"), route_other_lms=route_other_lms)
    predict = dspy.Predict(QA)

    def program():
        answers = [predict(question="q").answer]
        answers += [predict(question="q", lm=configured.copy(temperature=1.0)).answer]
        return answers, predict(question="q", lm=teacher).answer

    answers, taught = run_configured(program, lm=configured, adapter=adapter)
    assert [answer == "ours" for answer in answers] == [ours, ours]
    assert (taught == "ours") is (route_other_lms is True)


def test_an_adapter_without_a_model_formats_and_parses():
    model = fake_model("answer: ours")
    lm, adapter = adapter_of(model).lm, LlamaCppAdapter()
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(QA)(question="q").answer == "ours"
    assert model.rendered[0][-1]["content"] == "question: q"
    with pytest.raises(ConfigurationError, match="from_loaded_model"):
        _ = adapter.lm
    with pytest.raises(ConfigurationError, match="no lm"):
        adapter(None, {}, dspy.Signature(QA), [], {"question": "q"})


def test_two_adapters_keep_to_their_own_models():
    first = adapter_of(fake_model("answer: one"))
    second = adapter_of(fake_model("answer: two", fingerprint="ff00"))
    predict = dspy.Predict(QA)
    for _ in range(2):
        with dspy.context(lm=first.lm, adapter=first):
            assert predict(question="q").answer == "one"
        with dspy.context(lm=second.lm, adapter=second):
            assert predict(question="q").answer == "two"
        with dspy.context(lm=first.lm, adapter=second):
            assert predict(question="q").answer == "two"


def test_without_an_lm_the_adapter_answers_when_called_directly():
    adapter = adapter_of(fake_model("answer: ours"))
    signature = dspy.Signature(QA)
    assert adapter(None, {}, signature, [], {"question": "q"}) == [{"answer": "ours"}]


def test_predict_demands_an_lm_before_it_asks_the_adapter():
    """Why the documentation says dspy.configure(lm=adapter.lm, adapter=adapter)."""
    adapter = adapter_of(fake_model("answer: ours"))
    with dspy.context(adapter=adapter), pytest.raises(ValueError, match="No LM is loaded"):
        dspy.Predict(QA)(question="q")
