from __future__ import annotations

import dspy
import pytest
from fake_generator import adapter_of, fake_model
from grammars import matches

import pyllama
from adapter import LlamaCppAdapter
from adapter.signatures.answer_grammar import FIELD_LINES, answer_grammar
from adapter.signatures.paragraphs import below_their_names, single_paragraphs


def test_one_of_several_ends_at_a_blank_line():
    signature = dspy.Signature("question -> reasoning, title, answer")
    assert single_paragraphs(signature, []) == {"reasoning", "title", "answer"}


def test_an_answer_alone_may_be_long():
    assert single_paragraphs(dspy.Signature("question -> reasoning, answer"), []) == {"reasoning"}
    assert single_paragraphs(dspy.Signature("question -> answer"), []) == set()


@pytest.mark.parametrize(
    ("name", "desc"),
    [("email", None), ("cover_letter", None), ("why", "two paragraphs"), ("why", "an e-mail"),
     ("why", "Several lines."), ("why", "think in steps"), ("why", "a long answer")],
)  # fmt: skip
def test_a_field_may_ask_for_more(name, desc):
    described = dspy.OutputField(**({"desc": desc} if desc else {}))
    signature = dspy.Signature(
        {"question": (str, dspy.InputField()), name: (str, described),
         "sure": (bool, dspy.OutputField())}
    )  # fmt: skip
    assert single_paragraphs(signature, []).isdisjoint({name})


def test_only_whole_words_ask_for_more():
    signature = dspy.Signature("question -> storyteller, decoded, answer")
    assert single_paragraphs(signature, []) == {"storyteller", "decoded", "answer"}


def test_a_demonstration_shows_more():
    signature = dspy.Signature("question -> why, answer")
    for why, expected in (
        ("a\n\nb", {"answer"}),
        ("a\n \t\nb", {"answer"}),
        ("a\nb", {"why", "answer"}),
    ):
        assert single_paragraphs(signature, [{"why": "x"}, {"why": why}]) == expected
    assert single_paragraphs(signature, [{"answer": "a\n\nb"}, {}]) == {"why"}


@pytest.mark.parametrize(("setting", "is_taken"), [(True, False), (False, True)])
def test_the_setting(tiny, setting, is_taken):
    model = fake_model("why: x\nanswer: y")
    adapter = LlamaCppAdapter(adapter_of(model).lm, end_texts_at_blank_line=setting)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        dspy.Predict("question -> why, answer")(question="q")
    [request] = model.generator.requests
    grammar = pyllama.Grammar(request.constraint.gbnf)
    assert matches(tiny.vocab, grammar, "why: a\n\nb\nanswer: y") == is_taken
    assert matches(tiny.vocab, grammar, "why: a\nanswer: y\n\nz") == is_taken
    # A model whose text ends there need find no other end.
    assert matches(tiny.vocab, grammar, "why: a\nanswer: y\n\n") != is_taken


@pytest.mark.parametrize(
    ("answers", "is_below"),
    [
        (["8"], True),
        ([8], True),
        (["8", "12 km"], True),
        (["cold"], False),
        (["8", "cold"], False),
        (["-8"], False),
        ([""], False),
        ([], False),
        (["8", "5", "3"], False),  # enough to show that all values are numbers
    ],
)
def test_numbers_of_few_demonstrations_stand_below_the_name(answers, is_below):
    signature = dspy.Signature("question -> sure: bool, count: int, answer")
    demos = [{"question": "q", "sure": True, "count": 3, "answer": one} for one in answers]
    assert below_their_names(signature, demos) == ({"answer"} if is_below else set())
    assert below_their_names(signature, [{"question": "q"}]) == set()


@pytest.mark.parametrize("outputs", ["reasoning, answer", "reasoning, answer, sure: bool"])
def test_an_answer_is_written_as_such_a_demonstration_is(tiny, outputs):
    adapter = LlamaCppAdapter()
    signature = dspy.Signature(f"question -> {outputs}")
    demos = [{"question": "q", "reasoning": "It has 8.", "answer": "8", "sure": True}]
    shown = adapter.format(signature, demos, {"question": "x"})[2]["content"]
    assert shown.startswith("reasoning: It has 8.\nanswer:\n8")
    made = answer_grammar(signature, FIELD_LINES, adapter._known_of_fields(signature, demos))
    grammar = pyllama.Grammar(made.gbnf)
    assert matches(tiny.vocab, grammar, shown)
    assert not matches(tiny.vocab, grammar, shown.replace("answer:\n8", "answer: 8"))
    assert adapter.parse(signature, shown)["answer"] == "8"
    other = adapter.format(signature, [{**demos[0], "answer": "cold"}], {"question": "x"})
    assert other[2]["content"].startswith("reasoning: It has 8.\nanswer: cold")
