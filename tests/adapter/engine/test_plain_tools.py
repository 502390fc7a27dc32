"""Functions whose parameters have no single type, described to templates that expect one."""

from __future__ import annotations

import pytest
from templated import templates

import pyllama
from adapter.engine.plain_tools import plain_tools, without_arrays

NAMES = [
    "ByteDance-Seed-OSS",
    "GigaChat3-10B-A1.8B",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "openai-gpt-oss-120b",
]
PROPERTIES = {
    "any": {},
    "true": True,
    "either": {"anyOf": [{"type": "null"}, {"type": "integer"}], "description": "a count"},
    "several": {"type": ["string", "null"]},
    "values": {"enum": ["x", "y"]},
    "only": {"const": 3},
    "referred": {"$ref": "#/$defs/inner"},
    "list": {"type": "array"},
    "lists": {"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "boolean"}]}},
    "nested": {"properties": {"deep": {}}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "looks",
        "parameters": {
            "type": "object",
            "properties": PROPERTIES,
            "required": ["any"],
            "$defs": {"inner": {"type": "object", "properties": {"q": {"type": "integer"}}}},
        },
    },
}


def test_each_parameter_has_one_type():
    [tool] = plain_tools([TOOL])
    shown = tool["function"]["parameters"]["properties"]
    assert {name: one["type"] for name, one in shown.items()} == {
        "any": "string",
        "true": "string",
        "either": "integer",
        "several": "string",
        "values": "string",
        "only": "integer",
        "referred": "object",
        "list": "array",
        "lists": "array",
        "nested": "object",
    }
    assert shown["lists"]["items"]["type"] == "string"
    assert shown["either"]["description"] == "a count"
    assert TOOL["function"]["parameters"]["properties"] is PROPERTIES
    assert PROPERTIES["any"] == {}


def test_a_schema_that_refers_to_itself_has_a_type():
    loop = {"properties": {"a": {"$ref": "#/properties/a"}}}
    [tool] = plain_tools([{"type": "function", "function": {"name": "f", "parameters": loop}}])
    assert tool["function"]["parameters"]["properties"]["a"]["type"] == "string"


@pytest.mark.download
@pytest.mark.parametrize("name", NAMES)
def test_a_template_that_expects_types_takes_them(name):
    template = pyllama.ChatTemplate(source=templates()[name])
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(pyllama.ChatTemplateError):
        template.apply(messages, tools=[TOOL])
    assert "look" in template.apply(messages, tools=plain_tools([TOOL])).prompt


def test_an_array_may_be_described_in_words():
    [tool] = without_arrays([TOOL])
    shown = tool["function"]["parameters"]["properties"]
    assert shown["list"] == {
        "description": 'JSON of this schema: {"type": "array", "items": {"type": "string"}}'
    }
    assert shown["only"] == {"const": 3, "type": "integer"}
    assert TOOL["function"]["parameters"]["properties"] is PROPERTIES
    assert PROPERTIES["list"] == {"type": "array"}


@pytest.mark.download
def test_every_template_with_tools_can_show_an_array():
    messages = [{"role": "user", "content": "Hi"}]
    for name, source in templates().items():
        template = pyllama.ChatTemplate(source=source)
        for described in ([TOOL], plain_tools([TOOL]), without_arrays([TOOL])):
            try:
                template.apply(messages, tools=described)
                break
            except pyllama.ChatTemplateError:
                continue
        else:
            pytest.fail(f"{name} cannot show {TOOL}")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"type": "object", "properties": "x"}, {"type": "object", "properties": "x"}),
        ({"properties": [1]}, {"type": "object", "properties": [1]}),
        (
            {"properties": {"a": {"type": "array", "description": 5}}},
            {
                "type": "object",
                "properties": {
                    "a": {
                        "description": "JSON of this schema: "
                        '{"type": "array", "description": 5, "items": {"type": "string"}}'
                    }
                },
            },
        ),
    ],
)
def test_what_is_no_schema_is_shown_as_it_is(parameters, expected):
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    (shown,) = without_arrays([tool])
    assert shown["function"]["parameters"] == expected
