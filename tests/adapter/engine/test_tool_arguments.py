"""Calls of functions: their arguments follow the functions' own schemas, in every form of calls."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import Any

import jsonschema
import pytest
from chats import TOOLS, TOOLS_AND_THINKING
from dspy.lm15 import Config, FunctionTool, Message, Request, ToolChoice
from fake_generator import fake_model
from grammars import BYTES, matches
from templated import templates

import pyllama
from adapter.engine.call_or_answer import render_call
from adapter.engine.prompt import build_prompt
from adapter.engine.tool_arguments import BoundCalls, closed_schema

FIND = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": r"^\d{3}-\d{2}$"},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "kind": {"type": "string", "enum": ["north", "south-east"]},
        "note": {"type": "string"},
    },
    "required": ["code", "share"],
}
ONE_OF = {
    "oneOf": [
        {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
        {"type": "object", "properties": {"lat": {"type": "integer", "maximum": 90}},
         "required": ["lat"]},
    ]
}  # fmt: skip
BAG = {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "integer"}}


@pytest.fixture(scope="module", name="templates")
def all_templates():
    """llama.cpp's templates, by name."""
    return templates()


def prompt_of(source: str, *schemas: dict[str, Any], mode: str = "required", **config: Any):
    tools = tuple(
        FunctionTool(f"find_{index}", "Finds.", schema) for index, schema in enumerate(schemas)
    )
    request = Request(
        "m",
        (Message.user("Hi"),),
        tools=tools,
        config=Config(tool_choice=ToolChoice(mode), **config),
    )
    return build_prompt(request, fake_model("x", source=source), None)


def allows(tiny, prompt, text):
    begun = "".join(map(chr, prompt.constraint.prefix))
    return matches(tiny.vocab, prompt.constraint.gbnf, begun + text)


def as_json(arguments, name="find_0"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


GOOD = [{"code": "123-45", "share": 0.5}, {"code": "000-00", "share": 1, "kind": "south-east"}]
BAD = [
    {"code": "22479941", "share": 0.5},
    {"code": "123-45", "share": 5},
    {"code": "123-45", "share": 0},
    {"code": "123-45", "share": 1, "kind": "east"},
    {"code": "123-45"},
    {"code": "123-45", "share": 1, "other": 2},
    {},
]


@pytest.mark.parametrize("source", [TOOLS, TOOLS_AND_THINKING])
def test_arguments_as_json_fit_their_schema(tiny, source):
    prompt = prompt_of(source, FIND, ONE_OF, BAG)
    assert not prompt.adaptations
    for arguments in GOOD:
        assert allows(tiny, prompt, as_json(arguments)), arguments
    for arguments in BAD:
        assert not allows(tiny, prompt, as_json(arguments)), arguments
    for arguments, fits in (({"city": "Oslo"}, 1), ({"lat": 9}, 1), ({}, 0), ({"lat": 91}, 0)):
        assert allows(tiny, prompt, as_json(arguments, "find_1")) == bool(fits), arguments
    for count in range(5):
        arguments = {f"k{n}": n for n in range(count)}
        assert allows(tiny, prompt, as_json(arguments, "find_2")) == (count <= 2)
    assert not allows(tiny, prompt, as_json(GOOD[0], "find_1"))


@pytest.mark.parametrize("end", ["", "</s>", "<|im_end|>"])
def test_calls_with_an_id_are_as_their_template_shows_them(tiny, templates, end):
    source = templates["Mistral-Small-3.2-24B-Instruct-2506"]
    template = pyllama.ChatTemplate(source=source, bos="", eos=end)
    tool = {"type": "function", "function": {"name": "find_0", "parameters": FIND}}
    apply = partial(template.apply, [{"role": "user", "content": "Hi"}])
    render = BoundCalls(apply, [json.dumps(closed_schema(FIND))])
    rendered = render_call(render, {"tools": [tool]})
    text = "[TOOL_CALLS]find_0[CALL_ID]c36714dab[ARGS]" + json.dumps(GOOD[0])
    begun = rendered.generation_prompt
    assert matches(tiny.vocab, rendered.grammar, begun + text)
    for other in (("find_0", "find_0[ARGS]"), ("dab", "dab[CALLS]"), ("[CALL_ID]c36714dab", "")):
        assert not matches(tiny.vocab, rendered.grammar, begun + text.replace(*other))
    [call] = rendered.parser.parse(text).tool_calls
    assert (call.name, call.id, json.loads(call.arguments)) == ("find_0", "c36714dab", GOOD[0])
    for size in range(len(text)):
        for call in rendered.parser.parse(text[:size], partial=True).tool_calls:
            assert call.name == "find_0"
            assert not call.id or "c36714dab".startswith(call.id)


def as_tags(arguments, name="find_0"):
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in arguments.items()
    }
    values = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"


