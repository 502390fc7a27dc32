"""What the engine does with each field of a request. The rules of engines are in
test_engine_contract.py.
"""

from __future__ import annotations

import pytest
from chats import TOOLS
from dspy import lm15
from dspy.clients.engines.stream_guard import checked_stream
from dspy.lm15 import Config, Message, Request
from fake_generator import fake_model

from adapter import errors
from adapter.engine.config import MAX_SEED, LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine


def engine_of(model, **settings):
    return LlamaCppEngine(model, LlamaCppConfig(model.name, **settings))


def request_to(engine, text="Hello", *, system=None, tools=(), **config):
    return Request(
        model=engine.model,
        messages=(Message.user(text),),
        system=system,
        tools=tools,
        config=Config(**config),
    )


def collected(engine, request):
    return lm15.materialize_response(checked_stream(engine.stream(request)), request)


# What a response holds


def test_a_response_carries_the_text_and_exact_counts():
    engine = engine_of(fake_model("Paris"), seed=7)
    response = engine.complete(request_to(engine, "Capital of France?", system="Be brief."))
    prompt = "System: Be brief.\nUser: Capital of France?\nAssistant:"
    assert response.text == "Paris"
    assert response.model == engine.model
    assert response.finish_reason == "stop"
    assert response.usage == lm15.Usage(
        input_tokens=len(prompt), output_tokens=5, total_tokens=len(prompt) + 5, cache_read_tokens=0
    )
    assert response.provider_data == {"seed": 7, "device": "CPU"}
    assert response.adaptations == ()


def test_max_tokens_ends_an_answer_as_length():
    engine = engine_of(fake_model("abcdef"))
    response = engine.complete(request_to(engine, max_tokens=3))
    assert (response.text, response.finish_reason) == ("abc", "length")
    assert response.usage.output_tokens == 3


# Config: honoured


def test_what_a_request_leaves_open_comes_from_the_config():
    model = fake_model("x")
    engine = engine_of(
        model,
        max_tokens=9,
        temperature=0.3,
        top_p=0.5,
        top_k=7,
        min_p=0.2,
        repeat_penalty=1.3,
        seed=11,
        stop=("END",),
    )
    engine.complete(request_to(engine))
    [asked] = model.generator.requests
    assert asked.max_tokens == 9
    assert asked.seed == 11
    assert asked.stop == ("END",)
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.5, 7)
    assert (sampling.min_p, sampling.repeat_penalty) == (0.2, 1.3)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.0, 0.0)


def test_what_a_request_says_wins_over_the_config():
    model = fake_model("x")
    engine = engine_of(model, temperature=0.3, seed=11, stop=("END",), min_p=0.2)
    engine.complete(
        request_to(
            engine,
            max_tokens=4,
            temperature=0.0,
            top_p=0.6,
            top_k=3,
            seed=5,
            stop=("!", "?"),
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            extensions={"metadata": {"llamacpp": {"min_p": 0, "repeat_penalty": 1.2}}},
        )
    )
    [asked] = model.generator.requests
    assert (asked.max_tokens, asked.seed, asked.stop) == (4, 5, ("!", "?"))
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.6, 3)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert (sampling.min_p, sampling.repeat_penalty) == (0, 1.2)


def test_without_a_seed_each_call_draws_its_own_and_reports_it():
    model = fake_model("x")
    engine = engine_of(model)
    told = [engine.complete(request_to(engine)).provider_data["seed"] for _ in range(20)]
    drawn = [request.seed for request in model.generator.requests]
    assert told == drawn
    assert len(set(drawn)) == 20
    assert all(0 <= seed <= MAX_SEED for seed in drawn)


# Config: adapted


