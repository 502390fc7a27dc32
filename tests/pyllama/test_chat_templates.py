"""Every template that llama.cpp tests with: rendered, and the rendered answer parsed back.

What a model answers is taken from the template itself: the same conversation is rendered with and
without the assistant's message, and the difference is its text.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from pyllama import ChatMessage, ChatParseError, ChatTemplate, ChatToolCall, Grammar

VENDOR = Path(__file__).parents[2] / "vendor"

DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"

# Where the model stops: the text of a token that ends its turn, which the template writes.
TURN_ENDS = {
    "Apertus-8B-Instruct": "<|assistant_end|>",
    "Apriel-1.6-15b-Thinker-fixed": "<|end|>",
    "Bielik-11B-v3.0-Instruct": "<|im_end|>",
    "ByteDance-Seed-OSS": "<seed:eos>",
    "Cohere2MoE": "<|END_OF_TURN_TOKEN|>",
    "CohereForAI-c4ai-command-r-plus-tool_use": "<|END_OF_TURN_TOKEN|>",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|END_OF_TURN_TOKEN|>",
    "GLM-4.6": "<|user|>",
    "GLM-4.7-Flash": "<|user|>",
    "GigaChat3-10B-A1.8B": "<|message_sep|>",
    "GigaChat3.1-10B-A1.8B": "<|message_sep|>",
    "HuggingFaceTB-SmolLM3-3B": "<|im_end|>",
    "Kimi-K2-Instruct": "<|im_end|>",
    "Kimi-K2-Thinking": "<|im_end|>",
    "Kimi-K3": "<|end_of_msg|>",
    "LFM2-8B-A1B": "<|im_end|>",
    "LFM2.5-8B-A1B": "<|im_end|>",
    "LFM2.5-Instruct": "<|im_end|>",
    "MiMo-VL": "<|im_end|>",
    "MiniMax-M1": "<end_of_sentence>",
    "MiniMax-M2": "[e~[",
    "MiniMax-M3": "[e~[",
    "Mistral-Small-3.2-24B-Instruct-2506": "</s>",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "<|im_end|>",
    "NVIDIA-Nemotron-Nano-v2": "<SPECIAL_12>",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "<|im_end|>",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "<|im_end|>",
    "Qwen-QwQ-32B": "<|im_end|>",
    "Qwen-Qwen2.5-7B-Instruct": "<|im_end|>",
    "Qwen-Qwen3-0.6B": "<|im_end|>",
    "Qwen3-Coder": "<|im_end|>",
    "Qwen3.5-4B": "<|im_end|>",
    "Reka-Edge": "<sep>",
    "Spark2.5": DEEPSEEK_END,
    "StepFun3.5-Flash": "<|im_end|>",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": DEEPSEEK_END,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": DEEPSEEK_END,
    "deepseek-ai-DeepSeek-V3.1": DEEPSEEK_END,
    "deepseek-ai-DeepSeek-V3.2": DEEPSEEK_END,
    "deepseek-ai-DeepSeek-V4": DEEPSEEK_END,
    "deepseek-ai-DeepSeek-V4-Flash-0731": DEEPSEEK_END,
    "fireworks-ai-llama-3-firefunction-v2": "<|eot_id|>",
    "google-gemma-2-2b-it": "<end_of_turn>",
    "google-gemma-4-31B-it": "<turn|>",
    "google-gemma-4-31B-it-interleaved": "<turn|>",
    "ibm-granite-granite-3.3-2B-Instruct": "<|end_of_text|>",
    "ibm-granite-granite-4.0": "<|end_of_text|>",
    "ibm-granite-granite-4.1": "<|end_of_text|>",
    "inclusionai-ling-3.0-flash": "<|role_end|>",
    "llama-cpp-deepseek-r1": DEEPSEEK_END,
    "llama-cpp-rwkv-world": "\n\n",
    "meetkai-functionary-medium-v3.1": "<|eot_id|>",
    "meetkai-functionary-medium-v3.2": "<|eot_id|>",
    "meta-llama-Llama-3.1-8B-Instruct": "<|eot_id|>",
    "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
    "meta-llama-Llama-3.3-70B-Instruct": "<|eot_id|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>",
    "mistralai-Ministral-3-14B-Reasoning-2512": "</s>",
    "mistralai-Mistral-Nemo-Instruct-2407": "</s>",
    "moonshotai-Kimi-K2": "<|im_end|>",
    "muse-glimmer": "<|eot|>",
    "openai-gpt-oss-120b": "<|return|>",
    "openbmb-MiniCPM5-1B": "<|im_end|>",
    "poolside-Laguna-S-2.1": "</assistant>",
    "poolside-Laguna-XS-2.1": "</assistant>",
    "poolside-Laguna-XS.2": "</assistant>",
    "tencent-Hy3": "<\uff5chy_eos:opensource\uff5c>",
    "unsloth-Apriel-1.5": "\n<|end|>",
    "unsloth-mistral-Devstral-Small-2507": "</s>",
    "upstage-Solar-Open-100B": "<|end|>",
}
# The same after a tool call, where that is another token.
CALL_ENDS = {
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": DEEPSEEK_END + "<\uff5cAssistant\uff5c>",
    "google-gemma-4-31B-it": "<|tool_response>",
    "meetkai-functionary-medium-v3.1": "<|eom_id|>",
    "openai-gpt-oss-120b": "<|call|>",
    "upstage-Solar-Open-100B": "<|begin|>",
}
# Where a template shows earlier turns otherwise than the model writes them: what it writes, as
# llama.cpp's own tests have it.
ANSWERS = {
    "CohereForAI-c4ai-command-r-plus-tool_use": "<|CHATBOT_TOKEN|>It will.<|END_OF_TURN_TOKEN|>",
    "NVIDIA-Nemotron-Nano-v2": "Look it up.</think>\nIt will.\n",
    "llama-cpp-rwkv-world": "It will.",
    "unsloth-mistral-Devstral-Small-2507": "It will.",
}
CALLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use": (
        'Action:\n```json\n[{"tool_name": "get_weather", '
        '"parameters": {"city": "Paris", "days": 3}}]\n```'
    ),
}
OPTIONS = {"tencent-Hy3": {"chat_template_kwargs": {"reasoning_effort": "high"}}}

WITHOUT_CALLS = (
    "HuggingFaceTB-SmolLM3-3B",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
)

# What the pinned llama.cpp cannot parse back.
NO_ROUND_TRIP = {
    "Mistral-Small-3.2-24B-Instruct-2506": "with an EOS token its format has [ARGS] twice",
    "upstage-Solar-Open-100B": "its format holds the id of llama.cpp's own trial call",
}

QUESTION = {"role": "user", "content": "Will it rain in Paris?"}
REASONING = "Look it up."
ANSWER = "It will."
ARGUMENTS = {"city": "Paris", "days": 3}
CALL_ID = "abcdefgh1"  # nine letters and digits, as Mistral's templates want it
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of the next days.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name."},
                "days": {"type": "integer", "description": "How many."},
            },
            "required": ["city", "days"],
        },
    },
}
ANSWERED = {"role": "assistant", "content": ANSWER, "reasoning_content": REASONING}
CALLED = {
    "role": "assistant",
    "content": "",
    "reasoning_content": REASONING,
    "tool_calls": [
        {
            "id": CALL_ID,
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": CALL_ID, "name": "get_weather", "content": "No rain."}


@pytest.fixture(scope="module")
def folder() -> Path:
    """llama.cpp's chat templates, from the pinned archive."""
    script = VENDOR / "fetch_llama_cpp.py"
    subprocess.run([sys.executable, str(script), "--test-data"], check=True)
    return VENDOR / "test-data" / "models" / "templates"