def test_arguments_in_tags_fit_their_schema(tiny, templates):
    prompt = prompt_of(templates["Qwen3-Coder"], FIND, ONE_OF)
    assert not prompt.adaptations
    for arguments in [*GOOD, {**GOOD[0], "note": "a\n<b> c"}]:
        text = as_tags(arguments)
        assert allows(tiny, prompt, text), arguments
        [call] = prompt.parser.parse(text).tool_calls
        assert call.name == "find_0"
        assert json.loads(call.arguments) == arguments
    for arguments in BAD:
        assert not allows(tiny, prompt, as_tags(arguments)), arguments
    for arguments, fits in (({"city": "Oslo"}, 1), ({"lat": 9}, 1), ({}, 0), ({"lat": 91}, 0)):
        text = as_tags(arguments, "find_1")
        assert allows(tiny, prompt, text) == bool(fits), arguments
        if fits:
            [call] = prompt.parser.parse(text).tool_calls
            assert json.loads(call.arguments) == arguments


def test_no_text_stands_before_a_call_that_must_come_where_it_would_not_be_read(tiny, templates):
    prompt = prompt_of(templates["meetkai-functionary-medium-v3.2"], FIND)
    call = f"find_0\n{json.dumps(GOOD[0])}"
    assert allows(tiny, prompt, call)
    assert not allows(tiny, prompt, f"all\nI call {call}")
    [read] = prompt.parser.parse(call).tool_calls
    assert json.loads(read.arguments) == GOOD[0]


@pytest.mark.parametrize("name", ["GLM-4.6", "GLM-4.7-Flash", "Spark2.5"])
def test_white_space_that_a_grammar_takes_in_a_call_is_read(tiny, templates, name):
    prompt = prompt_of(templates[name], {"type": "object", "properties": {}}, BAG, FIND)
    thought = "" if name == "GLM-4.6" else "</think>"  # the other prompts begin one
    found = 0
    for space in ("", "\n", " ", "\n\n \t"):
        argument = "<arg_key>{}</arg_key>{}<arg_value>{}</arg_value>{}"
        for line in ("", "\n"):
            values = [("code", "123-45"), ("share", "1")]
            arguments = [argument.format(key, line, value, line) for key, value in values]
            for parts in (
                ["<tool_call>", f"find_2{line}", *arguments, space, "</tool_call>"],
                ["<tool_call>", f"find_2{line}", space.join(arguments), "</tool_call>", space],
                ["<tool_call>", space, f"find_2{line}", space, *arguments, "</tool_call>"],
                ["<tool_call>", f"find_0{line}", space, "</tool_call>"],
            ):
                text = thought + "".join(parts)
                if allows(tiny, prompt, text):
                    [call] = prompt.parser.parse(text).tool_calls
                    wanted = {"code": "123-45", "share": 1} if "find_2" in text else {}
                    assert json.loads(call.arguments) == wanted
                    found += 1
    assert found > 4


def test_the_prompt_still_shows_the_schemas(templates):
    for source in (TOOLS, templates["Qwen3-Coder"]):
        prompt = prompt_of(source, FIND)
        text = "".join(map(chr, prompt.tokens))
        assert "south-east" in text
        assert "stand here" not in text
        assert "70000001" not in text


# Those whose form of calls has arguments of another make than JSON and tags.
WITHOUT_A_PLACE = {
    "Kimi-K3",
    "LFM2-8B-A1B",
    "LFM2.5-8B-A1B",
    "LFM2.5-Instruct",
    "google-gemma-4-31B-it",
    "google-gemma-4-31B-it-interleaved",
}


# Those whose arguments may be left out.
IN_ANY_ORDER = {"muse-glimmer", "openbmb-MiniCPM5-1B"}


# Whose calls are drawn: forms that are made differently. Drawing for all takes a minute.
DRAWN = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "GLM-4.6",
    "deepseek-ai-DeepSeek-V3.1",
    "deepseek-ai-DeepSeek-V3.2",
    "llama-cpp-deepseek-r1",
    "meetkai-functionary-medium-v3.1",
    "meetkai-functionary-medium-v3.2",
    "moonshotai-Kimi-K2",
}
VISIBLE = [bytes([one]) for one in (0x0A, *range(0x20, 0x7F))]
ENDS = [bytes([one]) for one in b'"<>[]{}|/,:']
FREELY = 3
"""Characters of a call that are drawn before the shortest way to its end is taken."""


def drawn(vocab, constraint, rng):
    """A text that a constraint takes, after the prefix that the prompt has of it."""
    with pyllama.GrammarSampler(vocab, pyllama.Grammar(constraint.gbnf)) as sampler:
        for character in "".join(map(chr, constraint.prefix)).encode():
            sampler.accept(BYTES[character])
        text = b""
        while not sampler.complete:
            chosen = [BYTES[one] for one in sampler.forced_text().encode()]
            if not chosen:
                allowed = sampler.allowed_tokens().tolist()
                visible = [one for one in allowed if vocab.token_to_piece(one) in VISIBLE]
                is_free = len(text) < FREELY and visible
                chosen = [
                    rng.choice(visible) if is_free else _shorter(sampler, vocab, allowed, rng)
                ]
            for token in chosen:
                sampler.accept(token)
                text += vocab.token_to_piece(token)
        return text.decode()


