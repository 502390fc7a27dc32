"""Chat templates: a model's own, others, and what they refuse."""

from __future__ import annotations

import threading

import pytest
import synthetic

import pyllama
from pyllama import ChatTemplate, ChatTemplateError

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
]


@pytest.fixture(scope="module")
def template(tiny):
    return ChatTemplate(tiny)


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


def test_capabilities_are_told(template):
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


# What is refused


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


@pytest.mark.parametrize("model", [None, "model.gguf", object()])
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
