"""What chat templates refuse: sources, messages, tools and arguments of another form."""

from __future__ import annotations

import pytest
import synthetic
from chats import CONVERSATION, TOOL, TOOLS_AND_THINKING

from pyllama import ChatTemplate, ChatTemplateError


@pytest.fixture(scope="module")
def template(tiny):
    return ChatTemplate(tiny)


@pytest.fixture(scope="module")
def with_tools():
    return ChatTemplate(source=TOOLS_AND_THINKING)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}",
        "{{ messages",
        "{% endfor %}",
        "{% if %}",
        "{{ 1 + }}",
        "{% nonsense %}",
    ],
)
def test_a_template_that_does_not_parse(tiny, source):
    with pytest.raises(ChatTemplateError, match="template"):
        ChatTemplate(tiny, source)


@pytest.mark.parametrize("source", ["", "  \n", "a\0b"])
def test_a_source_without_a_template(tiny, source):
    with pytest.raises(ChatTemplateError, match="source"):
        ChatTemplate(tiny, source)


@pytest.mark.parametrize("source", [3, b"{{ messages }}", True, ["{{ messages }}"]])
def test_a_source_of_another_type(tiny, source):
    with pytest.raises(TypeError, match="source"):
        ChatTemplate(tiny, source)


@pytest.mark.parametrize("model", [3, "model.gguf", object()])
def test_something_that_is_no_model(model):
    with pytest.raises(TypeError, match="model must be"):
        ChatTemplate(model, synthetic.CHATML)


def test_a_lone_surrogate_in_the_source(tiny):
    with pytest.raises(ChatTemplateError):
        ChatTemplate(tiny, "{{ messages[0].content }}\ud800")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only users here') }}",
        "{{ messages[0].content.nothing() }}",
        "{{ undefined_function() }}",
    ],
)
def test_a_template_that_refuses_its_messages(tiny, source):
    """It may already be refused when it is made, since llama.cpp tries it out."""
    with pytest.raises(ChatTemplateError, match="template"):
        ChatTemplate(tiny, source).apply(CONVERSATION)


def test_the_message_of_a_template_reaches_the_user(tiny):
    source = (
        "{% if messages[0].role == 'king' %}{{ raise_exception('no kings here') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    template = ChatTemplate(tiny, source)
    assert template.apply(CONVERSATION).prompt.startswith("Be brief.")
    with pytest.raises(ChatTemplateError, match="no kings here"):
        template.apply([{"role": "king", "content": "Hello"}])
    # And it still works.
    assert template.apply(CONVERSATION).prompt.startswith("Be brief.")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        3,
        "hello",
        ["hello"],
        [None],
        [3],
        [{"role": "user"}],
        [{"content": "Hello"}],
        [{"role": 3, "content": "Hello"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": object()}],
        [{"role": "user", "content": b"Hello"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{}],
    ],
)
def test_messages_of_another_form(template, messages):
    with pytest.raises(ChatTemplateError):
        template.apply(messages)
    assert template.apply(CONVERSATION).prompt


@pytest.mark.parametrize(
    "arguments",
    [
        {"tool_choice": "any"},
        {"tool_choice": None},
        {"tool_choice": {"type": "function"}},
        {"reasoning_format": "all"},
        {"continue_final_message": "role"},
        {"grammar": 3},
        {"json_schema": "{}"},
        {"json_schema": [1]},
        {"chat_template_kwargs": [1]},
        {"chat_template_kwargs": {1: 2}},
        {"chat_template_kwargs": {"enable_thinking": True}},
    ],
)
def test_arguments_of_another_kind(template, arguments):
    with pytest.raises((TypeError, ValueError), match=next(iter(arguments))):
        template.apply(CONVERSATION, **arguments)


@pytest.mark.parametrize(
    "tools",
    [
        3,
        "add",
        [3],
        [{}],
        [{"type": "function"}],
        [{"type": "function", "function": {}}],
        [{"type": "function", "function": {"name": 3}}],
        [{"type": "web_search", "function": {"name": "a"}}],
        [{"type": "function", "function": {"name": "a", "parameters": 3}}],
        [{"type": "function", "function": {"name": "a", "parameters": {"type": "nothing"}}}],
        [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "#/no"}}}],
        [{"type": "function", "function": {"name": "a", "description": object()}}],
    ],
)
def test_tools_of_another_form(with_tools, tools):
    with pytest.raises(ChatTemplateError):
        with_tools.apply(CONVERSATION, tools=tools)
    assert with_tools.apply(CONVERSATION, tools=[TOOL]).prompt


