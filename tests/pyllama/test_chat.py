"""Chat templates: a model's own and others, with tools, schemas and reasoning."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta, timezone

import pytest
import synthetic
from chats import CONVERSATION, TOOL, TOOLS_AND_THINKING

import pyllama
from pyllama import ChatTemplate, ChatTemplateError


@pytest.fixture(scope="module")
def template(tiny):
    return ChatTemplate(tiny)


@pytest.fixture(scope="module")
def with_tools():
    return ChatTemplate(source=TOOLS_AND_THINKING)


def test_the_models_own_template(template):
    assert template.source == synthetic.CHATML
    assert template.apply(CONVERSATION).prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_the_beginning_of_an_answer(template):
    rendered = template.apply(CONVERSATION, add_generation_prompt=False)
    assert rendered.prompt.endswith("Hello<|im_end|>\n")


def test_the_prompt_tokenizes_to_the_special_tokens(tiny, template):
    prompt = template.apply(CONVERSATION).prompt
    tokens = tiny.vocab.tokenize(prompt, add_special=False, parse_special=True)
    assert tokens.count(synthetic.IM_START) == 3
    assert tokens.count(synthetic.IM_END) == 2


@pytest.mark.parametrize("text", ["", " ", "🦙 é \u202e", "{{ 1 + 1 }}{% raw %}", '"\\\n\t\0</s>'])
def test_content_is_taken_as_it_is(template, text):
    prompt = template.apply([{"role": "user", "content": text}]).prompt
    assert prompt == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_long_conversation(template):
    messages = [
        {"role": "user" if turn % 2 == 0 else "assistant", "content": f"turn {turn}"}
        for turn in range(201)
    ]
    prompt = template.apply(messages).prompt
    assert prompt.count("<|im_end|>") == 201
    assert prompt.index("turn 7<") < prompt.index("turn 8<")


def test_a_template_of_ones_own(tiny):
    source = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    template = ChatTemplate(tiny, source)
    assert template.source == source
    assert template.apply(CONVERSATION).prompt == "[system] Be brief.\n[user] Hello\n"


def test_a_template_for_a_model_without_one(write_tiny_model):
    with pyllama.Model(write_tiny_model(chat_template=None), vocab_only=True) as model:
        with pytest.raises(ChatTemplateError, match="no chat template"):
            ChatTemplate(model)
        template = ChatTemplate(model, synthetic.CHATML)
        assert "Hello" in template.apply(CONVERSATION).prompt


def test_capabilities_are_reported(template):
    assert template.capabilities
    assert all(isinstance(value, bool) for value in template.capabilities.values())


def test_a_template_outlives_its_model(tiny_model_path):
    with pyllama.Model(tiny_model_path, vocab_only=True) as model:
        template = ChatTemplate(model)
    assert "Hello" in template.apply(CONVERSATION).prompt


def test_a_rendered_chat_cannot_be_changed(template):
    rendered = template.apply(CONVERSATION)
    assert isinstance(rendered.stops, tuple)
    with pytest.raises(AttributeError):
        rendered.prompt = ""


def test_threads_may_share_a_template(template):
    expected = template.apply(CONVERSATION)
    different = []

    def work():
        different.extend(
            rendered for _ in range(20) if (rendered := template.apply(CONVERSATION)) != expected
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different


def test_a_template_without_a_model():
    template = ChatTemplate(source="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert template.apply(CONVERSATION).prompt == "Be brief."
    template = ChatTemplate(source=template.source, bos="<s>", eos="</s>")
    assert template.apply(CONVERSATION).prompt == "<s>Be brief.</s>"


def test_a_models_template_for_tools(write_tiny_model):
    path = write_tiny_model(
        chat_template=[
            {"name": "default", "template": "plain {{ messages[0].content }}"},
            {"name": "tool_use", "template": "tools {{ tools|length }} {{ messages[0].content }}"},
        ]
    )
    with pyllama.Model(path, vocab_only=True) as model:
        template = ChatTemplate(model)
    assert template.source == "plain {{ messages[0].content }}"
    assert template.apply(CONVERSATION).prompt == "plain Be brief."
    assert template.apply(CONVERSATION, tools=[TOOL]).prompt == "tools 1 Be brief."


def test_content_in_parts(template):
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    prompt = template.apply([{"role": "user", "content": parts}]).prompt
    assert prompt == "<|im_start|>user\nHello\nthere<|im_end|>\n<|im_start|>assistant\n"


def test_variables_of_ones_own():
    template = ChatTemplate(source="{{ tone }}{{ lines|tojson }}{{ enable_thinking }}")
    rendered = template.apply(
        CONVERSATION,
        chat_template_kwargs={"tone": "kind", "lines": [1, None]},
        enable_thinking=False,
    )
    assert rendered.prompt == "kind[1, null]False"


# The present


def test_a_template_is_told_the_time():
    source = "{{ strftime_now('%d %b %Y %H:%M:%S %j') }} {{ date_string }} {{ datetime }}"
    template = ChatTemplate(source=source)
    assert template.source == source
    now = datetime(2031, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=9)))
    expected = "03 Feb 2031 04:05:06 034 03 Feb 2031 Feb 03 2031"
    assert template.apply(CONVERSATION, now=now).prompt == expected
    assert template.apply(CONVERSATION, now=now.replace(tzinfo=None)).prompt == expected


def test_the_time_is_that_of_the_clock_unless_given():
    template = ChatTemplate(
        source="{% macro f() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ f() }}"
    )
    before = datetime.now().astimezone()
    prompt = template.apply(CONVERSATION).prompt
    after = datetime.now().astimezone()
    assert prompt in {f"{before:%Y-%m-%d}", f"{after:%Y-%m-%d}"}


@pytest.mark.parametrize(
    "before", ["", " ", "\n", " \n x", "{# a #}\n", "{%- if 1 %}\n y{% endif %}\n"]
)
@pytest.mark.parametrize("time", ["{{ %s }}", "{{- %s -}}", "y\n  {%% set t = %s %%}\n{{ t }}"])
def test_telling_the_time_changes_nothing_around_it(before, time):
    now = datetime(2031, 2, 3, tzinfo=timezone.utc)
    told, literal = (
        ChatTemplate(source=before + time % text + " end").apply(CONVERSATION, now=now).prompt
        for text in ("strftime_now('%Y')", "'2031'")
    )
    assert told == literal


@pytest.mark.parametrize("now", [0, "2031-02-03", object()])
def test_a_present_of_another_type(template, now):
    with pytest.raises(TypeError, match="now must be"):
        template.apply(CONVERSATION, now=now)


# Tools, schemas and grammars


def test_capabilities_of_a_template_with_tools(with_tools):
    assert with_tools.capabilities == {
        "supports_string_content": True,
        "supports_typed_content": False,
        "supports_system_role": True,
        "supports_tools": True,
        "supports_tool_calls": True,
        "supports_parallel_tool_calls": True,
        "supports_object_arguments": True,
        "supports_thinking": True,
        "supports_preserve_reasoning": True,
        "supports_reasoning_effort": False,
    }


def test_capabilities_of_a_plain_template(template):
    assert not template.capabilities["supports_tools"]
    assert not template.capabilities["supports_tool_calls"]
    assert not template.capabilities["supports_thinking"]
    assert set(template.capabilities) == set(pyllama.ChatCapabilities.__annotations__)


def test_tools_are_described_and_called(with_tools):
    rendered = with_tools.apply(CONVERSATION, tools=[TOOL])
    assert json.dumps(TOOL["function"]["parameters"]) in rendered.prompt
    assert rendered.generation_prompt == "<|im_start|>assistant\n"
    assert rendered.grammar_lazy
    assert rendered.grammar_triggers == (pyllama.GrammarTrigger("word", "<tool_call>\n"),)
    assert rendered.supports_thinking
    assert (rendered.thinking_start_tag, rendered.thinking_end_tags) == ("<think>", ("</think>",))
    assert "<tool_call>" in rendered.preserved_tokens


def test_a_required_call_is_enforced_at_once(with_tools):
    rendered = with_tools.apply(CONVERSATION, tools=[TOOL], tool_choice="required")
    assert "tool-add" in rendered.grammar
    assert not rendered.grammar_lazy
    assert rendered.grammar_triggers == ()


def test_parallel_calls_can_be_excluded(with_tools):
    one = with_tools.apply(CONVERSATION, tools=[TOOL], parallel_tool_calls=False)
    many = with_tools.apply(CONVERSATION, tools=[TOOL], parallel_tool_calls=True)
    assert one.grammar != many.grammar
    assert with_tools.apply(CONVERSATION, tools=[TOOL]) == many


def test_thinking_can_be_turned_off(with_tools):
    assert with_tools.apply(CONVERSATION, enable_thinking=False).prompt.endswith("</think>\n\n")


def test_a_schema_becomes_a_grammar(template):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    rendered = template.apply(CONVERSATION, json_schema=schema)
    assert "root ::=" in rendered.grammar
    assert '\\"n\\"' in rendered.grammar
    assert not rendered.grammar_lazy
    assert rendered.parser.parse('{"n": 3}').content == '{"n": 3}'


def test_an_empty_schema_is_any_object(template):
    assert template.apply(CONVERSATION, json_schema={}) == template.apply(
        CONVERSATION, json_schema={"type": "object"}
    )


def test_a_grammar_is_passed_on(template, with_tools):
    grammar = 'root ::= "yes" | "no"'
    assert template.apply(CONVERSATION, grammar=grammar).grammar == grammar
    rendered = with_tools.apply(CONVERSATION, grammar=grammar, tools=[TOOL], tool_choice="none")
    assert rendered.grammar == grammar
    assert template.apply(CONVERSATION).grammar == ""


@pytest.mark.parametrize("other", [{"json_schema": {"type": "object"}}, {"tools": [TOOL]}])
def test_a_grammar_excludes_what_makes_one(with_tools, other):
    with pytest.raises(ValueError, match="grammar excludes"):
        with_tools.apply(CONVERSATION, grammar='root ::= "a"', **other)


# Continuing a message


@pytest.mark.parametrize("how", [True, "content"])
def test_continuing_an_answer(with_tools, how):
    beginning = {"role": "assistant", "content": "Once upon", "reasoning_content": "A tale."}
    rendered = with_tools.apply([*CONVERSATION, beginning], continue_final_message=how)
    assert rendered.prompt.endswith(
        "<|im_start|>assistant\n<think>\nA tale.\n</think>\n\nOnce upon"
    )
    message = rendered.parser.parse(" a time")
    assert message.content == "Once upon a time"
    assert message.reasoning_content.strip() == "A tale."
    assert rendered.parser.parse("", partial=True).content == "Once upon"


def test_continuing_to_reason(with_tools):
    beginning = {"role": "assistant", "content": "", "reasoning_content": "A tale"}
    for how in (True, "reasoning_content"):
        rendered = with_tools.apply([*CONVERSATION, beginning], continue_final_message=how)
        assert rendered.prompt.endswith("<think>\nA tale")
        message = rendered.parser.parse(" of two.\n</think>\n\nOnce")
        assert message.reasoning_content.strip() == "A tale of two."
        assert message.content == "Once"


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        CONVERSATION,
        [*CONVERSATION, {"role": "assistant", "content": "", "tool_calls": [{}]}],
    ],
)
def test_nothing_to_continue(template, conversation):
    with pytest.raises(ChatTemplateError, match="continue_final_message"):
        template.apply(conversation, continue_final_message=True)


# The real model


@pytest.mark.model
def test_the_real_models_template(smollm2):
    """The ids are those that the pinned llama.cpp's own tool prints for this conversation:
    ``llama-completion -m MODEL -st -sys "Be brief." -p Hello --verbose-prompt -n 1``.
    """
    template = ChatTemplate(smollm2)
    prompt = template.apply(CONVERSATION).prompt
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert smollm2.vocab.tokenize(prompt, parse_special=True) == [
        *(1, 9690, 198, 6077, 5453, 30, 2, 198),
        *(1, 4093, 198, 19556, 2, 198),
        *(1, 520, 9531, 198),
    ]
