from __future__ import annotations

import dataclasses

import pytest

from adapter.engine.config import MAX_SEED, LlamaCppConfig
from adapter.errors import ConfigurationError, InvalidParameterError
from adapter.generation.sampling import Sampling


def test_the_defaults_are_llama_cpps():
    config, sampling = LlamaCppConfig("tiny"), Sampling()
    for name in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty"):
        assert getattr(config, name) == getattr(sampling, name)
    assert config.max_tokens == 512
    assert config.seed is None
    assert config.context_length is None
    assert config.stop == ()


def test_it_is_frozen_and_hashable():
    config = LlamaCppConfig("tiny", stop=["a", "b"])
    assert config.stop == ("a", "b")
    assert hash(config) == hash(LlamaCppConfig("tiny", stop=("a", "b")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 1),
        ("temperature", 0),
        ("temperature", 2),
        ("top_p", 0.0),
        ("top_p", 1),
        ("top_k", 0),
        ("min_p", 1.0),
        ("repeat_penalty", 2.0),
        ("context_length", 2),
        ("seed", 0),
        ("seed", MAX_SEED),
    ],
)
def test_the_ends_of_each_range_are_allowed(name, value):
    assert getattr(LlamaCppConfig("tiny", **{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("model_name", "", "a non-empty string"),
        ("model_name", None, "a non-empty string"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 10.0, "an integer"),
        ("max_tokens", True, "an integer"),
        ("temperature", -0.1, "from 0 to 2"),
        ("temperature", 2.1, "from 0 to 2"),
        ("temperature", float("nan"), "from 0 to 2"),
        ("temperature", "hot", "from 0 to 2"),
        ("top_p", 1.1, "from 0 to 1"),
        ("top_k", -2, "from 0 to 2147483647"),
        ("top_k", 2**40, "from 0 to 2147483647"),
        ("temperature", 10**400, "from 0 to 2"),
        ("max_tokens", -2, "at least 1, or None"),
        ("min_p", float("inf"), "from 0 to 1"),
        ("repeat_penalty", 0, "above 0 and up to 2"),
        ("context_length", 1, "at least 2, or None"),
        ("seed", -2, f"from 0 to {MAX_SEED}, or None"),
        ("seed", MAX_SEED + 1, f"from 0 to {MAX_SEED}, or None"),
        ("stop", "END", "a tuple of non-empty strings"),
        ("stop", ("",), "a tuple of non-empty strings"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_range(name, value, allowed):
    with pytest.raises(InvalidParameterError) as caught:
        LlamaCppConfig(**{"model_name": "tiny", name: value})
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.name == name
    assert caught.value.value is value
    assert allowed in caught.value.allowed
    assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("token_budget_limit", 0, "at least 1"),
        ("requests_per_minute", 0.5, "an integer"),
        ("max_retries", -1, "at least 0"),
        ("initial_backoff_ms", -1, "at least 0"),
        ("max_backoff_ms", 99, "at least initial_backoff_ms, 100"),
        ("enable_cache", 1, "True or False"),
        ("cache_ttl_secs", 0, "above 0"),
        ("cache_ttl_secs", float("inf"), "above 0"),
        ("enable_streaming", "yes", "True or False"),
    ],
)
def test_limits_and_switches_are_checked(name, value, allowed):
    with pytest.raises(InvalidParameterError) as caught:
        LlamaCppConfig("tiny", **{name: value})
    assert (caught.value.name, caught.value.value) == (name, value)
    assert allowed in str(caught.value)


def test_minus_one_means_what_it_does_in_llama_cpp():
    config = LlamaCppConfig("tiny", seed=-1, top_k=-1, max_tokens=-1)
    assert (config.seed, config.top_k, config.max_tokens) == (None, 0, None)
    assert config == LlamaCppConfig("tiny", seed=None, top_k=0, max_tokens=None)


def test_from_a_dict():
    config = LlamaCppConfig.from_dict({"model_name": "tiny", "top_k": 5, "stop": ["a"]})
    assert config == LlamaCppConfig("tiny", top_k=5, stop=("a",))


def test_a_dict_with_a_misspelt_key():
    with pytest.raises(InvalidParameterError, match="did you mean 'temperature'"):
        LlamaCppConfig.from_dict({"model_name": "tiny", "temprature": 0.5})


def test_a_dict_without_the_models_name():
    with pytest.raises(ConfigurationError, match="model_name"):
        LlamaCppConfig.from_dict({"top_k": 5})


def test_from_toml(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(
        """
        model_name = "whole"
        [models.small]
        model_name = "tiny"
        temperature = 0.5
        stop = ["END"]
        """
    )
    with pytest.raises(InvalidParameterError, match="models"):
        LlamaCppConfig.from_toml(path)
    config = LlamaCppConfig.from_toml(path, "models.small")
    assert config == LlamaCppConfig("tiny", temperature=0.5, stop=("END",))
    with pytest.raises(ConfigurationError, match=r"no table 'models\.large'"):
        LlamaCppConfig.from_toml(path, "models.large")


def test_a_file_that_is_no_toml(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("model_name = ")
    with pytest.raises(ConfigurationError, match=r"broken\.toml is no TOML file"):
        LlamaCppConfig.from_toml(path)
