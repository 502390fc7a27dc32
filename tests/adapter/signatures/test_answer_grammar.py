"""Grammars of answers: what an adapter reads fits, and nothing that it would read otherwise."""

from __future__ import annotations

import datetime
import enum
import json
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import dspy
import pydantic
import pytest
from answer_types import signatures
from dspy.adapters.types import Code, Reasoning
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from texts import fits

import pyllama
from adapter import LlamaCppAdapter, constrained
from adapter.grammar.gbnf.field_places import fields_at
from adapter.signatures.answer_grammar import CHAT, FIELD_LINES, JSON, XML, answer_grammar
from adapter.signatures.parsing import parse_completion


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


TEXT_LINES = st.lists(
    st.sampled_from(
        ["x", "", "score: 3", "Score: 3", "- **answer_kind**: y", "answer kind: z", "answer: no",
         "question: q", "Question: q", "```", "``` py", " ```", "> score: 1", "text score: 1"]
    ),
    max_size=5,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(TEXT_LINES, TEXT_LINES)
def test_what_was_written_under_a_marker_is_what_is_read(tiny, first, last):
    signature = asked(answer=str, score=int, answer_kind=str)
    one, other = ("\n".join(lines) for lines in (first, last))
    text = f"answer: {one}\nscore: 3\nanswer_kind:\n{other}"
    if fits(tiny, answer_grammar(signature, FIELD_LINES).gbnf, text):
        read = parse_completion(signature, text, is_bound=True)
        assert read == {"answer": one.strip(), "score": 3, "answer_kind": other.strip()}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [(" a", True), (" a\nb", True), ("\na\nb", True), ("\n\na", True), ("", True),
     ("\n```\nx\n\ny\n```\nz", True), (" a\n\nb", False), ("\na\n\nb", False)],
)  # fmt: skip
def test_a_paragraph_ends_at_a_blank_line(tiny, text, is_one):
    signature = asked(answer=str, why=str)
    known = {name: {"paragraph": True} for name in signature.output_fields}
    gbnf = answer_grammar(signature, FIELD_LINES, known).gbnf
    assert takes(tiny, f"answer:{text}\n\nwhy: x", answer=str, why=str)
    assert fits(tiny, gbnf, f"answer:{text}\n\nwhy: x") == is_one
    assert fits(tiny, gbnf, f"answer: x\nwhy:{text}") == is_one
    if is_one:  # the last one may have the blank line after which it ends
        assert fits(tiny, gbnf, f"answer: x\nwhy:{text}\n\n")
    gbnf = answer_grammar(signature, FIELD_LINES, {"answer": {"paragraph": True}}).gbnf
    assert fits(tiny, gbnf, f"answer: x\nwhy:{text}")


def test_a_paragraph_that_must_be_there_begins_at_its_marker(tiny):
    known = {"why": {"paragraph": True, "required": True}, "answer": {"required": True}}
    gbnf = answer_grammar(asked(why=str, answer=str), FIELD_LINES, known).gbnf
    for why, answer in ((" a\nb", " c"), (" a", "\nc"), (" a\n```\n\n```", " c\n\nd")):
        assert fits(tiny, gbnf, f"why:{why}\nanswer:{answer}")
    for why, answer in (("\na", " c"), ("", " c"), ("  ", " c"), (" a", ""), (" a", " ")):
        assert not fits(tiny, gbnf, f"why:{why}\nanswer:{answer}")


def test_a_text_does_not_begin_with_what_stands_for_it_in_the_prompt(tiny):
    known = {"answer": {"unwritten": ("(text)", "...")}}
    gbnf = answer_grammar(asked(answer=str), FIELD_LINES, known).gbnf
    for text in (" (texts)", " (tex", "\n\n(a) b", " ..", "", " a\n(text)"):
        assert fits(tiny, gbnf, f"answer:{text}"), text
    for text in (" (text)", "  (text) and more", "\n(text)", " ...", "\n\n... a"):
        assert not fits(tiny, gbnf, f"answer:{text}"), text


