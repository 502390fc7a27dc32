from __future__ import annotations

import enum
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Literal

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import AdapterParseError

from adapter.signatures.parsing import parse_completion
from adapter.signatures.typed_values import typed_value


class Person(pydantic.BaseModel):
    name: str
    age: int


class Colour(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


ADD = dspy.ToolCalls.from_dict_list([{"name": "add", "args": {"a": 1}}])
QA = dspy.Signature("question -> answer")
COT = dspy.Signature("question -> reasoning, final_answer")
RATED = dspy.Signature("text -> label: Literal['good', 'bad'], score: float")


@pytest.mark.parametrize(
    "completion",
    [
        "reasoning: two and two\nfinal_answer: 4",
        "Reasoning:  two and two\n\nFinal Answer: 4\n",
        "**Reasoning:** two and two\n**Final answer**: 4",
        "**Reasoning: two and two**\n**Final answer: 4**",
        "## reasoning: two and two\n### final_answer: 4",
        "- reasoning: two and two\n- final-answer: 4",
        "1. reasoning: two and two\n2. final_answer: 4",
        "`reasoning`: two and two\n`final_answer`: 4",
        "Sure! Here you are.\n\nreasoning: two and two\nfinal_answer: 4",
        "```\nreasoning: two and two\nfinal_answer: 4\n```",
        "FINAL_ANSWER: 4\nREASONING: two and two",
        "reasoning: two and two\nfinal_answer: 4\nquestion: What is 3+3?\nfinal_answer: 6",
        "reasoning: two and two\nfinal_answer: 4\nreasoning: again\nfinal_answer: 5",
        "two and two\nfinal_answer: 4",
        '{"reasoning": "two and two", "final_answer": "4"}',
        '```json\n{"reasoning": "two and two",\n "final_answer": 4}\n```',
        'Here it is: {"Reasoning": "two and two", "Final Answer": "4"} I hope it helps.',
        "{'reasoning': 'two and two', 'final_answer': '4',}",
        '{"reasoning": "two and two", "final_answer": "4"',
        '[{"reasoning": "two and two", "final_answer": "4"}]',
    ],
)
def test_many_spellings_of_one_answer(completion):
    expected = {"reasoning": "two and two", "final_answer": "4"}
    assert parse_completion(COT, completion) == expected


def test_a_value_of_several_lines_reaches_to_the_next_marker():
    completion = "reasoning:\nfirst\n\nsecond: not a field\nfinal_answer: 4\nand no more"
    assert parse_completion(COT, completion) == {
        "reasoning": "first\n\nsecond: not a field",
        "final_answer": "4\nand no more",
    }


def test_a_marker_counts_only_at_the_start_of_a_line():
    completion = "reasoning: the final_answer: is 4\nfinal_answer: 4"
    assert parse_completion(COT, completion)["reasoning"] == "the final_answer: is 4"


def test_an_inputs_name_inside_an_unfinished_answer_is_a_word_of_it():
    completion = "reasoning: I repeat.\nquestion: what is it?\nfinal_answer: 4"
    parsed = parse_completion(COT, completion)
    assert parsed["reasoning"] == "I repeat.\nquestion: what is it?"


@pytest.mark.parametrize(
    ("text", "email"),
    [
        ("email: Dear all\nSubject: Rain", "Dear all\nSubject: Rain"),
        ("email:\nsubject: Rain\nDear all", "subject: Rain\nDear all"),
        ("email: Dear all\n- subject: Rain", "Dear all\n- subject: Rain"),
        ("email: Dear all\nsubject: Snow\nemail: no", "Dear all"),
    ],
)
def test_only_the_prompts_own_spelling_begins_a_question_of_the_models(text, email):
    signature = dspy.Signature("subject -> email")
    assert parse_completion(signature, text) == {"email": email}


def test_a_bound_answer_is_read_by_the_grammars_markers():
    signature = dspy.Signature("subject -> note, email")
    text = "note: x\nemail: Dear all\nsubject: Snow\nEmail: no"
    bound = parse_completion(signature, text, is_bound=True)
    assert bound == {"note": "x", "email": "Dear all\nsubject: Snow\nEmail: no"}
    # Cut off by a stop, it is a text like any other.
    assert parse_completion(signature, "note: x\n**Email**: y", is_bound=True)["email"] == "y"


def test_markers_inside_a_code_block_belong_to_the_code():
    signature = dspy.Signature("task -> code, answer")
    code = "```python\ndef f():\n    pass\nanswer: int = 3\n```"
    parsed = parse_completion(signature, f"code:\n{code}\nanswer: done")
    assert parsed == {"code": code, "answer": "done"}


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Paris", "Paris"),
        ("  The capital is Paris.\n", "The capital is Paris."),
        ("Answer: Paris", "Paris"),
        ('{"answer": "Paris"}', "Paris"),
        ('{"answer": {"city": "Paris"}}', '{"city": "Paris"}'),
        ('{"city": "Paris"}', '{"city": "Paris"}'),
        ("The answer: Paris", "The answer: Paris"),
        ("{", "{"),
        ("[[[[{{{{", "[[[[{{{{"),
        ("answer:", ""),
        ("answer: Zürich 🏔️ 東京", "Zürich 🏔️ 東京"),
    ],
)
def test_a_single_field_takes_what_there_is(completion, answer):
    assert parse_completion(QA, completion) == {"answer": answer}