@pytest.mark.parametrize(
    "call",
    [
        3,
        {},
        {"type": "function"},
        {"type": "function", "function": {"name": "add"}},
        {"type": "function", "function": {"name": "add", "arguments": "no json"}},
        {"type": "function", "function": {"name": "add", "arguments": ""}},
        {"type": "function", "id": 3, "function": {"name": "add", "arguments": "{}"}},
    ],
)
def test_tool_calls_of_another_form(with_tools, call):
    with pytest.raises(ChatTemplateError):
        with_tools.apply([*CONVERSATION, {"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_variables_that_are_no_json(template, value):
    with pytest.raises(ChatTemplateError, match="JSON"):
        template.apply(CONVERSATION, chat_template_kwargs={"value": value})


def nested(depth: int, inner: object = None) -> object:
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize("depth", [120, 5_000, 200_000])
def test_arguments_that_nest_too_deep(with_tools, depth):
    text = '{"a":' * depth + "1" + "}" * depth
    call = {"type": "function", "function": {"name": "add", "arguments": text}}
    with pytest.raises(ChatTemplateError, match="deep"):
        with_tools.apply([*CONVERSATION, {"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(ChatTemplateError, match=r"deep|recursion"):
        with_tools.apply(CONVERSATION, chat_template_kwargs={"value": nested(depth)})


def test_references_that_lead_on_and_on(template):
    def chain(length: int) -> dict:
        steps = {f"s{i}": {"$ref": f"#/$defs/s{i + 1}"} for i in range(length)}
        return {"$ref": "#/$defs/s0", "$defs": {**steps, f"s{length}": {"type": "null"}}}

    assert template.apply(CONVERSATION, json_schema=chain(150)).grammar
    with pytest.raises(ChatTemplateError, match=r"\$ref"):
        template.apply(CONVERSATION, json_schema=chain(1_000))


def test_names_that_overflowed_the_stack(with_tools):
    """llama.cpp looks for what is no letter in the names of rules, and recurses for each."""
    short, long = "é" * 200, "é" * 100_000
    for name in (short, long):
        schemas = [
            {"type": "object", "properties": {name: {"type": "string"}}},
            {
                "type": "object",
                "$defs": {name: {"type": "string"}},
                "properties": {"a": {"$ref": f"#/$defs/{name}"}},
            },
        ]
        tools = [{"type": "function", "function": {"name": name, "parameters": {}}}]
        tools += [
            {"type": "function", "function": {"name": "f", "parameters": each}} for each in schemas
        ]
        options = [{"tools": [tool]} for tool in tools]
        options += [{"json_schema": schema} for schema in schemas]
        for option in options:
            if name is short:
                assert with_tools.apply(CONVERSATION, **option).grammar
                continue
            with pytest.raises(ChatTemplateError, match="no letters or digits than 512"):
                with_tools.apply(CONVERSATION, **option)


def test_a_reference_to_itself(template):
    loop = {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}},
    }
    assert template.apply(CONVERSATION, json_schema=loop).grammar


HELLO = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("make", "most", "what"),
    [
        (lambda n: "a" * (n - len(HELLO)) + HELLO, 256 * 1024, "size"),
        (lambda n: "{{ 1" + " + 1" * ((n - 4) // 2) + " }}" + HELLO, 1000, "tokens"),
        (lambda n: "{{ " + "not " * (n - 4) + "1 }}" + HELLO, 1000, "tokens"),
        (lambda n: "{{ " + "(" * n + "1" + ")" * n + " }}" + HELLO, 50, "brackets"),
        (lambda n: "{{ " + "[" * n + "]" * n + " }}" + HELLO, 50, "brackets"),
        (lambda n: "{% if 1 %}" * n + HELLO + "{% endif %}" * n, 50, "statements"),
        (lambda n: "{% for a in [1] %}" * n + HELLO + "{% endfor %}" * n, 50, "statements"),
        (lambda n: "{% filter upper %}" * n + HELLO + "{% endfilter %}" * n, 50, "statements"),
        (lambda n: "{% set a %}" * n + "{% endset %}" * n + HELLO, 50, "statements"),
        (
            lambda n: "{% if 0 %}" + "{% elif 0 %}" * (n - 1) + "{% endif %}" + HELLO,
            50,
            "statements",
        ),
    ],
)
def test_a_template_that_nests_too_deep(make, most, what):
    ChatTemplate(source=make(most)).apply(CONVERSATION)
    for size in (most + 2, most * 40):
        with pytest.raises(ChatTemplateError, match=what):
            ChatTemplate(source=make(size))


def test_statements_side_by_side_do_not_nest():
    source = "{% set a = 1 %}{% set b %}x{% endset %}{% if a %}{% elif b %}{% endif %}" * 200
    assert ChatTemplate(source=source + HELLO).apply(CONVERSATION).prompt == "Be brief."


def test_the_reason_why_a_template_does_not_parse(tiny):
    with pytest.raises(ChatTemplateError, match="Unknown statement: endfor"):
        ChatTemplate(tiny, "{% if 1 %}{% endfor %}")
    with pytest.raises(ChatTemplateError, match="missing end of comment"):
        ChatTemplate(tiny, "{# ")


def test_neither_model_nor_source():
    with pytest.raises(TypeError, match=r"model.*source"):
        ChatTemplate()


def test_a_model_has_tokens_of_its_own(tiny):
    with pytest.raises(ValueError, match="bos and eos"):
        ChatTemplate(tiny, bos="<s>")


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_tokens_of_another_type(name):
    with pytest.raises(TypeError, match=name):
        ChatTemplate(source=HELLO, **{name: 1})


def test_a_lone_surrogate_in_a_message_is_refused_or_replaced(template):
    try:
        rendered = template.apply([{"role": "user", "content": "a\ud800b"}])
    except ChatTemplateError:
        return
    rendered.prompt.encode()


def test_an_empty_conversation(template):
    assert template.apply([]).prompt == "<|im_start|>assistant\n"


def test_chat_template_errors_are_value_errors(tiny):
    with pytest.raises(ValueError, match="template"):
        ChatTemplate(tiny, "{{")