def test_values_that_depend_on_the_field_before(tiny):
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    by_value = (("add", json.dumps(number)), ("finish", '{"type": "object", "maxProperties": 0}'))
    signature = asked(thought=str, name=Literal["add", "finish"], arguments=dict[str, Any])
    gbnf = answer_grammar(signature, FIELD_LINES, {"arguments": {"by_value": by_value}}).gbnf
    for name, good, bad in (("add", '{"n": 1}', "{}"), ("finish", "{}", '{"n": 1}')):
        assert fits(tiny, gbnf, f"thought: x\nname: {name}\narguments: {good}")
        assert not fits(tiny, gbnf, f"thought: x\nname: {name}\narguments: {bad}")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("thought: a", "thought"),
        ("thought: a\nname: ad", "name"),
        ("thought: a\nname: fin", "name"),
        ('thought: a\nname: add\narguments: {"n"', "arguments"),
        ("thought: a\nname: finish\narguments: {", "arguments"),
    ],
)
def test_which_of_two_fields_written_together_is_known(tiny, text, field):
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    by_value = (("add", json.dumps(number)), ("finish", '{"type": "object", "maxProperties": 0}'))
    signature = asked(thought=str, name=Literal["add", "finish"], arguments=dict[str, Any])
    gbnf = answer_grammar(signature, FIELD_LINES, {"arguments": {"by_value": by_value}}).gbnf
    with pyllama.GrammarSampler(tiny.vocab, gbnf) as sampler:
        sampler.complete_within(500)
        for token in tiny.vocab.tokenize(text, add_special=False):
            sampler.accept(token)
        assert fields_at(gbnf, sampler.shortened(here=True)) == [field]


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
        numbers: list[int] = pydantic.Field(json_schema_extra={"uniqueItems": True})
        huge: int = pydantic.Field(multiple_of=123457)

    grammar = answer_grammar(asked(odd=Odd, picture=dspy.Image, sure=int), FIELD_LINES)
    assert dict(grammar.unchecked) == {
        "odd": ("uniqueItems", "multipleOf"), "picture": ("a form of its own",)
    }  # fmt: skip


DAY = datetime.date(2024, 5, 17)
NOON = datetime.datetime(2024, 5, 17, 12, 0, 0, 500)  # noqa: DTZ001
UTC = datetime.timezone.utc
CONSTRAINED = [
    (int, {"multiple_of": 5, "ge": 0, "le": 20}, ["0", "5", "20"], ["3", "25", "-5", "00"]),
    (int, {"multiple_of": 360}, ["-720", "0", "3600"], ["361", "36"]),
    (int, {"multiple_of": 7, "gt": 10**6}, ["1000006"], ["999999", "1000007"]),
    (float, {"multiple_of": 0.25, "lt": 2}, ["1.75", "-3.5", "0", "1.5"], ["1.7", "2", "2.25"]),
    (float, {"gt": 0, "le": 1}, ["0.5", "1", "1.0"], ["0", "5", "-1", "1.01"]),
    (Decimal, {"max_digits": 4, "decimal_places": 2}, ["12.5", "0.05", "-99.99"],
     ["123", "1.234", "100.5"]),
    (Decimal, {"multiple_of": Decimal("0.05"), "ge": 0}, ["0.15", "3"], ["0.12", "-0.05"]),
    (datetime.date, {"ge": DAY, "lt": datetime.date(2025, 1, 1)},
     ["2024-05-17", "2024-12-31"], ["2024-05-16", "2025-01-01", "2024-06-31"]),
    (datetime.date, {"gt": DAY}, ["2024-05-18"], ["2024-05-17"]),
    (datetime.datetime, {"ge": NOON}, ["2024-05-17T12:00:01", "2025-01-01T00:00:00.25"],
     ["2024-05-17T12:00:00", "2024-05-17T11:59:59", "2025-01-01T00:00:00Z"]),
    (datetime.datetime, {"le": NOON}, ["2024-05-17T12:00:00", "2024-05-17T11:59:59.9"],
     ["2024-05-17T12:00:00.001", "2024-05-17T12:00:01"]),
    (datetime.datetime, {"le": NOON.replace(tzinfo=UTC)}, ["2024-05-17T12:00:00Z"],
     ["2024-05-17T12:00:00", "2024-05-17T12:00:01Z", "2024-05-17T12:00:00+00:00"]),
    (datetime.time, {"ge": datetime.time(9), "le": datetime.time(17, 30)},
     ["09:00:00", "17:30:00", "12:34:56.7"], ["08:59:59", "17:30:00.5", "18:00:00"]),
    (datetime.timedelta, {"gt": datetime.timedelta(0), "le": datetime.timedelta(hours=2)},
     ["PT1S", "PT7200S", "PT2H", "PT90M"], ["PT0S", "PT3H", "P1D", "PT7201S"]),
    (str, {"pattern": "^[a-z]+(-[a-z]+)*$", "min_length": 4, "max_length": 6},
     ["abcd", "ab-cde"], ["abc", "abcdefg", "ab--cd", "abcd-"]),
    (str, {"pattern": "x", "max_length": 3}, ["x", "axb", "x y"], ["aaa", "xaaa"]),
    (Literal["a", "bb", "ccc"], {"min_length": 2}, ["bb", "ccc"], ["a"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "constraints", "good", "bad"), CONSTRAINED, ids=[f"{c[0]} {c[1]}" for c in CONSTRAINED]
)
def test_constraints_are_in_the_grammar(tiny, kind, constraints, good, bad):
    fields = {"question": (str, dspy.InputField()), "v": (kind, dspy.OutputField(**constraints))}
    signature = dspy.Signature(fields, "Answer.")
    is_text = kind not in (int, float, Decimal)
    for form, begin, end in (
        (FIELD_LINES, "v: ", ""),
        (CHAT, "[[ ## v ## ]]\n", "\n\n[[ ## completed ## ]]"),
        (JSON, '{"v": ', "}"),
        (XML, "<v>\n", "\n</v>"),
    ):
        quoted = is_text and (form is JSON or (form is not FIELD_LINES and kind in MOMENTS))
        grammar = answer_grammar(signature, form)
        assert not grammar.unchecked
        for texts, fitting in ((good, True), (bad, False)):
            for text in texts:
                written = f'"{text}"' if quoted else text
                assert fits(tiny, grammar.gbnf, f"{begin}{written}{end}") == fitting, (form, text)
    for text in good:
        parse_completion(signature, f"v: {text}")


MOMENTS = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta)


