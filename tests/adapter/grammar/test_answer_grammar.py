"""Grammars of answers: what an adapter reads fits, and nothing that it would read otherwise."""

from __future__ import annotations

import datetime
import enum
from typing import Any, Literal, Optional

import dspy
import pydantic
import pytest
from answer_types import signatures
from dspy.adapters.types import Code, Reasoning
from hypothesis import HealthCheck, Phase, given, settings
from texts import fits

import pyllama
from adapter import LlamaCppAdapter, constrained
from adapter.grammar.answer_grammar import CHAT, FIELD_LINES, JSON, XML, answer_grammar
from adapter.parsing import parse_completion


class Node(pydantic.BaseModel):
    value: int = pydantic.Field(ge=0)
    next: Node | None = None


class Colour(enum.Enum):
    RED = 1
    BLUE = "blau"


def asked(**outputs: Any) -> Any:
    fields: dict[str, Any] = {"question": (str, dspy.InputField())}
    for name, kind in outputs.items():
        fields[name] = (kind, dspy.OutputField())
    return dspy.Signature(fields, "Answer.")


def takes(tiny, text, form=FIELD_LINES, **outputs):
    return fits(tiny, answer_grammar(asked(**outputs), form).gbnf, text)


# LlamaCppAdapter's form

VALUES = [
    (int, ["0", "-12"], ["1.5", "twelve", "", "1 2"]),
    (float, ["0.5", "-3", "1e5"], [".5", "NaN", "1e999"]),
    (bool, ["True", "False"], ["true", "yes"]),
    (Literal["low", "b c"], ["low", "b c"], ["Low", "lo", "low."]),
    (Literal[1, "1", True, None], ["1", "True", "None"], ["2"]),
    (Literal[" padded"], ['" padded"'], [" padded"]),
    (Colour, ["1", "blau"], ["RED", "2"]),
    (Optional[int], ["None", "7"], ["null", ""]),
    (datetime.date, ["2024-02-29"], ["2023-02-29", "20240101", "1"]),
    (datetime.datetime, ["2024-01-01T10:00:00", "2024-01-01T10:00:00.5+01:00"], ["2024-01-01"]),
    (list[int], ["[]", "[1, 2]"], ["1, 2", "[1,]", '["1"]']),
    (dict[int, bool], ['{"1": true}', "{}"], ['{"a": true}', "{1: true}"]),
    (Node, ['{"value": 1, "next": {"value": 0}}'], ['{"value": -1}', "{}"]),
    (Optional[Node], ["None", '{"value": 3}'], ["null"]),
    (list[Literal["é", 2]], ['["é", 2]'], ['["e"]']),
]


@pytest.mark.parametrize(("kind", "good", "bad"), VALUES, ids=[str(v[0]) for v in VALUES])
def test_a_value_is_written_as_it_is_read(tiny, kind, good, bad):
    signature = asked(answer=kind)
    for text in good:
        assert takes(tiny, f"answer: {text}", answer=kind), text
        read = parse_completion(signature, f"answer: {text}")["answer"]
        pydantic.TypeAdapter(kind).validate_python(read)
    for text in bad:
        assert not takes(tiny, f"answer: {text}", answer=kind), text


@pytest.mark.parametrize(
    "text", ["", " yes", " a\nb", "\nline\n- x: 1", " None", "\n```\nscore: 1\n```"]
)
def test_free_text_ends_anywhere(tiny, text):
    assert takes(tiny, f"answer:{text}", answer=str)
    assert takes(tiny, f"answer:{text}\nscore: 1", answer=str, score=int)


@pytest.mark.parametrize(
    "line",
    ["score: 1", "  Score : x", "- **score**: x", "1. SCORE: x", "> `score`: x", "answer: x",
     "answer kind: x", "Answer-Kind: x", "*ANSWER_KIND:* x", "\u017fcore: x", "score\uff1ax",
     "```"],
)  # fmt: skip
def test_no_line_of_a_text_is_a_marker(tiny, line):
    outputs = {"answer": str, "score": int, "answer_kind": int}
    rest = "\nscore: 1\nanswer_kind: 2"
    assert takes(tiny, f"answer: text\nnot it: {rest}", **outputs)
    assert not takes(tiny, f"answer: text\n{line}{rest}", **outputs)


def test_fields_come_in_their_order(tiny):
    outputs = {"reasoning": Reasoning, "score": int, "answer": str}
    assert takes(tiny, "reasoning: x\n\nscore: 1\nanswer: y", **outputs)
    for text in (
        "score: 1\nreasoning: x\nanswer: y",
        "reasoning: x\nscore: 1",
        "Sure! reasoning: x",
    ):
        assert not takes(tiny, text, **outputs)


