"""Samplers: what their parameters may be."""

from __future__ import annotations

import pytest

import pyllama
from pyllama import GrammarSampler, Sampler

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "value", "error", "name"),
    [
        (Sampler.dist, -1, ValueError, "seed"),
        (Sampler.dist, 2**32 - 1, ValueError, "seed"),
        (Sampler.dist, 1.0, TypeError, "seed"),
        (Sampler.dist, None, TypeError, "seed"),
        (Sampler.dist, True, TypeError, "seed"),
        (Sampler.temp, NAN, ValueError, "temperature"),
        (Sampler.temp, INF, ValueError, "temperature"),
        (Sampler.temp, "hot", TypeError, "temperature"),
        (Sampler.temp, None, TypeError, "temperature"),
        (Sampler.temp, True, TypeError, "temperature"),
        (Sampler.top_k, 2**31, ValueError, "k must"),
        (Sampler.top_k, 1.5, TypeError, "k must"),
        (Sampler.top_k, "40", TypeError, "k must"),
        (Sampler.top_p, -0.1, ValueError, "p must"),
        (Sampler.top_p, 1.1, ValueError, "p must"),
        (Sampler.top_p, NAN, ValueError, "p must"),
        (Sampler.top_p, "0.9", TypeError, "p must"),
        (Sampler.min_p, -0.1, ValueError, "p must"),
        (Sampler.min_p, 2, ValueError, "p must"),
        (Sampler.min_p, [0.1], TypeError, "p must"),
        (Sampler.penalties, None, TypeError, "vocab"),
        (Sampler.penalties, 49152, TypeError, "vocab"),
    ],
)
def test_parameters_are_checked(make, value, error, name):
    with pytest.raises(error, match=name):
        make(value)


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("last_n", -1, ValueError),
        ("last_n", 2**24 + 1, ValueError),
        ("last_n", 1.0, TypeError),
        ("repeat", 0.0, ValueError),
        ("repeat", -1.0, ValueError),
        ("repeat", NAN, ValueError),
        ("freq", INF, ValueError),
        ("freq", "much", TypeError),
        ("present", NAN, ValueError),
        ("present", None, TypeError),
    ],
)
def test_penalties_are_checked(tiny, parameter, value, error):
    with pytest.raises(error, match=parameter):
        Sampler.penalties(tiny.vocab, **{parameter: value})


@pytest.mark.parametrize(
    ("make", "arguments", "error", "name"),
    [
        (Sampler.typical, {"p": 1.1}, ValueError, "p must"),
        (Sampler.typical, {"p": None}, TypeError, "p must"),
        (Sampler.top_n_sigma, {"n": -1.0}, ValueError, "n must"),
        (Sampler.top_n_sigma, {"n": NAN}, ValueError, "n must"),
        (Sampler.temp_ext, {"temperature": NAN, "delta": 0}, ValueError, "temperature"),
        (Sampler.temp_ext, {"temperature": 1, "delta": INF}, ValueError, "delta"),
        (Sampler.temp_ext, {"temperature": 1, "delta": 1, "exponent": -1}, ValueError, "exponent"),
        (Sampler.xtc, {"probability": 2, "threshold": 0, "seed": 1}, ValueError, "probability"),
        (Sampler.xtc, {"probability": 1, "threshold": -1, "seed": 1}, ValueError, "threshold"),
        (Sampler.xtc, {"probability": 1, "threshold": 0, "seed": -1}, ValueError, "seed"),
        (Sampler.mirostat_v2, {"seed": 2**32 - 1}, ValueError, "seed"),
        (Sampler.mirostat_v2, {"seed": 1, "tau": -1}, ValueError, "tau"),
        (Sampler.mirostat_v2, {"seed": 1, "eta": NAN}, ValueError, "eta"),
        (Sampler.adaptive_p, {"seed": 1, "target": 1.5}, ValueError, "target"),
        (Sampler.adaptive_p, {"seed": 1, "target": 0.5, "decay": 1.0}, ValueError, "decay"),
        (Sampler.mirostat, {"vocab": None, "seed": 1}, TypeError, "vocab"),
        (Sampler.dry, {"vocab": 3, "multiplier": 1.0}, TypeError, "vocab"),
        (Sampler.infill, {"vocab": "v"}, TypeError, "vocab"),
        (Sampler.logit_bias, {"vocab": None, "biases": {}}, TypeError, "vocab"),
    ],
)
def test_more_parameters_are_checked(make, arguments, error, name):
    with pytest.raises(error, match=name):
        make(**arguments)


@pytest.mark.parametrize(
    ("make", "arguments", "error", "name"),
    [
        (Sampler.mirostat, {"seed": 1, "m": 0}, ValueError, "m must"),
        (Sampler.dry, {"multiplier": -1.0}, ValueError, "multiplier"),
        (Sampler.dry, {"multiplier": 1, "base": 0.5}, ValueError, "base"),
        (Sampler.dry, {"multiplier": 1, "allowed_length": -1}, ValueError, "allowed_length"),
        (Sampler.dry, {"multiplier": 1, "last_n": 2**24 + 1}, ValueError, "last_n"),
        (Sampler.dry, {"multiplier": 1, "breakers": "abc"}, TypeError, "breakers"),
        (Sampler.dry, {"multiplier": 1, "breakers": [1]}, TypeError, "breakers"),
        (Sampler.dry, {"multiplier": 1, "breakers": None}, TypeError, "breakers"),
        (Sampler.dry, {"multiplier": 1, "breakers": [""]}, ValueError, "breakers"),
        (Sampler.dry, {"multiplier": 1, "breakers": ["x" * 41]}, ValueError, "breakers"),
        (Sampler.dry, {"multiplier": 1, "breakers": ["a\0b"]}, ValueError, "breakers"),
        (Sampler.logit_bias, {"biases": [(1, 2.0)]}, TypeError, "biases"),
        (Sampler.logit_bias, {"biases": {-1: 1.0}}, ValueError, "biases"),
        (Sampler.logit_bias, {"biases": {10**6: 1.0}}, ValueError, "biases"),
        (Sampler.logit_bias, {"biases": {"a": 1.0}}, TypeError, "biases"),
        (Sampler.logit_bias, {"biases": {1: NAN}}, ValueError, "biases"),
        (Sampler.logit_bias, {"biases": {1: INF}}, ValueError, "biases"),
        (Sampler.logit_bias, {"biases": {1: "much"}}, TypeError, "biases"),
    ],
)
def test_parameters_beside_a_vocabulary_are_checked(tiny, make, arguments, error, name):
    with pytest.raises(error, match=name):
        make(tiny.vocab, **arguments)


def test_a_vocabulary_without_tokenizer(write_tiny_model):
    with pyllama.Model(write_tiny_model(tokenizer="none"), vocab_only=True) as model:
        for make in (
            lambda: Sampler.dry(model.vocab, multiplier=1.0),
            lambda: Sampler.infill(model.vocab),
            lambda: GrammarSampler(model.vocab, "root ::= [a-z]*"),
        ):
            with pytest.raises(pyllama.TokenizationError, match="no tokenizer"):
                make()


@pytest.mark.parametrize("make", [Sampler.top_p, Sampler.min_p, Sampler.typical])
@pytest.mark.parametrize(("min_keep", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_min_keep_is_checked(make, min_keep, error):
    with pytest.raises(error, match="min_keep"):
        make(0.5, min_keep=min_keep)
