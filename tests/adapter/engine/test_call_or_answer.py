"""Tools and a schema in one request: the grammar lets the answer be either, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from chats import TOOLS_AND_THINKING
from dspy import lm15
from dspy.lm15 import Config, FunctionTool, Message, Request, ToolChoice
from fake_generator import fake_model
from grammars import matches

import pyllama
from adapter.engine.call_or_answer import either
from adapter.engine.config import LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine
from adapter.engine.prompt import build_prompt

ADD = FunctionTool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
EMPTY = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def prompt_of(source, schema=EMPTY, **config):
    config["response_format"] = {"type": "json_schema", "schema": schema}
    request = Request("m", (Message.user("Hi"),), tools=(ADD,), config=Config(**config))
    return build_prompt(request, fake_model("x", source=source), None)


def supports_function_calling(source):
    model = fake_model("x", source=source)
    return LlamaCppEngine(model, LlamaCppConfig(model.name)).supports_function_calling


def allows(tiny, prompt, text):
    begun = "".join(map(chr, prompt.constraint.prefix))
    return matches(tiny.vocab, prompt.constraint.gbnf, begun + text)


# Of llama.cpp's own templates, those that show no tools, and one whose calls it cannot read.
WITHOUT_TOOLS = {
    "HuggingFaceTB-SmolLM3-3B",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "fireworks-ai-llama-3-firefunction-v2",
    "google-gemma-2-2b-it",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
    "ibm-granite-granite-3.3-2B-Instruct",
}


def test_an_engine_supports_function_calling_where_its_template_does():
    vendor = Path(__file__).parents[3] / "vendor"
    script = vendor / "fetch_llama_cpp.py"
    subprocess.run([sys.executable, str(script), "--test-data"], check=True)
    paths = list((vendor / "test-data" / "models" / "templates").glob("*.jinja"))
    sources = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    assert len(sources) > 60
    found = {name for name, source in sources.items() if not supports_function_calling(source)}
    assert found == WITHOUT_TOOLS


def test_tools_are_refused_where_calls_cannot_be_read():
    shows_tools = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ messages[0].content }}"
    assert not supports_function_calling(shows_tools)
    request = Request("m", (Message.user("Hi"),), tools=(ADD,))
    with pytest.raises(lm15.UnsupportedFeatureError, match="no form of calls"):
        build_prompt(request, fake_model("x", source=shows_tools), None)


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
