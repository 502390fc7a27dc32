"""What a chat template is given beside the conversation: variables, and switches for reasoning."""

from __future__ import annotations

import dspy
import pytest
from chats import TOOLS_AND_THINKING
from dspy.lm15 import Config, Message, Reasoning, Request
from fake_generator import adapter_of, fake_model

from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.errors import InvalidParameterError
from adapter.models.template_variables import variables_in

SWITCHES = """
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}
{%- if enable_thinking is defined and not enable_thinking %}[at once]{% endif %}
{%- if tone is defined %}[{{ tone }}]{% endif %}
{%- if reasoning_effort is defined %}[effort {{ reasoning_effort }}]{% endif %}assistant:"""


@pytest.fixture
def model():
    return fake_model("x", source=SWITCHES)


def answer_of(model, *, config=None, llamacpp=None, **settings):
    engine = LlamaCppEngine(model, LlamaCppConfig(model.name, **(config or {})))
    extensions = {"metadata": {"llamacpp": llamacpp or {}}}
    asked = Config(extensions=extensions, **settings)
    return engine.complete(Request(engine.model, (Message.user("Hi"),), config=asked))


def prompt_of(model):
    return "".join(map(chr, model.generator.requests[-1].prompt)).partition("Hi\n")[2]


def test_variables_come_from_the_config_and_from_the_request(model):
    asked = {"chat_template_kwargs": {"tone": "dry", "enable_thinking": False}}
    assert answer_of(model, config=asked).adaptations == ()
    assert prompt_of(model) == "[at once][dry]assistant:"
    told = answer_of(model, config=asked, llamacpp={"chat_template_kwargs": {"tone": "warm"}})
    assert told.adaptations == ()
    assert prompt_of(model) == "[at once][warm]assistant:"


def test_a_request_for_reasoning_comes_before_the_config(model):
    config = {"chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low"}}
    answer_of(model, config=config, reasoning=Reasoning("high"))
    assert prompt_of(model) == "[effort high]assistant:"


def test_a_requests_own_variables_come_before_all(model):
    own = {"chat_template_kwargs": {"reasoning_effort": "low"}}
    response = answer_of(model, llamacpp=own, reasoning=Reasoning("high"))
    assert prompt_of(model) == "[effort low]assistant:"
    [told] = response.adaptations
    assert (told.field, told.asked, told.applied) == ("config.reasoning", "high", "low")


@pytest.mark.parametrize("where", ["config", "llamacpp"])
def test_a_variable_that_the_template_never_reads_is_reported(model, where):
    asked = {where: {"chat_template_kwargs": {"enable_thinkin": False}}}
    [told] = answer_of(model, **asked).adaptations
    assert told.field == "chat_template_kwargs.enable_thinkin"
    assert told.action == "dropped"
    assert "did you mean 'enable_thinking'" in told.reason


def test_reasoning_off_without_a_switch_is_reported():
    source = TOOLS_AND_THINKING.replace("enable_thinking", "thoughtful")
    model = fake_model("<think>so</think>x", source=source)
    assert model.capabilities["supports_thinking"]
    [told] = answer_of(model, reasoning=Reasoning("off")).adaptations
    assert (told.field, told.action, told.asked) == ("config.reasoning", "dropped", "off")


@pytest.mark.parametrize(
    "value",
    [
        "{}", ["tone"], {"messages": []}, {"tools": []}, {"add_generation_prompt": False},
        {"bos_token": ""}, {1: 2}, {"": 1}, {"a b": 1}, {"tone": object()}, {"tone": float("nan")},
        {"tone": "x" * 100_001}, {"enable_thinking": "false"}, {"enable_thinking": 0},
    ],
)  # fmt: skip
def test_what_no_template_can_be_given_is_refused(model, value):
    with pytest.raises(InvalidParameterError, match="chat_template_kwargs"):
        LlamaCppConfig("m", chat_template_kwargs=value)
    with pytest.raises(Exception, match=r"chat_template_kwargs|JSON-compatible"):
        answer_of(model, llamacpp={"chat_template_kwargs": value})
    assert model.generator.requests == []


def test_values_that_nest_too_deep_are_refused():
    deep: list = []
    for _ in range(60):
        deep = [deep]
    with pytest.raises(InvalidParameterError):
        LlamaCppConfig("m", chat_template_kwargs={"a": deep})
    deep.append(deep)
    with pytest.raises(InvalidParameterError):
        LlamaCppConfig("m", chat_template_kwargs={"a": deep})


def test_a_config_holds_its_own_copy_and_stays_a_key(model):
    given = {"documents": [{"text": "a"}]}
    config = LlamaCppConfig("fake", chat_template_kwargs=given)
    engine = LlamaCppEngine(model, config)
    given["documents"].append({"text": "b"})
    config.chat_template_kwargs["tone"] = "dry"
    assert engine.config.chat_template_kwargs == {"documents": [{"text": "a"}]}
    assert len({config, LlamaCppConfig("fake")}) == 2
    assert LlamaCppConfig.from_dict({"model_name": "m", "chat_template_kwargs": given}) is not None


def test_what_changes_answers_is_in_the_lms_name_and_in_dspys_key(model):
    names = {
        LlamaCppEngine(model, LlamaCppConfig("fake", chat_template_kwargs=kwargs)).model
        for kwargs in ({}, {"tone": "dry"}, {"tone": "warm"})
    }
    assert len(names) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template_kwargs": {"tone": "dry"}},
        {"extra_body": {"chat_template_kwargs": {"tone": "dry"}}},
        {"metadata": {"llamacpp": {"chat_template_kwargs": {"tone": "dry"}}}},
    ],
)
def test_a_program_may_give_them(settings):
    model = fake_model("answer: x", source=SWITCHES)
    adapter = adapter_of(model)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        dspy.Predict("question -> answer")(question="Hi")
        dspy.Predict("question -> answer", **settings)(question="Hi")
        dspy.Predict("question -> answer", **settings)(question="Hi")
    first, second = ("".join(map(chr, each.prompt)) for each in model.generator.requests)
    assert "[dry]" not in first
    assert second.endswith("[dry]assistant:")


def test_the_names_in_a_template():
    source = (
        "{# hidden #} text {{ a.b }}{% if c is defined and 'd' in \"e\" %}{{ f['g'] }}{% endif %}"
    )
    found = variables_in(source)
    assert {"a", "c", "f"} <= found
    assert not {"hidden", "text", "b", "d", "e", "g"} & found