def test_code_stands_in_a_block(tiny):
    good = "program:\n```python\nscore = 1\nscore: 3\n\n```\nscore: 2"
    assert takes(tiny, good, program=Code, score=int)
    assert parse_completion(asked(program=Code, score=int), good)["score"] == 2
    assert not takes(tiny, "program:\n```python\nx\nscore: 2", program=Code, score=int)


def test_constraints_of_a_field(tiny):
    signature = dspy.Signature(
        {"question": (str, dspy.InputField()), "score": (float, dspy.OutputField(ge=0, le=1)),
         "code": (str, dspy.OutputField(pattern=r"^[A-Z]{3}$")),
         "name": (str, dspy.OutputField(min_length=2, max_length=4))},
    )  # fmt: skip
    gbnf = answer_grammar(signature, FIELD_LINES).gbnf
    assert fits(tiny, gbnf, "score: 0.7\ncode: ABC\nname: ab c")
    for text in ("score: 1.7\ncode: ABC\nname: abc", "score: 1\ncode: ABCD\nname: abc",
                 "score: 1\ncode: ABC\nname: a", "score: 1\ncode: ABC\nname: abcde"):  # fmt: skip
        assert not fits(tiny, gbnf, text)


def test_what_a_grammar_cannot_say_is_known():
    class Odd(pydantic.BaseModel):
        number: int = pydantic.Field(multiple_of=7)

    grammar = answer_grammar(asked(odd=Odd, picture=dspy.Image, sure=int), FIELD_LINES)
    assert dict(grammar.unchecked) == {"odd": ("multipleOf",), "picture": ("a form of its own",)}


# The others' forms


def test_chat_adapters_form(tiny):
    outputs = {"reasoning": str, "score": int, "when": datetime.date, "tags": list[str]}
    text = (
        "[[ ## reasoning ## ]]\nscore: 1\n[[ # ]]\n\n[[ ## score ## ]]\n3\n\n"
        '[[ ## when ## ]]\n"2024-01-01"\n\n[[ ## tags ## ]]\n["a"]\n\n[[ ## completed ## ]]'
    )
    assert takes(tiny, text, CHAT, **outputs)
    assert dspy.ChatAdapter().parse(asked(**outputs), text)["tags"] == ["a"]
    for line in ("[[ ## score ## ]]", "  [[ ## other ## ]]", "\u3000[[ ## completed ## ]]"):
        assert not takes(tiny, text.replace("[[ # ]]", line), CHAT, **outputs)


def test_xml_adapters_form(tiny):
    outputs = {"reasoning": str, "node": Node}
    text = '<reasoning>\na &lt; b\n</reasoning>\n\n<node>\n{"value": 1}\n</node>'
    assert takes(tiny, text, XML, **outputs)
    assert dspy.XMLAdapter().parse(asked(**outputs), text)["reasoning"].strip() == "a < b"
    assert not takes(tiny, text.replace("&lt;", "<"), XML, **outputs)
    assert not takes(tiny, text.replace("&lt;", "&"), XML, **outputs)


def test_json_adapters_form(tiny):
    outputs = {"größe": int, "name": str, "words": dict[str, Any]}
    text = '{"größe": 1, "name": "x", "words": {"a": [null]}}'
    assert takes(tiny, text, JSON, **outputs)
    assert not takes(tiny, '{"größe": 1, "name": "x"}', JSON, **outputs)


def test_a_signature_is_converted_once():
    signature = asked(answer=list[Node])
    grammar = answer_grammar(signature, FIELD_LINES)
    assert answer_grammar(signature.with_instructions("Other words."), FIELD_LINES) is grammar
    assert answer_grammar(signature, CHAT) is not grammar


@settings(
    deadline=None, max_examples=25, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(signatures())
def test_any_signature_has_a_grammar(signature):
    for form in (FIELD_LINES, CHAT, JSON, XML):
        pyllama.Grammar(answer_grammar(signature, form).gbnf)


def test_adapters_keep_their_kind():
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()):
        bound = constrained(adapter)
        assert isinstance(bound, type(adapter))
        assert type(bound).__name__ == type(adapter).__name__
        assert type(adapter) is not type(bound)
    for adapter in (
        LlamaCppAdapter(),
        dspy.TwoStepAdapter(dspy.LM("x")),
        constrained(dspy.JSONAdapter()),
    ):
        with pytest.raises(Exception, match="constrained"):
            constrained(adapter)