@pytest.mark.parametrize(
    ("config", "field", "action"),
    [
        ({"reasoning": lm15.Reasoning("high")}, "config.reasoning", "dropped"),
        ({"probabilities": "if_available"}, "config.probabilities", "dropped"),
        ({"probabilities": "off"}, "config.probabilities", "satisfied"),
        ({"cache": lm15.CacheConfig(prefix="stable")}, "config.cache", "dropped"),
        ({"tool_choice": lm15.ToolChoice("none")}, "config.tool_choice", "satisfied"),
        ({"tool_choice": lm15.ToolChoice("auto")}, "config.tool_choice", "satisfied"),
        ({"store": False}, "config.store", "satisfied"),
        ({"store": True}, "config.store", "dropped"),
        ({"service_tier": "flex"}, "config.service_tier", "dropped"),
        ({"user_id": "me"}, "config.user_id", "dropped"),
        (
            {"extensions": {"metadata": {"team": "a"}}},
            "config.extensions.metadata",
            "dropped",
        ),
    ],
)
def test_a_setting_without_effect_is_answered_with_an_adaptation(config, field, action):
    engine = engine_of(fake_model("x"))
    request = request_to(engine, **config)
    for response in (engine.complete(request), collected(engine, request)):
        [adaptation] = response.adaptations
        assert (adaptation.field, adaptation.action) == (field, action)
        assert adaptation.reason
        assert adaptation.asked is not None


def test_tools_that_must_not_be_called_are_dropped():
    engine = engine_of(fake_model("x"))
    request = request_to(
        engine, tools=(lm15.FunctionTool("add"),), tool_choice=lm15.ToolChoice("none")
    )
    adaptations = engine.complete(request).adaptations
    assert [a.field for a in adaptations] == ["tools", "config.tool_choice"]


def test_max_tokens_is_clamped_to_what_the_prompt_leaves():
    model = fake_model("x" * 100, context_length=40)
    engine = engine_of(model)
    response = engine.complete(request_to(engine, "Hello", max_tokens=90))
    prompt = len("User: Hello\nAssistant:")
    [adaptation] = response.adaptations
    assert (adaptation.field, adaptation.action) == ("config.max_tokens", "clamped")
    assert (adaptation.asked, adaptation.applied) == (90, 40 - prompt)
    assert response.usage.total_tokens == 40
    assert response.finish_reason == "length"


def test_every_field_of_config_has_its_test():
    """A field that a later lm15 adds must be given an answer in call_settings."""
    honoured = {"max_tokens", "temperature", "top_p", "top_k", "stop", "seed"}
    honoured |= {"frequency_penalty", "presence_penalty", "logprobs", "response_format"}
    answered = {"reasoning", "probabilities", "cache", "tool_choice", "store", "service_tier"}
    assert set(Config.__dataclass_fields__) == honoured | answered | {"user_id", "extensions"}


# Config and content: refused

UNSUPPORTED = [
    ({"probabilities": "required"}, "config.probabilities"),
    ({"tool_choice": lm15.ToolChoice("required")}, "config.tool_choice"),
    ({"tools": (lm15.FunctionTool("add"),)}, "tools"),
    ({"cache": lm15.CacheConfig(resource="r")}, "config.cache.resource"),
    ({"extensions": {"best_of": 2}}, "config.extensions.best_of"),
]


@pytest.mark.parametrize(("config", "feature"), UNSUPPORTED)
def test_what_would_change_the_answer_is_refused(config, feature):
    engine = engine_of(fake_model("x"))
    request = request_to(engine, **config)
    with pytest.raises(lm15.UnsupportedFeatureError) as caught:
        engine.complete(request)
    assert caught.value.feature == feature
    with pytest.raises(lm15.UnsupportedFeatureError):
        list(engine.stream(request))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"n_probs": 2}, ["n_probs", "min_p", "repeat_penalty"]),
        ({"min_p": 2}, ["'min_p'", "2", "from 0 to 1"]),
        ({"repeat_penalty": "x"}, ["'repeat_penalty'", "'x'"]),
        ("min_p", ["metadata['llamacpp']", "a dict"]),
    ],
)
def test_bad_llamacpp_settings_are_named(settings, names):
    engine = engine_of(fake_model("x"))
    with pytest.raises(lm15.InvalidRequestError) as caught:
        engine.complete(request_to(engine, extensions={"metadata": {"llamacpp": settings}}))
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("seed", [-2, MAX_SEED + 1, 2**64])
def test_a_seed_llama_cpp_cannot_take_is_refused(seed):
    engine = engine_of(fake_model("x"))
    with pytest.raises(lm15.InvalidRequestError, match=f"seed={seed} .*{MAX_SEED}"):
        engine.complete(request_to(engine, seed=seed))


def test_a_seed_of_minus_one_draws_one_as_in_llama_cpp():
    model = fake_model("x")
    for engine in (engine_of(model, seed=5), engine_of(model, seed=-1)):
        for _ in range(3):
            engine.complete(request_to(engine, seed=-1))
    drawn = [request.seed for request in model.generator.requests]
    assert len(set(drawn)) == 6
    assert 5 not in drawn


