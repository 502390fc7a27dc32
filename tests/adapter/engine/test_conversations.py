"""Conversations that strict templates refuse as they are, and answers that were begun already."""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import re
from typing import Literal

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import Config, Message, Request
from fake_generator import adapter_of, fake_model

import pyllama
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.messages import in_turns
from adapter.signatures.constrained_adapters import constrained

STRICT = (
    "{% set turns = messages | rejectattr('role', 'equalto', 'tool') | list %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('Only one system message') }}{% endif %}"
    "{% if message.role in ('user', 'assistant') and not loop.first"
    " and loop.previtem.role == message.role %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message.role == 'assistant' and (loop.first or loop.previtem.role == 'system') %}"
    "{{ raise_exception('The user comes first') }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{% if call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}"
    "{% endif %}[call {{ call.id }}]{% endfor %}"
    "{% if message.role == 'tool' %}[result {{ message.tool_call_id }}]{% endif %}"
    "<{{ message.role }}>{{ message.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def engine_of(model, **settings):
    return LlamaCppEngine(model, LlamaCppConfig(model.name, **settings))


def prompt_of(*messages, system=None, source=STRICT, **config):
    model = fake_model("x", source=source)
    engine = engine_of(model)
    engine.complete(
        Request(model=engine.model, messages=messages, system=system, config=Config(**config))
    )
    [asked] = model.generator.requests
    return "".join(map(chr, asked.prompt))


def test_what_a_template_takes_stays_as_it_is():
    messages = (Message.user("one"), Message.assistant("two"), Message.user("three"))
    assert prompt_of(*messages, system="s") == (
        "<system>s</><user>one</><assistant>two</><user>three</><assistant>"
    )
    lenient = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    assert prompt_of(Message.user("one"), Message.user("two"), source=lenient) == (
        "<user>one<user>two"
    )


def test_turns_of_one_role_are_one_turn():
    messages = (Message.user("one"), Message.developer("two"), Message.user("three"))
    assert prompt_of(*messages) == "<user>one\n\n[developer]\ntwo\n\nthree</><assistant>"
    messages = (Message.assistant("one"), Message.assistant("two"), Message.user("three"))
    found = prompt_of(*messages, system="s")
    assert re.fullmatch(
        r"<system>s</><user>\(The .*\)</><assistant>one\n\ntwo</><user>three</><assistant>", found
    )


def test_ids_of_calls_have_nine_letters_and_digits_where_a_template_wants_them():
    call = Message.assistant([lm15.ToolCallPart("call_0123-45", "add", {"a": 2})])
    found = prompt_of(Message.user("2?"), call, Message.tool("call_0123-45", "4"))
    made, result = re.findall(r"\[\w+ (\S+)\]", found)
    assert made == result
    assert re.fullmatch("[0-9a-zA-Z]{9}", made)
    own = Message.assistant([lm15.ToolCallPart("aB3dE6gH9", "add", {"a": 2})])
    assert "[call aB3dE6gH9]" in prompt_of(Message.user("2?"), own, Message.tool("aB3dE6gH9", "4"))


def called(*ids):
    return Message.assistant([lm15.ToolCallPart(one, "add", {"a": 2}) for one in ids])


def test_a_user_may_go_on_after_a_result():
    found = prompt_of(
        Message.user("2?"), called("c1"), Message.tool("c1", "4"), Message.user("More?")
    )
    assert re.search(r"4</><assistant>\([^<]+\)</><user>More\?</><assistant>$", found)


def test_calls_at_once_come_one_by_one_where_a_template_wants_them_so():
    source = STRICT.replace(
        "{% for call", "{% if message.tool_calls and message.tool_calls | length > 1 %}"
        "{{ raise_exception('one at a time') }}{% endif %}{% for call", 1
    )  # fmt: skip
    results = Message(
        "tool",
        tuple(
            lm15.ToolResultPart(one, (lm15.TextPart(text),))
            for one, text in (("c2", "b"), ("c1", "a"))
        ),
    )
    found = prompt_of(Message.user("?"), called("c1", "c2"), results, source=source)
    parts = re.findall(r"\[(call|result) (\S+)\]|<tool>(\w)", found)
    calls = [name for kind, name, _ in parts if kind == "call"]
    assert [(kind, name) for kind, name, _ in parts if kind] == [
        (kind, name) for name in calls for kind in ("call", "result")
    ]
    assert [text for *_, text in parts if text] == ["a", "b"]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<assistant>{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}"
        "{% if m.role == 'tool' %}{{ raise_exception('No tools') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_without_tools_is_shown_calls_and_results_in_words(source):
    found = prompt_of(Message.user("2?"), called("c1"), Message.tool("c1", "4"), source=source)
    assert '<assistant>Call of add: {"a": 2}<user>Result of add: 4' in found


def test_calls_in_a_row_keep_their_results():
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call-1", "function": {}}]},
        {"role": "tool", "tool_call_id": "call-1", "content": "1"},
        {"role": "tool", "tool_call_id": "call-2", "content": "2"},
        {"role": "assistant", "content": "done"},
    ]
    turns = in_turns(messages)
    assert [turn["role"] for turn in turns] == [one["role"] for one in messages]
    assert turns[1]["tool_calls"][0]["id"] == turns[2]["tool_call_id"] != turns[3]["tool_call_id"]
    assert in_turns(turns) == turns