def test_a_model_within_a_model():
    class Team(pydantic.BaseModel):
        lead: Person
        members: list[Person] = []
        founded: date | None = None

    signature = dspy.Signature("text -> team: Team", custom_types={"Team": Team})
    answer = """team: ```json
{"lead": {"name": "Ada", "age": 36},
 "members": [{"name": "Bob", "age": "40"}], "founded": "2026-05-01"}
```"""
    assert parse_completion(signature, answer)["team"] == Team(
        lead=Person(name="Ada", age=36),
        members=[Person(name="Bob", age=40)],
        founded=date(2026, 5, 1),
    )


def test_a_strategy_whose_value_does_not_fit_gives_way_to_the_next():
    completion = 'label: see below\n{"label": "good", "score": 0.5}'
    assert parse_completion(RATED, completion) == {"label": "good", "score": 0.5}


def test_a_model_as_the_only_field_may_be_the_whole_text():
    signature = dspy.Signature("text -> name: Person", custom_types={"Person": Person})
    parsed = parse_completion(signature, '```json\n{"name": "Ada", "age": 36}\n```')
    assert parsed == {"name": Person(name="Ada", age=36)}


def test_missing_fields_take_their_default_or_none():
    class Optionals(dspy.Signature):
        text: str = dspy.InputField()
        label: str = dspy.OutputField()
        note: str | None = dspy.OutputField()
        count: int = dspy.OutputField(default=3)

    assert parse_completion(Optionals, "label: x") == {"label": "x", "note": None, "count": 3}


@pytest.mark.parametrize(
    "completion",
    [
        "I do not know.",
        "label: good",
        "label: not good\nscore: 0.5",
        "label: good\nscore: high",
        '{"label": "good"}',
        "{" * 1500,
        "[" * 1500,
        " ",
        "\x00\x00",
    ],
)
def test_where_all_three_fail_the_error_says_why(completion):
    with pytest.raises(AdapterParseError) as caught:
        parse_completion(RATED, completion)
    assert caught.value.adapter_name == "LlamaCppAdapter"
    assert caught.value.lm_response == completion
    assert caught.value.signature is RATED
    for strategy in ("field markers", "a JSON object", "the whole text"):
        assert strategy in str(caught.value)