@pytest.fixture(scope="module")
def load(folder):
    @cache
    def load(name: str) -> ChatTemplate:
        source = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        return ChatTemplate(source=source, bos="<s>", eos="</s>")

    return load


every_template = pytest.mark.parametrize("name", TURN_ENDS)


def generated(template: ChatTemplate, answer: dict, end: str, **options: object):
    """The rendered question, and what the model would have generated to give this answer."""
    asked = template.apply([QUESTION], **options)
    shown = template.apply([QUESTION, answer], add_generation_prompt=False, **options).prompt
    if shown.startswith(asked.prompt):
        text = shown[len(asked.prompt) :]
    else:
        # The prompt begins to reason, and earlier turns are shown without their reasoning.
        before = asked.prompt.removesuffix(asked.generation_prompt)
        assert shown.startswith(before)
        header = asked.generation_prompt
        if asked.thinking_start_tag:
            header = header[: header.rfind(asked.thinking_start_tag)]
        text = shown[len(before) :]
        same = [one == other for one, other in zip(text, header, strict=False)]
        text = text[[*same, False].index(False) :]
        if asked.supports_thinking and REASONING not in text:
            text = f"{REASONING}{asked.thinking_end_tags[0]}{text}"
    assert text
    return asked, text[: text.rfind(end)] if end in text else text


def answered(name: str, template: ChatTemplate):
    if name in ANSWERS:
        return template.apply([QUESTION]), ANSWERS[name]
    return generated(template, ANSWERED, TURN_ENDS[name], **OPTIONS.get(name, {}))


def called(name: str, template: ChatTemplate):
    if name in CALLS:
        return template.apply([QUESTION], tools=[TOOL]), CALLS[name]
    end = CALL_ENDS.get(name, TURN_ENDS[name])
    return generated(template, CALLED, end, tools=[TOOL], **OPTIONS.get(name, {}))