@pytest.mark.parametrize("max_tokens", [None, -1])
def test_without_max_tokens_an_answer_may_fill_the_context(max_tokens):
    model = fake_model("x" * 5000, context_length=900)
    engine = engine_of(model, max_tokens=max_tokens)
    response = engine.complete(request_to(engine))
    assert response.usage.total_tokens == 900
    assert response.adaptations == ()
    assert engine.complete(request_to(engine, max_tokens=3)).text == "xxx"


def test_a_request_for_another_model_is_refused_with_the_names_that_are_known():
    model = fake_model("x")
    engine, other = engine_of(model), engine_of(fake_model("y"), temperature=0.3)
    for name in ("llamacpp/fake/0000", "other", engine.model + "x", engine.model + "@x", "@3"):
        request = Request(model=name, messages=(Message.user("Hello"),))
        for ask in (engine.complete, lambda asked: list(engine.stream(asked))):
            with pytest.raises(lm15.UnknownModelError) as caught:
                ask(request)
            for known in (name, engine.model, other.model):
                assert repr(known) in str(caught.value)
    assert model.generator.requests == []
    request = Request(model=f"{engine.model}@7", messages=(Message.user("Hello"),))
    assert engine.complete(request).model == f"{engine.model}@7"


def test_an_image_is_refused_by_its_place():
    engine = engine_of(fake_model("x"))
    message = Message.user(["Look:", lm15.ImagePart(media_type="image/png", data="aGk=")])
    with pytest.raises(lm15.UnsupportedFeatureError) as caught:
        engine.complete(Request(model=engine.model, messages=(message,)))
    assert caught.value.feature == "messages[0].parts[1]"


def test_roles_and_parts_reach_the_template_as_text():
    model = fake_model("x")
    engine = engine_of(model)
    messages = (
        Message.user(["one", lm15.DataPart({"a": "ü"})]),
        Message.assistant([lm15.ThinkingPart("hm"), lm15.TextPart("two")]),
        Message.developer("be kind"),
        Message.user("three"),
    )
    engine.complete(Request(model=engine.model, messages=messages, system="sys"))
    assert model.rendered == [
        [
            {"role": "system", "content": "sys"},
            {"role": "user", "content": 'one\n{"a": "ü"}'},
            {"role": "assistant", "content": "two", "reasoning_content": "hm"},
            {"role": "user", "content": "[developer]\nbe kind"},
            {"role": "user", "content": "three"},
        ]
    ]


def test_calls_and_results_of_functions_reach_the_template():
    model = fake_model("x", source=TOOLS)
    engine = engine_of(model)
    messages = (
        Message.user("2 + 2?"),
        Message.assistant([lm15.ToolCallPart("call-1", "add", {"a": 2, "b": 2})]),
        Message.tool("call-1", "4"),
    )
    engine.complete(Request(model=engine.model, messages=messages))
    [[_, call, result]] = model.rendered
    assert call["tool_calls"] == [
        {
            "type": "function",
            "id": "call-1",
            "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'},
        }
    ]
    assert (result["role"], result["tool_call_id"]) == ("tool", "call-1")
    assert result["content"] == "4"


# Context


def test_a_prompt_that_fills_the_context_is_refused_before_any_work():
    model = fake_model("x", context_length=22)
    engine = engine_of(model)
    with pytest.raises(lm15.ContextLengthError, match=r"22 tokens.*holds 22"):
        engine.complete(request_to(engine, "Hello"))
    assert model.generator.requests == []
    assert engine.complete(request_to(engine, "Hell")).text == "x"


def test_the_config_can_make_the_context_smaller_only():
    model = fake_model("x", context_length=4096)
    small = engine_of(model, context_length=10)
    with pytest.raises(lm15.ContextLengthError, match="holds 10"):
        small.complete(request_to(small))
    with pytest.raises(errors.InvalidParameterError, match="at most 4096"):
        engine_of(model, context_length=4097)


def test_a_config_for_another_model_is_refused():
    with pytest.raises(errors.ConfigurationError, match=r"'other'.*'fake'"):
        LlamaCppEngine(fake_model("x"), LlamaCppConfig("other"))
