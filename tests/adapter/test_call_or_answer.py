"""Tools and a schema in one request: the grammar lets the answer be either, and nothing else."""

from __future__ import annotations

from chats import TOOLS_AND_THINKING
from dspy.lm15 import Config, FunctionTool, Message, Request, ToolChoice
from fake_generator import fake_model
from grammars import matches

import pyllama
from adapter.call_or_answer import either
from adapter.prompt import build_prompt

ADD = FunctionTool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
EMPTY = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def prompt_of(source, schema=EMPTY, **config):
    config["response_format"] = {"type": "json_schema", "schema": schema}
    request = Request("m", (Message.user("Hi"),), tools=(ADD,), config=Config(**config))
    return build_prompt(request, fake_model("x", source=source), None)


def allows(tiny, prompt, text):
    begun = "".join(map(chr, prompt.constraint.begun))
    return matches(tiny.vocab, prompt.constraint.gbnf, begun + text)


def test_a_call_or_the_empty_object(tiny):
    prompt = prompt_of(TOOLS_AND_THINKING)
    assert prompt.constraint.trigger_patterns == prompt.constraint.trigger_tokens == ()
    assert allows(tiny, prompt, "{}")
    assert allows(tiny, prompt, CALL)
    for text in ("", "Hello", "{", '{"a": 1}', CALL.replace("add", "sub")):
        assert not allows(tiny, prompt, text), text
    assert prompt.parser.parse("{}").content == "{}"
    assert prompt.parser.parse(CALL).tool_calls[0].name == "add"


def test_a_schema_with_properties(tiny):
    schema = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
    prompt = prompt_of(TOOLS_AND_THINKING, schema)
    assert allows(tiny, prompt, '{"b": true}')
    assert allows(tiny, prompt, CALL)
    assert not allows(tiny, prompt, "{}")


def test_where_a_call_is_required_the_schema_gives_way(tiny):
    prompt = prompt_of(TOOLS_AND_THINKING, tool_choice=ToolChoice("required"))
    assert allows(tiny, prompt, CALL)
    assert allows(tiny, prompt, f"<think>\nhm\n</think>\n\n{CALL}")
    for text in ("{}", "Hello", f"Let me see.\n{CALL}"):
        assert not allows(tiny, prompt, text), text


def test_without_tools_the_schema_is_all(tiny):
    prompt = prompt_of(TOOLS_AND_THINKING, tool_choice=ToolChoice("none"))
    assert allows(tiny, prompt, "{}")
    assert not allows(tiny, prompt, CALL)


def test_a_format_whose_calls_are_bare_objects(tiny):
    """As Llama 3.x has it: an empty object is an answer all the same."""
    source = """{%- if tools %}{{- 'Call: {"name": ..., "parameters": ...}\\n' }}
{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{%- endif %}
{%- for message in messages %}<{{ message.role }}>
{%- for call in message.tool_calls or [] %}
{{- '{"name": "' + call.function.name + '", "parameters": ' }}
{{- call.function.arguments | tojson }}{{- '}' }}
{%- endfor %}{{ message.content or '' }}<|im_end|>{%- endfor %}
{%- if add_generation_prompt %}<assistant>{%- endif %}"""
    prompt = prompt_of(source)
    call = '{"name": "add", "parameters": {"a": 1}}'
    assert allows(tiny, prompt, call)
    assert allows(tiny, prompt, "{}")
    assert prompt.parser.parse(call).tool_calls[0].name == "add"
    assert prompt.parser.parse("{}").content == "{}"


def test_either_keeps_literals_classes_and_repetitions(tiny):
    one = 'root ::= x{1,2} "root" [a-z"\\]] # root\nx ::= "x\\"" | "y"'
    other = 'root ::= x+\nx ::= "1" | "2"'
    grammar = either(one, other)
    pyllama.Grammar(grammar)
    for text in ('x"roota', 'yyroot"', "yroot]", "1", "1212"):
        assert matches(tiny.vocab, grammar, text), text
    for text in ("root", "x1", "1x", "yyyroota", "3"):
        assert not matches(tiny.vocab, grammar, text), text