def _shorter(sampler, vocab, allowed, rng):
    """A character after which the text can end sooner. Those that end something are tried first."""
    fewest = sampler.fewest_tokens
    shuffled = rng.sample(allowed, len(allowed))
    for token in sorted(shuffled, key=lambda one: vocab.token_to_piece(one) not in ENDS):
        with sampler.clone() as after:
            after.accept(token)
            left = after.fewest_tokens
        if fewest is None or left < fewest:
            return token
    raise AssertionError(f"nothing leads to the end: {sampler.fewest_tokens} {allowed}")


def drawn_arguments(tiny, prompt, rng):
    """The arguments of the calls in a text that is drawn from a prompt's grammar."""
    text = drawn(tiny.vocab, prompt.constraint, rng)
    calls = prompt.parser.parse(text).tool_calls
    assert calls, f"no call in {text!r}"
    assert {call.name for call in calls} == {"find_0"}
    return [json.loads(call.arguments) for call in calls]


def test_every_template_binds_arguments_or_is_reported(tiny, templates):
    """Calls are drawn, too: whatever the grammar takes is read as a call that fits its schema."""
    unbound = set()
    rng = random.Random(7)
    for name, source in templates.items():
        model = fake_model("x", source=source)
        if not model.calls_tools:
            continue
        prompt = prompt_of(source, FIND)
        told = [one.asked for one in prompt.adaptations]
        assert {one.field for one in prompt.adaptations} <= {"tools[0].parameters"}
        if told == [("parameters",)]:
            unbound.add(name)
        else:
            assert told in ([], [("required",)])
            assert bool(told) == (name in IN_ANY_ORDER)
            assert "south-east" in prompt.constraint.gbnf
            assert "70000001" not in prompt.constraint.gbnf
            assert "stand here" not in prompt.constraint.gbnf
            assert '"function_0' not in prompt.constraint.gbnf
        if name in DRAWN:
            for arguments in drawn_arguments(tiny, prompt, rng):
                assert told or jsonschema.validate(arguments, FIND) is None, name
    assert unbound == WITHOUT_A_PLACE
    assert templates.keys() >= DRAWN


def test_a_format_without_a_place_is_reported_whatever_is_required(templates):
    [told] = prompt_of(templates["LFM2.5-Instruct"], ONE_OF, {"type": "object"}).adaptations
    assert told.field == "tools[0].parameters"


def test_what_no_grammar_says_is_reported(templates):
    regex = {"type": "object", "properties": {"to": {"type": "string", "format": "regex"}}}
    dynamic = {"type": "object", "properties": {"to": {"$dynamicRef": "#to"}}}
    for source in (TOOLS, templates["Qwen3-Coder"]):
        told = prompt_of(source, FIND, regex).adaptations
        assert [one.field for one in told] == ["tools[1].parameters"]
        assert "regex" in str(told[0].asked)
        told = prompt_of(source, FIND, dynamic).adaptations
        assert [one.field for one in told] == ["tools[1].parameters"]
        assert "dynamic references" in str(told[0].asked)


def test_arguments_are_bound_beside_a_schema_and_when_calls_are_free(tiny):
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    both = prompt_of(
        TOOLS, FIND, mode="auto", response_format={"type": "json_schema", "schema": schema}
    )
    assert allows(tiny, both, as_json(GOOD[0]))
    assert allows(tiny, both, "{}")
    assert not allows(tiny, both, as_json(BAD[0]))
    free = prompt_of(TOOLS, FIND, mode="auto")
    assert free.constraint.trigger_patterns or free.constraint.trigger_tokens
    assert "arguments-0-root" in free.constraint.gbnf


def test_a_format_without_a_grammar_of_free_calls_is_reported(templates):
    source = templates["meta-llama-Llama-3.3-70B-Instruct"]
    assert not prompt_of(source, FIND).adaptations
    [told] = prompt_of(source, FIND, mode="auto").adaptations
    assert told.field == "tools[0].parameters"


def test_tagged_schemas_with_references(tiny, templates):
    schema = {
        "type": "object",
        "properties": {"area": {"$ref": "#/$defs/Area"}, "unit": {"anyOf": [
            {"type": "string", "enum": ["km"]}, {"type": "null"}]}},
        "required": ["area"],
        "$defs": {"Area": {"type": "object", "properties": {"r": {"type": "integer", "minimum": 1},
                  "in": {"$ref": "#/$defs/Area"}}, "required": ["r"]}},
    }  # fmt: skip
    prompt = prompt_of(templates["Qwen3-Coder"], schema)
    for arguments, fits in (
        ({"area": {"r": 1, "in": {"r": 2}}}, 1), ({"area": {"r": 0}}, 0), ({"area": {"r": 1},
         "unit": "km"}, 1), ({"area": {"r": 1}, "unit": "mi"}, 0),
    ):  # fmt: skip
        text = as_tags(arguments)
        assert allows(tiny, prompt, text) == bool(fits), arguments
        if fits:
            [call] = prompt.parser.parse(text).tool_calls
            jsonschema.validate(json.loads(call.arguments), schema)
