"""Requests with config.probabilities: what is measured, how it is answered, and when it is not."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from chats import TOOLS
from dspy import lm15
from dspy.lm15 import (
    Config,
    DataPart,
    FunctionTool,
    Message,
    Request,
    TextPart,
    ThinkingPart,
    ToolChoice,
)
from fake_generator import fake_model

import pyllama
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.judgment import judgments_in
from adapter.errors import RequestTimeoutError
from adapter.models.hardware import HardwareManager
from adapter.models.pool import ModelPool

COLOUR = {"type": "string", "enum": ["red", "dark red", "blue"]}
LEVEL = {
    "type": "integer",
    "description": "How loud?",
    "anyOf": [{"const": 0, "description": "silent"}, {"const": 1, "title": "loud"}],
}


def form(**properties):
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "json_schema", "schema": schema}


def engine_of(model, **config):
    return LlamaCppEngine(model, LlamaCppConfig(model.name, **config))


def ask(engine, text="Hi", *, messages=None, tools=(), policy="required", **config):
    messages = messages or (Message.user(text),)
    config = Config(probabilities=policy, **config)
    return engine.complete(Request(engine.model, messages, tools=tools, config=config))


# What a schema declares


@pytest.mark.parametrize(
    ("declared", "values"),
    [
        ({"type": "boolean"}, {"true": True, "false": False}),
        (COLOUR, {"red": "red", "dark red": "dark red", "blue": "blue"}),
        ({"enum": ["a"]}, {"a": "a"}),
        (LEVEL, {"0": 0, "1": 1}),
        ({"enum": [0, 1, 2]}, {"0": 0, "1": 1, "2": 2}),
        ({"type": "string"}, None),
        ({"enum": [1, 2]}, None),
        ({"enum": [0, True]}, None),
        ({"enum": ["a", "a"]}, None),
        ({"enum": ["a", ""]}, None),
        ({"enum": []}, None),
        ({"type": "integer", "enum": ["0", "1"]}, None),
        ({"anyOf": [{"const": "a"}, {"type": "null"}]}, None),
        (True, None),
    ],
)
def test_which_properties_are_judgments(declared, values):
    found = judgments_in({"type": "object", "properties": {"p": declared, "q": {}}})
    assert {name: dict(judgment.values) for name, judgment in found.items()} == (
        {} if values is None else {"p": values}
    )


# The answer


def test_each_key_gets_its_share_of_what_they_have_together():
    model = fake_model("x")
    shares = {"red": 0.3, "dark red": 0.15, "blue": 0.05, "true": 0.2, "false": 0.6}
    model.generator.likelihood = lambda text: shares[text.rpartition(":")[2].strip()]
    response = ask(engine_of(model), response_format=form(colour=COLOUR, warm={"type": "boolean"}))
    [part] = response.message.parts
    assert part.value == {"colour": "red", "warm": False}
    assert part.probabilities["colour"] == pytest.approx({"red": 0.6, "dark red": 0.3, "blue": 0.1})
    assert part.probabilities["warm"] == pytest.approx({"true": 0.25, "false": 0.75})
    assert part.method == "candidate_sequence_likelihood"
    assert response.provider_data["coverage"] == pytest.approx({"colour": 0.5, "warm": 0.8})
    assert response.finish_reason == "stop"
    assert response.usage.output_tokens == 0
    [scored] = model.generator.scored
    assert len(scored.continuations) == 5
    assert response.usage.input_tokens > len(scored.prompt)


def test_the_question_is_asked_and_the_answer_begun():
    model = fake_model("x")
    ask(engine_of(model), response_format=form(volume=LEVEL))
    [*_, asked, begun] = model.rendered[-1]
    assert asked == {
        "role": "user",
        "content": "Hi\n\nHow loud?\nChoose one:\n- 0: silent\n- 1: loud\n"
        "Answer in this form:\nvolume: (one of: 0, 1)",
    }
    assert begun == {"role": "assistant", "content": "volume:"}
    [scored] = model.generator.scored
    assert "".join(map(chr, scored.prompt)).endswith("\nAssistant: volume:")
    assert ["".join(map(chr, one)) for one in scored.continuations] == [" 0", " 1"]


def test_an_answer_that_has_begun_is_continued():
    model = fake_model("x")
    messages = (Message.user("Hi"), Message.assistant("mood: good"))
    ask(engine_of(model), messages=messages, response_format=form(volume=LEVEL, colour=COLOUR))
    [scored] = model.generator.scored
    assert "".join(map(chr, scored.prompt)).endswith("User: Hi\nAssistant: mood: good\n")
    assert ["".join(map(chr, one)) for one in scored.continuations] == [
        "volume: 0",
        "volume: 1",
        "colour: red",
        "colour: dark red",
        "colour: blue",
    ]


def test_after_a_tools_result_the_question_is_a_turn_of_its_own():
    model = fake_model("x", source=TOOLS)
    call = lm15.ToolCallPart("1", "look", {})
    messages = (
        Message.user("Look."),
        Message("assistant", (call,)),
        Message.tool((lm15.ToolResultPart("1", (TextPart("It is loud."),)),)),
    )
    ask(engine_of(model), messages=messages, response_format=form(volume=LEVEL))
    assert [message["role"] for message in model.rendered[-1]][-3:] == ["tool", "user", "assistant"]


def test_measuring_has_what_is_left_of_the_requests_time():
    model = fake_model('{"name": "Bo"}')
    model.generator.before_token = lambda: time.sleep(0.01)
    ask(engine_of(model, timeout_secs=60), response_format=form(name={}, volume=LEVEL))
    ask(engine_of(model), response_format=form(volume=LEVEL))
    timed, untimed = model.generator.scored
    assert 50 < timed.timeout < 60 - 0.01 * len('{"name": "Bo"}')
    assert untimed.timeout is None


def test_a_timeout_while_measuring_reports_the_whole_time_and_what_was_written(monkeypatch):
    model = fake_model('{"name": "Bo"}')

    def too_late(request, _cancelled):
        raise RequestTimeoutError(request.timeout, 0)

    monkeypatch.setattr(model.generator, "score", too_late)
    with pytest.raises(lm15.TimeoutError, match=r"timeout_secs=60 \(tokens by then: 14"):
        ask(engine_of(model, timeout_secs=60), response_format=form(name={}, volume=LEVEL))


def test_other_properties_are_generated_and_never_measured():
    model = fake_model('{"name": "Bo"}')
    response_format = form(name={"type": "string"}, volume=LEVEL)
    response = ask(engine_of(model, seed=7), response_format=response_format, temperature=0.5)
    [part] = response.message.parts
    assert part.value == {"name": "Bo", "volume": 0}
    assert list(part.value) == ["name", "volume"]
    assert set(part.probabilities) == {"volume"}
    [generated] = model.generator.requests
    assert '\\"name\\"' in generated.constraint.gbnf
    assert "volume" not in generated.constraint.gbnf
    assert generated.sampling.temperature == 0.5
    assert response.usage.output_tokens == len('{"name": "Bo"}')
    assert response.provider_data["seed"] == 7
    assert response.adaptations == ()


def test_an_answer_that_was_cut_off_is_given_as_it_is():
    model = fake_model('{"name": "Bo"}')
    response_format = form(name={"type": "string"}, volume=LEVEL)
    response = ask(engine_of(model), response_format=response_format, max_tokens=5)
    assert (response.finish_reason, response.text) == ("length", '{"nam')
    assert model.generator.scored == []


def test_settings_of_sampling_are_answered_with_adaptations():
    response = ask(
        engine_of(fake_model("x")),
        response_format=form(volume=LEVEL),
        temperature=0.5,
        stop=("x",),
        logprobs=2,
        extensions={"metadata": {"llamacpp": {"min_p": 0.5, "complete_answers": False}}},
    )
    assert [(a.field, a.action) for a in response.adaptations] == [
        ("config.temperature", "dropped"),
        ("config.stop", "dropped"),
        ("config.logprobs", "dropped"),
        ("metadata['llamacpp']['min_p']", "dropped"),
        ("metadata['llamacpp']['complete_answers']", "dropped"),
    ]


# Where nothing can be measured

IMPOSSIBLE = [
    ({}, "top-level property"),
    ({"response_format": {"type": "json_object"}}, "top-level property"),
    ({"response_format": form(name={"type": "string"})}, "top-level property"),
    ({"response_format": form(volume=LEVEL), "tools": (FunctionTool("f"),)}, "tool call"),
]


@pytest.mark.parametrize(("asked", "reason"), IMPOSSIBLE)
def test_what_cannot_be_measured_is_refused_where_it_is_required(asked, reason):
    with pytest.raises(lm15.UnsupportedFeatureError, match=reason) as caught:
        ask(engine_of(fake_model("x")), **asked)
    assert caught.value.feature == "config.probabilities"


@pytest.mark.parametrize(("asked", "reason"), IMPOSSIBLE[:3])
def test_what_cannot_be_measured_is_reported(asked, reason):
    response = ask(engine_of(fake_model("{}")), policy="if_available", **asked)
    assert response.text == "{}"
    [adaptation] = response.adaptations
    assert (adaptation.field, adaptation.action) == ("config.probabilities", "dropped")
    assert reason in adaptation.reason


def test_a_model_without_an_end_of_turn():
    model = fake_model("x", turn_ends=())
    with pytest.raises(lm15.UnsupportedFeatureError, match="ends an answer"):
        ask(engine_of(model), response_format=form(volume=LEVEL))


def test_a_stream_is_generated():
    engine = engine_of(fake_model('{"volume": 1}'))
    for policy in ("required", "if_available"):
        config = Config(probabilities=policy, response_format=form(volume=LEVEL))
        request = Request(engine.model, (Message.user("Hi"),), config=config)
        if policy == "required":
            with pytest.raises(lm15.UnsupportedFeatureError, match="stream"):
                list(engine.stream(request))
        else:
            [start, *_] = engine.stream(request)
            assert [a.field for a in start.adaptations] == ["config.probabilities"]


def test_tools_that_must_not_be_called_are_no_obstacle():
    response = ask(
        engine_of(fake_model("x")),
        response_format=form(volume=LEVEL),
        tools=(FunctionTool("f"),),
        tool_choice=ToolChoice("none"),
    )
    assert response.message.parts_of(DataPart)


def test_a_grammar_of_ones_own_and_judgments_exclude_each_other():
    extensions = {"metadata": {"llamacpp": {"grammar": 'root ::= "a"'}}}
    with pytest.raises(lm15.InvalidRequestError, match="response_format"):
        ask(engine_of(fake_model("x")), response_format=form(volume=LEVEL), extensions=extensions)


def test_limits_hold():
    model = fake_model("x", context_length=60)
    with pytest.raises(lm15.ContextLengthError):
        ask(engine_of(model), response_format=form(volume=LEVEL))
    engine = engine_of(fake_model("x"), token_budget_limit=130, requests_per_minute=1)
    used = ask(engine, response_format=form(volume=LEVEL)).usage.total_tokens
    assert engine.budget.used == used
    with pytest.raises(lm15.RateLimitError):
        ask(engine, response_format=form(volume=LEVEL))
    small = engine_of(fake_model("x"), token_budget_limit=used - 1)
    with pytest.raises(lm15.ProviderError, match=f"0 of {used - 1}"):
        ask(small, response_format=form(volume=LEVEL))
    assert small.budget.used == 0
    engine.close()
    with pytest.raises(lm15.ConfigurationError, match="closed"):
        ask(engine, response_format=form(volume=LEVEL))


# A real model


@pytest.fixture(scope="module")
def loaded(smollm2_path):
    with ModelPool(smollm2_path.parent, context_length=512) as pool:
        yield pool.load_model(smollm2_path.stem)


@pytest.fixture(scope="module")
def on_cpu(smollm2_path):
    """A loaded model and the same one bare, on the CPU: GPUs choose kernels by the size of a
    batch, and round in each in another way."""
    hardware = HardwareManager(backend="cpu")
    with (
        ModelPool(smollm2_path.parent, context_length=512, hardware=hardware) as pool,
        pyllama.Model(smollm2_path, devices=[]) as model,
    ):
        yield pool.load_model(smollm2_path.stem), model


@pytest.mark.model
@pytest.mark.parametrize("execution", ["batched", "isolated"])
def test_probabilities_are_those_of_the_raw_logits(on_cpu, execution):
    """Recomputed in numpy: each key token by token, then any token that ends the turn."""
    loaded, smollm2 = on_cpu
    engine = engine_of(loaded, execution=execution)
    response = ask(engine, "The sky at noon.", response_format=form(colour=COLOUR))
    [part] = response.message.parts
    question = "The sky at noon.\n\ncolour\nChoose one:\n- red\n- dark red\n- blue\n"
    question += "Answer in this form:\ncolour: (one of: red, dark red, blue)"
    stem = loaded.render([{"role": "user", "content": question}]).prompt + "colour:"
    prompt = smollm2.vocab.tokenize(stem, parse_special=True)
    ends = [token for token in range(smollm2.vocab.n_tokens) if smollm2.vocab.is_eog(token)]
    likelihoods = {}
    with pyllama.Context(smollm2, n_ctx=512, n_batch=64, flash_attn="disabled") as context:
        for key in COLOUR["enum"]:
            context.memory.clear()
            for begin in range(0, len(prompt), 64):
                context.decode(pyllama.Batch.from_tokens(prompt[begin : begin + 64], pos=begin))
            total = 0.0
            tokens = smollm2.vocab.tokenize(f" {key}", add_special=False)
            for position, token in enumerate(tokens, len(prompt)):
                total += log_softmax(context.logits())[token]
                context.decode_token(token, position)
            last = np.exp(log_softmax(context.logits()))
            likelihoods[key] = math.exp(total) * last[ends].sum()
    together = sum(likelihoods.values())
    for key, likelihood in likelihoods.items():
        assert part.probabilities["colour"][key] == pytest.approx(likelihood / together, abs=0.03)
    assert response.provider_data["coverage"]["colour"] == pytest.approx(together, rel=0.15)
    assert part.value["colour"] == max(likelihoods, key=likelihoods.get)


def log_softmax(logits):
    logits = logits.astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.model
def test_both_modes_give_the_same_probabilities(loaded):
    parts = [
        ask(
            engine_of(loaded, execution=execution), response_format=form(c=COLOUR, v=LEVEL)
        ).message.parts
        for execution in ("batched", "isolated")
    ]
    assert parts[0] == parts[1]


@pytest.mark.model
def test_through_dspys_lm_and_its_cache(loaded):
    import dspy

    engine = engine_of(loaded)
    lm = dspy.LM(engine.model, engine=engine)
    config = Config(probabilities="required", response_format=form(colour=COLOUR))
    request = Request(engine.model, (Message.user("The sea."),), config=config)
    first, again = lm(request), lm(request)
    assert again.message.parts == first.message.parts
    assert json.loads(lm.history[-1]["outputs"][0]) == first.message.parts[0].value


# A model that reasons


def test_judgments_come_after_no_thoughts():
    from chats import TOOLS_AND_THINKING

    model = fake_model('<think>\nhm\n</think>\n\n{"name": "Bo"}', source=TOOLS_AND_THINKING)
    response_format = form(name={"type": "string"}, volume=LEVEL)
    response = ask(engine_of(model), response_format=response_format)
    assert [type(part) for part in response.message.parts] == [ThinkingPart, DataPart]
    assert response.message.parts[1].value == {"name": "Bo", "volume": 0}
    [scored] = model.generator.scored
    prompt = "".join(map(chr, scored.prompt))
    assert "<think>" in prompt
    assert prompt.endswith("</think>\n\nvolume:")