def test_the_error_keeps_what_was_found():
    with pytest.raises(AdapterParseError) as caught:
        parse_completion(RATED, "label: good")
    assert caught.value.parsed_result == {"label": "good"}
    assert "no value for score" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "annotation", "value"),
    [
        ("42", int, 42),
        ("42.", int, 42),
        ("**42**", int, 42),
        ('"42"', int, 42),
        ("42 (forty-two)", int, 42),
        ("42, because it is", int, 42),
        ("1,234,567", int, 1234567),
        ("-3", int, -3),
        ("0.8", float, 0.8),
        ("0.8\n\nThat is high.", float, 0.8),
        ("1", float, 1.0),
        ("true", bool, True),
        ("Yes.", bool, True),
        ("No, it is not", bool, False),
        ("False", bool, False),
        ("good", Literal["good", "bad"], "good"),
        ("Good.", Literal["good", "bad"], "good"),
        ("BAD - it failed", Literal["good", "bad"], "bad"),
        ("`good`", Literal["good", "bad"], "good"),
        ("2", Literal[1, 2], 2),
        ("red", Colour, Colour.RED),
        ("Dark Blue", Colour, Colour.DARK_BLUE),
        ("DARK_BLUE", Colour, Colour.DARK_BLUE),
        ('["a", "b"]', list[str], ["a", "b"]),
        ("- a\n- b", list[str], ["a", "b"]),
        ("1. a\n2. b", list[str], ["a", "b"]),
        ("a, b", list[str], ["a", "b"]),
        ("1, 2", list[int], [1, 2]),
        ("- Good\n- bad.", list[Literal["good", "bad"]], ["good", "bad"]),
        ("```\n[1, 2]\n```", list[int], [1, 2]),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ("None", int | None, None),
        ("None", str | None, None),
        ("5", int | None, 5),
        ("none of them", str | None, "none of them"),
        ('{"name": "Ada", "age": "36"}', Person, Person(name="Ada", age=36)),
        ("{'name': 'Ada', 'age': 36,}", Person, Person(name="Ada", age=36)),
        ('[{"name": "Ada", "age": 36}]', list[Person], [Person(name="Ada", age=36)]),
        ({"name": "Ada", "age": 36}, Person, Person(name="Ada", age=36)),
        (7, str, "7"),
        (["a"], str, '["a"]'),
        ("[1, 2] is a list", dspy.Reasoning, dspy.Reasoning(content="[1, 2] is a list")),
        ('"quoted"', dspy.Reasoning, dspy.Reasoning(content='"quoted"')),
        ("```python\nx = 1\n```", dspy.Code, dspy.Code(code="x = 1")),
        ("x = {'a': 1}", dspy.Code, dspy.Code(code="x = {'a': 1}")),
        ('{"code": "x = 1"}', dspy.Code, dspy.Code(code="x = 1")),
        ('"a string"', dspy.Code, dspy.Code(code='"a string"')),
        ("2026-05-01", date, date(2026, 5, 1)),
        ("**2026-05-01**", date, date(2026, 5, 1)),
        ("2026-05-01 (a Friday)", date, date(2026, 5, 1)),
        ("2026-05-01 12:30", datetime, datetime(2026, 5, 1, 12, 30)),  # noqa: DTZ001
        ("2026-05-01T12:30:00Z", datetime, datetime(2026, 5, 1, 12, 30, tzinfo=timezone.utc)),
        ("12:30", time, time(12, 30)),
        ("2026-05-01, 2026-06-01", list[date], [date(2026, 5, 1), date(2026, 6, 1)]),
        ("2026-05-01", date | None, date(2026, 5, 1)),
        ("none", date | None, None),
        ("N/A", int | None, None),
        ("None.", list[int] | None, None),
        ("- a\n- b", list[str] | None, ["a", "b"]),
        ("Good.", Literal["good", "bad"] | None, "good"),
        ("5", int | str, 5),
        ("5 apples", int | str, "5 apples"),
        ("RED", Colour | None, Colour.RED),
        ("Colour.RED", Colour, Colour.RED),
        ('["RED", "dark blue"]', list[Colour], [Colour.RED, Colour.DARK_BLUE]),
        ('{"sky": "DARK_BLUE"}', dict[str, Colour], {"sky": Colour.DARK_BLUE}),
        ("- RED\n- red", set[Colour], {Colour.RED}),
        ("1, 2", tuple[int, int], (1, 2)),
        ("2117111111531102.4", Decimal, Decimal("2117111111531102.4")),
        ("**1,234.50**", Decimal, Decimal("1234.5")),
        ("(1, 'a')", tuple[int, str], (1, "a")),
        ([{"name": "Ada", "age": 36}], list[Person], [Person(name="Ada", age=36)]),
        ('{"name": "add", "args": {"a": 1}}', dspy.ToolCalls, ADD),
        ('[{"name": "add", "args": {"a": 1}}]', dspy.ToolCalls, ADD),
    ],
)
def test_typed_values(raw, annotation, value):
    typed = typed_value(raw, annotation)
    assert typed == value
    assert type(typed) is type(value)


@pytest.mark.parametrize(
    ("raw", "annotation"),
    [
        ("3 - 4", int),
        ("3, 4", int),
        ("3/4", int),
        ("about 42", int),
        ("3.5", int),
        ("not good", Literal["good", "bad"]),
        ("good or bad", Literal["good", "bad"]),
        ("nobody knows", bool),
        ("", int),
        ("purple", Colour),
        ("one and\ntwo", list[int]),
        ('{"name": "Ada"}', Person),
        ("2026", date),
        ("20260501", datetime),
        ("2026", datetime | None),
        (2026, datetime),
        ("May", date),
        ("2026-05-01 12:30", date),
        ("add(1)", dspy.ToolCalls),
        ("1, 2, 3", tuple[int, int]),
        ("{" * 1500, Person),
        ("(" * 1500, int),
    ],
)
def test_a_value_is_refused_rather_than_guessed(raw, annotation):
    with pytest.raises((ValueError, TypeError, RecursionError, MemoryError)):
        typed_value(raw, annotation)


@pytest.mark.parametrize(
    "completion",
    [
        "finalAnswer: 3\nother_Thing: x",
        "FINALANSWER: 3\n**Other thing**: x",
        '{"finalAnswer": 3, "other_Thing": "x"}',
        '{"finalanswer": 3, "other thing": "x"}',
    ],
)
def test_names_in_mixed_case_are_found(completion):
    class Mixed(dspy.Signature):
        question: str = dspy.InputField()
        finalAnswer: int = dspy.OutputField()  # noqa: N815
        other_Thing: str = dspy.OutputField()  # noqa: N815

    assert parse_completion(Mixed, completion) == {"finalAnswer": 3, "other_Thing": "x"}
