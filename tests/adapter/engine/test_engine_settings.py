"""Each setting of a request, and what it does to a real model's answer."""

from __future__ import annotations

import json
import threading

import dspy
import numpy as np
import pytest
from dspy import lm15
from dspy.lm15 import Config, Message, Request

import pyllama
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.generation.request import GenerationRequest
from adapter.generation.sampling import Sampling
from adapter.models.hardware import HardwareManager
from adapter.models.pool import ModelPool

pytestmark = pytest.mark.model

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["kind", "tall"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(smollm2_path):
    with ModelPool(smollm2_path.parent, context_length=256) as pool:
        loaded = pool.load_model(smollm2_path.stem)
        yield LlamaCppEngine(loaded, LlamaCppConfig(loaded.name, seed=3, max_tokens=12))


@pytest.fixture(scope="module")
def on_cpu(smollm2_path):
    """An engine and its bare model on the CPU: GPUs choose kernels by the size of a batch, and
    round in each in another way."""
    hardware = HardwareManager(backend="cpu")
    with (
        ModelPool(smollm2_path.parent, context_length=256, hardware=hardware) as pool,
        pyllama.Model(smollm2_path, devices=[]) as model,
    ):
        loaded = pool.load_model(smollm2_path.stem)
        yield LlamaCppEngine(loaded, LlamaCppConfig(loaded.name, seed=3, max_tokens=12)), model


def request_to(engine, text, *, llamacpp=None, **config):
    if llamacpp is not None:
        config["extensions"] = {"metadata": {"llamacpp": llamacpp}}
    return Request(engine.model, (Message.user(text),), config=Config(**config))


def answer(engine, text="Say hello to the world.", **config):
    return engine.complete(request_to(engine, text, **config))


# Log-probabilities


def test_log_probabilities_are_those_of_the_models_logits(on_cpu):
    """Recomputed with numpy from logits of a context of the test's own."""
    engine, smollm2 = on_cpu
    response = answer(engine, logprobs=3, max_tokens=6)
    assert len(response.logprobs) == 6
    request = request_to(engine, "Say hello to the world.")
    prompt = engine.loaded.tokenize(
        engine.loaded.render(
            [{"role": "user", "content": request.messages[0].parts[0].text}]
        ).prompt
    )
    with pyllama.Context(smollm2, n_ctx=256, flash_attn="disabled") as context:
        context.decode(pyllama.Batch.from_tokens(prompt))
        for pos, told in enumerate(response.logprobs, len(prompt)):
            logits = context.logits().astype(np.float64)
            expected = logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
            assert told.logprob == pytest.approx(expected[told.token_id], abs=1e-3)
            assert [one.token_id for one in told.top] == list(np.argsort(-logits)[:3])
            assert [one.logprob for one in told.top] == pytest.approx(
                np.sort(expected)[::-1][:3], abs=1e-3
            )
            assert bytes(told.bytes) == smollm2.vocab.token_to_piece(told.token_id)
            assert told.token == bytes(told.bytes).decode()
            context.decode_token(told.token_id, pos)
    assert "".join(told.token for told in response.logprobs) == response.text


def test_the_stream_reports_the_same_log_probabilities(on_cpu):
    engine, _ = on_cpu
    request = request_to(engine, "Say hello.", logprobs=1)
    deltas = [event.delta for event in engine.stream(request) if event.type == "delta"]
    streamed = tuple(one for delta in deltas for one in delta.logprobs)
    assert streamed == engine.complete(request).logprobs


def test_dspys_lm_gives_the_log_probabilities_as_they_are(on_cpu):
    engine, _ = on_cpu
    lm = dspy.LM(engine.model, engine=engine)
    asked = request_to(engine, "Say hello.", logprobs=2)
    assert lm(asked).logprobs == engine.complete(asked).logprobs
    [output] = lm("Say hello.", logprobs=True, top_logprobs=2, max_tokens=12)
    told = engine.complete(request_to(engine, "Say hello.", logprobs=2, max_tokens=12)).logprobs
    assert [
        (one["logprob"], [top["logprob"] for top in one["top_logprobs"]])
        for one in output["logprobs"]["content"]
    ] == [(one.logprob, [top.logprob for top in one.top]) for one in told]


def test_without_asking_there_are_none(engine):
    assert answer(engine).logprobs is None


def test_more_alternatives_than_there_are_tokens(engine):
    with pytest.raises(lm15.InvalidRequestError, match=r"logprobs=50000.*at most 49152"):
        answer(engine, logprobs=50000)


def test_more_alternatives_than_an_answer_can_carry_are_refused_before_any_work(engine):
    with pytest.raises(lm15.InvalidRequestError, match=r"logprobs=49152 .* at most 2500 .* 200"):
        answer(engine, logprobs=49152, max_tokens=200)
    assert len(answer(engine, logprobs=49152, max_tokens=1).logprobs[0].top) == 49152


def test_alternatives_are_kept_as_arrays_until_the_response_is_made(engine):
    """On the way 12 bytes each; as objects of lm15 they would be ten times that."""
    [*_, result] = engine.loaded.generators["batched"].stream(
        GenerationRequest((1, 2, 3), 8, Sampling(), 1, logprobs=40_000, streamed=False)
    )
    assert result.logprobs
    for one in result.logprobs:
        assert one.top_tokens.nbytes + one.top_logprobs.nbytes == 12 * 40_000
        assert len(dict(one.top)) == 40_000


# The form of the answer


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_to_a_schema_fits_it(engine, seed):
    response_format = {"type": "json_schema", "schema": PERSON}
    response = answer(
        engine,
        "Describe a person as JSON.",
        response_format=response_format,
        temperature=1.5,
        seed=seed,
        max_tokens=100,
    )
    assert response.finish_reason == "stop"
    person = json.loads(response.text)
    assert set(person) == {"name", "age", "tags"}
    assert len(person["name"]) <= 12
    assert 0 <= person["age"] <= 99
    assert set(person["tags"]) <= {"kind", "tall"}


def test_a_grammar_of_ones_own_holds(engine):
    texts = {
        answer(engine, llamacpp={"grammar": 'root ::= "yes" | "no"'}, seed=seed).text
        for seed in range(4)
    }
    assert texts <= {"yes", "no"}


# Biases and samplers


def test_a_bias_rules_a_token_out_or_forces_it(engine, smollm2):
    free = answer(engine, temperature=0, logprobs=0)
    first = free.logprobs[0].token_id
    [wanted] = smollm2.vocab.tokenize(" apple", add_special=False)
    banned = answer(
        engine, temperature=0, logprobs=0, extensions={"logit_bias": {str(first): -100}}
    )
    assert first not in [one.token_id for one in banned.logprobs]
    forced = answer(
        engine, temperature=0, max_tokens=2, extensions={"logit_bias": {str(wanted): 100}}
    )
    assert forced.text == " apple apple"


@pytest.mark.parametrize("bias", [{"x": 1}, {"-1": 1}, {"49152": 1}, {"5": 101}, {"5": None}])
def test_a_bias_out_of_range_is_refused(engine, bias):
    with pytest.raises(lm15.InvalidRequestError, match="logit_bias"):
        answer(engine, extensions={"logit_bias": bias})


@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": 0.9},
        {"typical_p": 0.2},
        {"top_n_sigma": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"dynatemp_range": 2.0, "dynatemp_exponent": 3.0},
        {"mirostat": 1, "mirostat_tau": 9.0},
        {"mirostat": 2, "mirostat_tau": 9.0, "mirostat_eta": 0.5},
        {"adaptive_target": 0.1, "adaptive_decay": 0.5},
        {"repeat_penalty": 2.0, "repeat_last_n": 200},
        {"dry_multiplier": 5.0, "dry_allowed_length": 0, "dry_sequence_breakers": []},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_each_sampler_can_change_the_answer_and_keeps_the_seed(engine, settings):
    """Over some seeds one answer at least is another; each comes again."""
    changed = 0
    for seed in range(3):
        options = {"temperature": 1.2, "seed": seed, "max_tokens": 10}
        text = answer(engine, "Say no no no no.", llamacpp=settings, **options).text
        assert answer(engine, "Say no no no no.", llamacpp=settings, **options).text == text
        changed += text != answer(engine, "Say no no no no.", **options).text
    assert changed


# Cancelling


def test_a_cancelled_call_stops_before_the_next_block_of_its_prompt(engine):
    """The event is set before anything is computed, and nothing comes out."""
    cancelled = threading.Event()
    request = request_to(engine, "Hello " * 100)
    events = engine.stream(request, cancelled)
    assert next(events).type == "start"
    cancelled.set()
    assert list(events) == []
    assert engine.complete_unless(cancelled, request) is None


def test_a_closed_stream_gives_the_context_back(engine):
    for _ in range(3):
        events = engine.stream(request_to(engine, "Count to a hundred.", max_tokens=200))
        assert next(events).type == "start"
        assert next(events).type == "delta"
        events.close()
    assert answer(engine).usage.output_tokens > 0
