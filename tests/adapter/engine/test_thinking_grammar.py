"""Answers behind what a model thinks: in the template's own format, or behind its tags."""

from __future__ import annotations

import pytest
from chats import TOOLS_AND_THINKING
from templated import templates
from texts import fits

import pyllama
from adapter.engine.thinking_grammar import ANSWER_SCHEMA, after_thinking

ANSWER = 'root ::= "score: " number\nnumber ::= [0-9]+ "\\"root\\""?\n'
HELLO = [{"role": "user", "content": "Hi"}]


def bound(source, **options):
    """The constraint of an answer, and the text that the prompt already holds of it."""
    template = pyllama.ChatTemplate(source=source)
    shaped = template.apply(HELLO, json_schema=ANSWER_SCHEMA, **options)
    begun = []
    constraint = after_thinking(ANSWER, shaped, lambda text: begun.append(text) or (1,))
    return constraint.gbnf, "".join(begun)


def test_thoughts_are_free_and_the_answer_is_bound(tiny):
    gbnf, begun = bound(TOOLS_AND_THINKING)
    for thoughts in ("", "<think>\nscore: x\n```json</think>\n\n"):
        assert fits(tiny, gbnf, f"{begun}{thoughts}score: 12")
        assert fits(tiny, gbnf, f'{begun}{thoughts}score: 1"root"')
        assert not fits(tiny, gbnf, f"{begun}{thoughts}score: x")
        assert not fits(tiny, gbnf, f"{begun}{thoughts}```json\nscore: 1\n```")
    assert not fits(tiny, gbnf, f"{begun}<think>never ending")


def test_thoughts_that_are_switched_off(tiny):
    gbnf, begun = bound(TOOLS_AND_THINKING, enable_thinking=False)
    assert fits(tiny, gbnf, f"{begun}score: 3")


def test_gpt_oss_thinks_once_and_announces_no_json(tiny):
    gbnf, begun = bound(templates()["openai-gpt-oss-120b"])
    thought = "<|channel|>analysis<|message|>so<|end|><|start|>assistant"
    final = "<|channel|>final"
    assert fits(tiny, gbnf, f"{begun}{final}<|message|>score: 1")
    assert fits(tiny, gbnf, f"{begun}{thought}{final}<|message|>score: 1")
    assert not fits(tiny, gbnf, f"{begun}{thought}{thought}{final}<|message|>score: 1")
    assert not fits(tiny, gbnf, f"{begun}{final} <|constrain|>json<|message|>score: 1")


class Shaped:
    """A rendered conversation of a format that has no place for a schema."""

    grammar = ""
    grammar_lazy = False
    thinking_start_tag = "<think>"
    thinking_end_tags = ("</think>",)

    def __init__(self, generation_prompt):
        self.generation_prompt = generation_prompt
        self.prompt = "Hi" + generation_prompt


@pytest.mark.parametrize(
    ("begin", "good", "bad"),
    [
        ("[A]", ["score: 1", "<think>a</</thin</think>\n\nscore: 1"], ["a</think>score: 1"]),
        ("[A]<think>\n", ["a<think></think>score: 1"], ["score: 1", "a</think>score: x"]),
        ("[A]<think></think>", ["score: 1", "<think>a</think> score: 1"], ["score: x"]),
    ],
)
def test_a_format_without_a_place_for_schemas(tiny, begin, good, bad):
    gbnf = after_thinking(ANSWER, Shaped(begin), lambda _: ()).gbnf
    for text in good:
        assert fits(tiny, gbnf, text), text
    for text in bad:
        assert not fits(tiny, gbnf, text), text


def test_a_format_without_thoughts():
    shaped = Shaped("[A]")
    shaped.thinking_end_tags = ()
    assert after_thinking(ANSWER, shaped, lambda _: ()).gbnf == ANSWER