def test_an_answer_that_was_begun_is_continued():
    source = STRICT.replace("</>", "<end>")
    messages = (Message.user("Capital?"), Message.assistant("It is"))
    assert prompt_of(*messages, source=source) == "<user>Capital?<end><assistant>It is"
    model = fake_model(" Paris", source=source)
    engine = engine_of(model)
    response = engine.complete(Request(model=engine.model, messages=messages))
    assert response.text == " Paris"
    form = {"type": "json_schema", "schema": {"type": "integer"}}
    assert prompt_of(*messages, source=source, response_format=form).endswith("<assistant>It is")


def test_a_templates_complaint_is_one_line_that_names_the_roles():
    refusing = "{{ raise_exception('No user\nquery found') }}"
    model = fake_model("x", source=refusing)
    engine = engine_of(model)
    request = Request(
        model=engine.model, messages=(Message.user("a"), Message.user("b")), system="s"
    )
    with pytest.raises(lm15.InvalidRequestError) as caught:
        engine.complete(request)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        "refuses the conversation: No user query found (its roles: system, user, user)" in message
    )
    assert "While executing" not in message


def test_a_history_turn_without_outputs_reaches_a_strict_template(configured):
    model = fake_model("answer: Paris", source=STRICT)
    configured(model)
    history = dspy.History(messages=[{"question": "one"}, {"question": "two"}])
    signature = dspy.Signature("question, history: dspy.History -> answer")
    assert dspy.Predict(signature)(question="three", history=history).answer == "Paris"
    assert (
        dspy.Predict(signature)(question="x", history=dspy.History(messages=[])).answer == "Paris"
    )


