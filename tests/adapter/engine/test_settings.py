"""A setting is declared in one place, and reaches all others from there."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, make_dataclass
from types import SimpleNamespace

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import Config, Message, Request
from fake_generator import fake_model

import pyllama
from adapter.engine.call_settings import call_settings
from adapter.engine.config import (
    LLAMACPP_SETTINGS,
    OPENAI_SETTINGS,
    SETTINGS,
    CallSettings,
    LlamaCppConfig,
)
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.language_model import language_model
from adapter.engine.model_names import engine_name, portable_name
from adapter.errors import InvalidParameterError
from adapter.generation.sampling import Sampling, sampler_chain
from adapter.generation.settings import Fraction, setting, settings_of
from adapter.signatures.llama_cpp_adapter import GENERATION_SETTINGS

OF_SAMPLERS, IN_CONFIG = settings_of(Sampling), settings_of(LlamaCppConfig)

TRIED = (0.25, 0.5, 1.5, 200, 1, 2, False, True, "isolated", "text", ("text",), {5: 1.5}, {"a": 1})


def other(each):
    """A value that is allowed, and not the default."""
    found = [value for value in TRIED if is_allowed(each, value) and value != each.default]
    assert found, f"TRIED needs a value for {each.name}: {each.allowed}"
    return found[0]


def is_allowed(each, value):
    try:
        each.checked(value)
    except InvalidParameterError:
        return False
    return True


def model_of(**changes):
    return SimpleNamespace(
        **{
            "name": "tiny",
            "fingerprint": "f" * 64,
            "context_length": 4096,
            "computation": ("cpu=x", "threads=2", "reproducible=True"),
            **changes,
        }
    )


# Declaring one


@dataclass(frozen=True, kw_only=True)
class MoreSampling(Sampling):
    """What a stranger adds: one field."""

    warmth: Fraction = setting(0.5, "how warm it is", call="llamacpp")


def test_a_declaration_says_all_there_is_to_know():
    declared = settings_of(MoreSampling)["warmth"]
    assert (declared.default, declared.doc, declared.call) == (0.5, "how warm it is", "llamacpp")
    assert declared.allowed == "a number from 0 to 1"
    assert declared.checked(1) == 1
    where = "metadata['llamacpp']['warmth']"
    for wrong in (1.5, -1, True, "x", None, float("nan"), 10**400, [0.5]):
        with pytest.raises(InvalidParameterError) as raised:
            declared.checked(wrong, where)
        assert (raised.value.name, raised.value.value) == (where, wrong) or wrong != wrong
    assert declared.is_named(0.25)
    assert not declared.is_named(0.5)


def test_a_field_that_is_declared_as_no_setting_is_found():
    made = make_dataclass("Made", [("warmth", float, 0.5)], bases=(Sampling,), frozen=True)
    with pytest.raises(TypeError, match=r"Made\.warmth needs = setting"):
        settings_of(made)


# Where it comes from there


@pytest.mark.parametrize("name", OF_SAMPLERS)
def test_each_of_the_samplers_is_in_configs_and_calls(name):
    value = other(OF_SAMPLERS[name])
    config = LlamaCppConfig("tiny", **{name: value})
    request = Request("tiny", (Message.user("Hi"),))
    settings, _ = call_settings(request, config, 100)
    assert getattr(settings.sampling, name) == value
    as_json = list(value) if isinstance(value, tuple) else value
    asked = {"extensions": {"metadata": {"llamacpp": {name: as_json}}}}
    if name in OPENAI_SETTINGS:
        asked = {name: value}
    if name == "logit_bias":
        asked = {"extensions": {name: {str(token): bias for token, bias in value.items()}}}
    request = Request("tiny", (Message.user("Hi"),), config=Config(**asked))
    settings, _ = call_settings(request, LlamaCppConfig("tiny"), 100)
    assert getattr(settings.sampling, name) == value


def test_each_of_the_samplers_is_read_where_the_samplers_are_made(tiny):
    read = set()

    class Noted:
        def __init__(self, sampling):
            self._sampling = sampling

        def __getattr__(self, name):
            read.add(name)
            return getattr(self._sampling, name)

    for name, each in OF_SAMPLERS.items():
        changed = Sampling(**{name: each.checked(other(each))})
        sampler_chain(tiny.vocab, Noted(changed), seed=1).close()
    assert set(OF_SAMPLERS) <= read


@pytest.mark.parametrize("name", LLAMACPP_SETTINGS)
def test_each_of_llama_cpps_can_be_given_to_the_lm_by_name(name):
    value = other(SETTINGS[name])
    lm = language_model(fake_model("x"), LlamaCppConfig("fake"))
    assert lm.copy(**{name: value}).kwargs["metadata"] == {"llamacpp": {name: value}}


def test_what_dspy_asks_of_the_engine_is_what_is_declared():
    assert LlamaCppEngine.supported_params == OPENAI_SETTINGS
    assert OPENAI_SETTINGS < GENERATION_SETTINGS
    known = set(inspect.signature(lm15.Config).parameters) | {"logit_bias", "reasoning_effort"}
    assert known >= OPENAI_SETTINGS
    assert isinstance(language_model(fake_model("x"), LlamaCppConfig("fake")), dspy.LM)


def test_every_setting_is_either_dspys_or_llama_cpps_or_the_configs():
    for name, each in SETTINGS.items():
        assert each.call is not None or name in IN_CONFIG
        assert each.doc
    assert {each.name for each in fields(CallSettings)} == set(SETTINGS)
    assert not OPENAI_SETTINGS & set(LLAMACPP_SETTINGS)


# The lm's name


@pytest.mark.parametrize("name", IN_CONFIG)
def test_the_lms_name_has_what_decides_the_answer(name):
    each = IN_CONFIG[name]
    config = LlamaCppConfig(**{"model_name": "tiny", name: other(each)})
    changed = engine_name(model_of(), config) != engine_name(model_of(), LlamaCppConfig("tiny"))
    assert changed == (each.in_name != "never")


@pytest.mark.parametrize(
    ("settings", "name", "portable"),
    [
        ({}, "af65c1537f4f5555", "e5e85ac6cdfcd6d4"),
        ({"temperature": 0.0, "max_tokens": 60}, "f465a847e43382ae", "1aeb326ec0aa7e0c"),
        (
            {"stop": ["a"], "seed": 3, "chat_template_kwargs": {"enable_thinking": False}},
            "7e7c0d1bb2ece4ca",
            "07afe55e009202dd",
        ),
    ],
)
def test_names_stay_when_settings_are_added(settings, name, portable):
    """What DSPy's cache and saved programs know a model by. A default that changes changes it."""
    config = LlamaCppConfig("tiny", **settings)
    assert engine_name(model_of(), config) == f"llamacpp/tiny/{name}"
    assert portable_name(model_of(), config) == f"llamacpp/tiny/{portable}"