def test_these_are_all(folder):
    assert {path.stem for path in folder.glob("*.jinja")} == TURN_ENDS.keys()


@every_template
def test_a_plain_conversation(load, name):
    template = load(name)
    assert template.source.strip()
    conversation = [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "And in Rome?"},
    ]
    rendered = template.apply(conversation)
    assert rendered.format
    assert rendered.prompt.endswith(rendered.generation_prompt)
    places = [rendered.prompt.find(str(message["content"])) for message in conversation]
    assert -1 not in places
    assert places[1:] == sorted(places[1:])  # the system message may stand beside the last one
    assert not rendered.grammar
    without = template.apply(conversation, add_generation_prompt=False)
    assert len(without.prompt) <= len(rendered.prompt)


@every_template
def test_an_answer_parses_back(load, name):
    asked, text = answered(name, load(name))
    message = asked.parser.parse(text)
    assert message.content.strip() == ANSWER
    assert message.tool_calls == ()
    assert message.reasoning_content.strip().endswith(REASONING) == (REASONING in text)


@every_template
def test_tools_where_the_template_has_them(load, name):
    template = load(name)
    conversation = [QUESTION, CALLED, RESULT]
    if not template.capabilities["supports_tool_calls"]:
        return
    rendered = template.apply(conversation, tools=[TOOL])
    assert ("The weather of the next days." in rendered.prompt) == (
        template.capabilities["supports_tools"]
    )
    assert "get_weather" in rendered.prompt
    assert "No rain." in rendered.prompt
    # Without a text that begins a call there is nothing to begin a grammar at.
    assert rendered.grammar_lazy == bool(rendered.grammar) == bool(rendered.grammar_triggers)
    assert all(trigger.value for trigger in rendered.grammar_triggers)
    eager = template.apply(conversation, tools=[TOOL], tool_choice="required")
    assert "root ::=" in eager.grammar
    assert not eager.grammar_lazy
    for grammar in {rendered.grammar, eager.grammar} - {""}:
        Grammar(grammar)  # is within its limits
    assert not template.apply(conversation, tools=[TOOL], tool_choice="none").grammar


def calling_templates():
    return [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(reason=NO_ROUND_TRIP[name], raises=ChatParseError)]
            if name in NO_ROUND_TRIP
            else [],
        )
        for name in TURN_ENDS
        if name not in WITHOUT_CALLS
    ]


@pytest.mark.parametrize("name", calling_templates())
def test_a_tool_call_parses_back(load, name):
    asked, text = called(name, load(name))
    message = asked.parser.parse(text)
    assert [call.name for call in message.tool_calls] == ["get_weather"]
    assert json.loads(message.tool_calls[0].arguments) == ARGUMENTS
    assert message.content.strip() == ""
    assert message.reasoning_content.strip().endswith(REASONING) == (REASONING in text)


@pytest.mark.parametrize("name", WITHOUT_CALLS)
def test_templates_without_calls_say_so(load, name):
    assert not load(name).capabilities["supports_tool_calls"]


@pytest.mark.parametrize("name", calling_templates())
def test_a_stream_adds_up_to_the_message(load, name):
    asked, text = called(name, load(name))
    whole = asked.parser.parse(text)
    content = reasoning = ""
    calls: dict[int, ChatToolCall] = {}
    previous = ChatMessage()
    for end in range(1, len(text) + 1):
        message = asked.parser.parse(text[:end], partial=end < len(text))
        for diff in message.compute_diffs(previous):
            content += diff.content_delta
            reasoning += diff.reasoning_content_delta
            if diff.tool_call_index is not None:
                call = calls.get(diff.tool_call_index, ChatToolCall("", ""))
                calls[diff.tool_call_index] = ChatToolCall(
                    diff.tool_call_delta.name or call.name,
                    call.arguments + diff.tool_call_delta.arguments,
                    diff.tool_call_delta.id or call.id,
                )
        previous = message
    assert ChatMessage(content, reasoning, tuple(calls.values())) == whole


@every_template
def test_a_kept_format_is_the_one_found_anew(load, name):
    """llama.cpp finds it by trying the template; what it finds does not depend on messages."""
    kept = load(name)
    tools = [TOOL] if kept.capabilities["supports_tool_calls"] else []
    conversation = [QUESTION, {"role": "assistant", "content": "No."}, QUESTION]
    kept.apply([{"role": "user", "content": "Hello"}], tools=tools)
    fresh = ChatTemplate(source=kept.source, bos="<s>", eos="</s>")
    assert kept.apply(conversation, tools=tools) == fresh.apply(conversation, tools=tools)