@pytest.mark.parametrize("source", [STRICT, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_signature_without_inputs_is_asked(configured, source):
    configured(fake_model("joke: ha", source=source))
    assert dspy.Predict("-> joke")().joke == "ha"
    history = dspy.Signature("history: dspy.History -> joke")
    for messages in ([], [{"joke": "first"}], [{"joke": "first"}, {"joke": "second"}]):
        told = dspy.History(messages=messages)
        assert dspy.Predict(history)(history=told).joke == "ha"
    demonstrated = dspy.Predict("-> joke")
    demonstrated.demos = [dspy.Example(joke="first"), dspy.Example(joke="second")]
    assert demonstrated().joke == "ha"


def test_an_optional_input_that_is_left_out_is_reported_as_such(configured):
    class Told(dspy.Signature):
        topic: str | None = dspy.InputField(default=None)
        joke: str = dspy.OutputField()

    model = fake_model("joke: ha")
    configured(model)
    assert dspy.Predict(Told)().joke == "ha"
    assert "topic: None" in "".join(map(chr, model.generator.requests[0].prompt))


def test_what_things_are_is_shown(configured):
    adapter = configured(fake_model("joke: ha"), temperature=0.25)
    engine = adapter.lm.engine
    assert repr(engine) == f"<LlamaCppEngine {engine.model!r} on CPU>"
    assert repr(adapter.lm).startswith(f"<LlamaCppLM {engine.model!r} temperature=0.25 ")
    assert repr(adapter) == f"<LlamaCppAdapter of {adapter.lm!r}>"
    assert repr(engine) in repr(adapter.lm._async_engine_spec)
    engine.close()
    assert "(closed)" in repr(engine)


LABELS = tuple(f"label-{number:04}" for number in range(1000))


class Labelled(dspy.Signature):
    text: str = dspy.InputField()
    label: Literal[LABELS] = dspy.OutputField()


@pytest.mark.parametrize("call", ["call", "acall"])
def test_labels_that_do_not_all_fit_into_the_prompt_are_bound_by_the_grammar(
    configured, caplog, call, tiny
):
    model = fake_model("label: label-0777", context_length=2000)
    configured(model, max_tokens=20)
    with caplog.at_level(logging.WARNING, "adapter"):
        program = dspy.Predict(Labelled)
        answer = program(text="?") if call == "call" else asyncio.run(program.acall(text="?"))
    assert answer.label == "label-0777"
    [asked] = model.generator.requests
    prompt = "".join(map(chr, asked.prompt))
    assert "one of 1000, such as: label-0000, label-0020, " in prompt
    for label in LABELS[::37]:
        with pyllama.GrammarSampler(tiny.vocab, asked.constraint.gbnf) as sampler:
            for token in tiny.vocab.tokenize(f"label: {label}", add_special=False):
                sampler.accept(token)
            assert tiny.vocab.eos in sampler.allowed_tokens()
    [record] = caplog.records
    assert "names 50 values of each of the outputs 'label' only" in record.getMessage()


class Tagged(dspy.Signature):
    text: str = dspy.InputField()
    tags: list[Literal[LABELS]] = dspy.OutputField(max_length=2)


Color = enum.Enum("Color", {f"c{number}": f"shade-{number:04}" for number in range(1000)})


class Colored(dspy.Signature):
    text: str = dspy.InputField()
    color: Color = dspy.OutputField()


@pytest.mark.parametrize(
    ("signature", "call"), [(Labelled, "call"), (Tagged, "call"), (Colored, "acall")]
)
@pytest.mark.parametrize("kind", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
def test_labels_in_the_prompts_of_dspys_own_adapters(caplog, kind, signature, call):
    value = {Labelled: "label-0777", Tagged: ["label-0777"], Colored: "shade-0777"}[signature]
    [name] = signature.output_fields
    text = value if isinstance(value, str) else json.dumps(value)
    answer = {
        dspy.ChatAdapter: f"[[ ## {name} ## ]]\n{text}\n\n[[ ## completed ## ]]",
        dspy.JSONAdapter: json.dumps({name: value}),
        dspy.XMLAdapter: f"<{name}>\n{text}\n</{name}>",
    }[kind]
    model = fake_model(answer, context_length=6000)
    lm = adapter_of(model, max_tokens=200).lm
    with (
        caplog.at_level(logging.WARNING, "adapter"),
        dspy.context(lm=lm, adapter=constrained(kind())),
    ):
        program = dspy.Predict(signature)
        made = program(text="?") if call == "call" else asyncio.run(program.acall(text="?"))
    assert made[name] == (Color(value) if signature is Colored else value)
    [asked] = model.generator.requests
    prompt = "".join(map(chr, asked.prompt))
    assert "… (1000 in all)" in prompt
    assert "-0777" not in prompt
    assert [f"outputs {name!r} only" in record.getMessage() for record in caplog.records] == [True]


def test_labels_that_fit_are_all_in_the_prompt(configured, caplog):
    model = fake_model("label: label-0777", context_length=20_000)
    configured(model)
    assert dspy.Predict(Labelled)(text="?").label == "label-0777"
    prompt = "".join(map(chr, model.generator.requests[0].prompt))
    assert all(label in prompt for label in LABELS)
    assert not [record for record in caplog.records if record.name.startswith("adapter")]


def test_a_prompt_that_is_too_long_for_its_text_is_refused_as_before(configured):
    configured(fake_model("label: label-0777", context_length=2000))
    with pytest.raises(dspy.ContextWindowExceededError):
        dspy.Predict(Labelled)(text="x" * 3000)
    with pytest.raises(dspy.ContextWindowExceededError):
        dspy.Predict("text -> label")(text="x" * 3000)