# Errors


def test_a_bad_setting_of_the_samplers_is_refused_in_a_config():
    with pytest.raises(InvalidParameterError, match=r"dry_base=0\.5 .*a number from 1 to 1000"):
        LlamaCppConfig("tiny", dry_base=0.5)
    with pytest.raises(InvalidParameterError, match="logit_bias="):
        LlamaCppConfig("tiny", logit_bias={5: 101})


def test_a_bias_of_the_config_names_tokens_that_the_model_knows():
    request = Request("tiny", (Message.user("Hi"),))
    config = LlamaCppConfig("tiny", logit_bias={100: 1.0})
    with pytest.raises(InvalidParameterError, match="tokens from 0 to 99"):
        call_settings(request, config, 100)


def test_a_setting_is_refused_though_an_equal_one_was_allowed_before():
    """Settings that were checked are kept, and True equals 1."""

    def asked(**llamacpp):
        extensions = {"metadata": {"llamacpp": llamacpp}}
        return Request("tiny", (Message.user("Hi"),), config=Config(extensions=extensions))

    config = LlamaCppConfig("tiny")
    for name, allowed, refused in (
        ("mirostat", 1, True),
        ("min_p", 1.0, True),
        ("end_repetitions", True, 1),
    ):
        first, _ = call_settings(asked(**{name: allowed}), config, 100)
        again, _ = call_settings(asked(**{name: allowed}), config, 100)
        assert first == again
        with pytest.raises(InvalidParameterError, match=name):
            call_settings(asked(**{name: refused}), config, 100)


def test_kept_settings_are_those_of_their_config_and_vocabulary():
    request = Request("tiny", (Message.user("Hi"),), config=Config(top_k=7, logprobs=50))
    for min_p in (0.1, 0.2):
        settings, _ = call_settings(request, LlamaCppConfig("tiny", min_p=min_p), 100)
        assert (settings.top_k, settings.sampling.min_p) == (7, min_p)
    with pytest.raises(InvalidParameterError, match="at most 49"):
        call_settings(request, LlamaCppConfig("tiny", min_p=0.1), 49)


def test_help_lists_the_settings():
    for name, each in IN_CONFIG.items():
        assert f"    {name}: {each.doc} ({each.allowed})" in LlamaCppConfig.__doc__


def test_the_samplers_take_every_value_that_is_allowed(tiny):
    """No setting passes its check to be refused by a sampler."""
    for name, each in OF_SAMPLERS.items():
        for value in (value for value in TRIED if is_allowed(each, value)):
            sampling = Sampling(**{name: each.checked(value)})
            assert isinstance(sampler_chain(tiny.vocab, sampling, seed=1), pyllama.SamplerChain)