def test_constraints_beside_a_validator_are_in_the_grammar(tiny):
    kind = Annotated[int, pydantic.AfterValidator(lambda value: value)]
    fields = {"question": (str, dspy.InputField()), "v": (kind, dspy.OutputField(ge=1, le=9))}
    gbnf = answer_grammar(dspy.Signature(fields), FIELD_LINES).gbnf
    for text, fitting in (("1", True), ("9", True), ("0", False), ("22", False)):
        assert fits(tiny, gbnf, f"v: {text}") == fitting


def test_constraints_within_models_are_in_the_grammar(tiny):
    class Order(pydantic.BaseModel):
        price: Decimal = pydantic.Field(ge=0, le=10, multiple_of=Decimal("0.5"))
        code: str = pydantic.Field(pattern='^["a]+$', min_length=2, max_length=3)
        due: datetime.date = pydantic.Field(ge=DAY)

    assert not answer_grammar(asked(order=Order), FIELD_LINES).unchecked
    good = r'order: {"price": 2.5, "code": "a\"", "due": "2024-05-17"}'
    assert takes(tiny, good, order=Order)
    for wrong in (("2.5", "2.4"), (r"a\"", "a"), (r"a\"", r"a\"aa"), ("05-17", "05-16")):
        assert not takes(tiny, good.replace(*wrong), order=Order)


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


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Pair(enum.Enum):
    FIRST = (1, 2)
    OTHER = None
    WORD = "word"


@pytest.mark.parametrize("kind", [Level, Pair, Optional[Level]])
def test_enums_are_written_as_each_adapter_reads_them(tiny, kind):
    signature = asked(answer=kind)
    members = [*(Level if kind == Optional[Level] else kind)]
    for form, adapter, begin, end in (
        (FIELD_LINES, LlamaCppAdapter(), "answer: ", ""),
        (CHAT, dspy.ChatAdapter(), "[[ ## answer ## ]]\n", "\n\n[[ ## completed ## ]]"),
        (JSON, dspy.JSONAdapter(), '{"answer": ', "}"),
        (XML, dspy.XMLAdapter(), "<answer>\n", "\n</answer>"),
    ):
        gbnf = answer_grammar(signature, form).gbnf
        for member in members:
            spellings = [str(member.value), json.dumps(member.value), member.name]
            spellings += [f'"{member.value}"', f'"{member.name}"']
            texts = [f"{begin}{one}{end}" for one in dict.fromkeys(spellings)]
            [text] = [text for text in texts if fits(tiny, gbnf, text)]
            assert adapter.parse(signature, text)["answer"] is member


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


@pytest.mark.parametrize("form", [FIELD_LINES, CHAT, XML])
@pytest.mark.parametrize("pattern", [r"^a\n+b$", "^ x$", r"^\n$"])
def test_a_text_that_fits_on_no_line_is_free_and_told(tiny, form, pattern):
    kind = Annotated[str, pydantic.Field(pattern=pattern)]
    whole = answer_grammar(asked(count=int, v=kind), form)
    [(name, unchecked)] = whole.unchecked
    assert name == "v"
    assert "no single line" in unchecked[0]
    shown = {
        FIELD_LINES: "count: {}\nv: a",
        CHAT: "[[ ## count ## ]]\n{}\n\n[[ ## v ## ]]\na\n\n[[ ## completed ## ]]",
        XML: "<count>\n{}\n</count>\n\n<v>\na\n</v>",
    }[form]
    assert fits(tiny, whole.gbnf, shown.format(12))
    assert not fits(tiny, whole.gbnf, shown.format("many"))
