"""Values that their fields do not allow: asked for again, and then an error that names them."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ipaddress
import itertools
import uuid
from collections import defaultdict
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import dspy
import pydantic
import pytest
from dspy.utils.dummies import DummyLM
from dspy.utils.exceptions import AdapterParseError
from fake_generator import adapter_of, fake_model
from typing_extensions import TypedDict

from adapter import InvalidValueError, constrained
from adapter.signatures.bound_answers import ATTEMPTS
from adapter.signatures.field_values import Misfit, constrained_value
from adapter.signatures.parsing import parse_completion


def asked(annotation: Any, **constraints: Any) -> Any:
    field = dspy.OutputField(**constraints)
    return dspy.Signature({"question": (str, dspy.InputField()), "v": (annotation, field)})


FIVES = asked(int, multiple_of=5)


def odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd")
    return value


class Even(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def is_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("n must be even")
        return n


FORMS = {
    "LlamaCppAdapter": (None, "v: {}"),
    "ChatAdapter": (dspy.ChatAdapter(), "[[ ## v ## ]]\n{}\n\n[[ ## completed ## ]]"),
    "JSONAdapter": (dspy.JSONAdapter(), '{{"v": {}}}'),
    "XMLAdapter": (dspy.XMLAdapter(), "<v>\n{}\n</v>"),
}


def scripted(values, form="LlamaCppAdapter", **settings):
    """A model that gives one value after the other, and the adapter that reads them."""
    theirs, text = FORMS[form]
    values = iter(values)
    model = fake_model(lambda *_: text.format(next(values)))
    ours = adapter_of(model, **settings)
    return model, ours.lm, constrained(theirs) if theirs else ours


WRONG = [
    (FIVES, "7", "v=7 .*multiple of 5"),
    (asked(int, ge=0, le=20), "21", "v=21 .*less than or equal to 20"),
    (asked(float, gt=0, le=1), "5", "v=5.0 .*less than or equal to 1"),
    (asked(Annotated[int, pydantic.AfterValidator(odd)]), "4", "v=4 .*must be odd"),
    (asked(list[int], max_length=1), "[1, 2]", r"v=\[1, 2\] .*at most 1 item"),
    # DSPy's XMLAdapter tells what its last way of reading found.
    (asked(Even), '{"n": 3}', "n must be even|error for Even"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("signature", "wrong", "told"), WRONG, ids=[w[1] for w in WRONG])
def test_a_wrong_value_never_leaves_an_adapter(form, signature, wrong, told):
    model, lm, adapter = scripted(itertools.repeat(wrong), form)
    with dspy.context(lm=lm, adapter=adapter), pytest.raises(InvalidValueError, match=told):
        dspy.Predict(signature)(question="q")
    assert len(model.generator.requests) == ATTEMPTS
    assert len({request.seed for request in model.generator.requests}) == ATTEMPTS


NOON = datetime.datetime(2023, 1, 1, 12)  # noqa: DTZ001 - a naive one is meant
SECONDS = [
    (asked(list[datetime.datetime] | set[int]), "[4]", {4}),
    (asked(datetime.timedelta | Decimal), "7", Decimal(7)),
    (asked(datetime.time | Decimal), "148", Decimal(148)),
    (asked(ipaddress.IPv4Address | Decimal), "2", Decimal(2)),
    (asked(datetime.datetime | datetime.date), '"2024-01-01"', datetime.date(2024, 1, 1)),
    (asked(Annotated[datetime.datetime, pydantic.Field(ge=NOON)] | datetime.date),
     '"2024-01-01"', datetime.date(2024, 1, 1)),
    (asked(float | int, union_mode="left_to_right"), "5", 5.0),
    (asked(list[datetime.datetime] | set[int], union_mode="left_to_right"), "[4]",
     [datetime.datetime(1970, 1, 1, 0, 0, 4, tzinfo=datetime.timezone.utc)]),
    (asked(list[uuid.UUID] | list[int], union_mode="left_to_right"), "[4]", [4]),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("signature", "text", "value"), SECONDS, ids=[str(one[0].output_fields["v"]) for one in SECONDS]
)
def test_a_value_of_a_union_is_what_json_says(form, signature, text, value):
    _, lm, adapter = scripted([text], form)
    with dspy.context(lm=lm, adapter=adapter):
        read = dspy.Predict(signature)(question="q").v
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_wrong_value_is_asked_for_again(form, is_async):
    model, lm, adapter = scripted(["7", "8", "10"], form, seed=1)
    predict = dspy.Predict(FIVES)
    with dspy.context(lm=lm, adapter=adapter):
        prediction = asyncio.run(predict.acall(question="q")) if is_async else predict(question="q")
    assert prediction.v == 10
    assert len(model.generator.requests) == len(lm.history) == 3


def test_the_same_call_makes_the_same_attempts():
    seeds = []
    for _ in range(2):
        model, lm, adapter = scripted(["7", "8", "10"], seed=1)
        with dspy.context(lm=lm, adapter=adapter):
            dspy.Predict(FIVES, cache=False)(question="q")
        seeds.append([request.seed for request in model.generator.requests])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] == 1


def test_attempts_come_out_of_dspys_cache():
    model, lm, adapter = scripted(["7", "8", "10"])
    with dspy.context(lm=lm, adapter=adapter):
        for _ in range(2):
            assert dspy.Predict(FIVES)(question="q").v == 10
    assert len(model.generator.requests) == 3


def test_a_greedy_answer_is_not_asked_for_in_vain():
    model, lm, adapter = scripted(["7", "10"], temperature=0.0)
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(FIVES)(question="q").v == 10
    first, second = model.generator.requests
    assert first.sampling.temperature == 0 < second.sampling.temperature


def test_of_several_candidates_only_the_wrong_ones_are_asked_for_again():
    model, lm, adapter = scripted(["5", "7", "10", "11", "15", "20"])
    with dspy.context(lm=lm, adapter=adapter):
        prediction = dspy.Predict(FIVES, n=4)(question="q")
    assert prediction.completions.v == [5, 15, 10, 20]
    assert len(model.generator.requests) == 6


def test_a_cut_attempt_is_one_of_the_bound_number():
    _, lm, adapter = scripted(["7", "1" * 50, "10"], max_tokens=20)
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(FIVES)(question="q").v == 10


def test_nothing_is_asked_for_again_once_it_was_streamed():
    model, lm, adapter = scripted(itertools.repeat("7"))

    async def main():
        return [piece async for piece in dspy.streamify(dspy.Predict(FIVES))(question="q")]

    with dspy.context(lm=lm, adapter=adapter), pytest.raises(InvalidValueError):
        asyncio.run(main())
    assert len(model.generator.requests) == 1


@pytest.mark.parametrize("form", ["ChatAdapter", "JSONAdapter", "XMLAdapter"])
def test_other_lms_values_are_checked_too(form):
    adapter = constrained(FORMS[form][0])
    lm = DummyLM([{"v": "7"}] * 4, adapter=FORMS[form][0])
    with dspy.context(lm=lm, adapter=adapter), pytest.raises(AdapterParseError, match="v=7"):
        dspy.Predict(FIVES)(question="q")


def test_the_fallbacks_answer_is_checked():
    def script(prompt, request):
        return '{"v": 7}' if "JSON object" in prompt else "seven"

    model = fake_model(script)
    adapter = adapter_of(model)
    with (
        dspy.context(lm=adapter.lm, adapter=adapter),
        pytest.raises(AdapterParseError, match="v=7"),
    ):
        dspy.Predict(FIVES)(question="q")
    assert model.generator.requests[-1].constraint is not None


def test_a_validator_changes_a_value_once():
    louder = Annotated[str, pydantic.AfterValidator(lambda text: text + "!")]
    for form in FORMS:
        value = '"hey"' if form == "JSONAdapter" else "hey"
        _, lm, adapter = scripted([value], form)
        with dspy.context(lm=lm, adapter=adapter):
            assert dspy.Predict(asked(louder))(question="q").v == "hey!", form


PLUS_ONE = Annotated[int, pydantic.AfterValidator(lambda n: n + 1)]


class Counted(TypedDict):
    n: PLUS_ONE


class Pair(NamedTuple):
    n: PLUS_ONE
    m: int = 5


@dataclasses.dataclass
class Point:
    n: PLUS_ONE


class Anew(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(revalidate_instances="always")
    n: PLUS_ONE


ONCE = [
    (list[PLUS_ONE], "[1, 2]", [2, 3]),
    (dict[str, PLUS_ONE], '{"a": 1}', {"a": 2}),
    (tuple[PLUS_ONE, ...], "[1, 2]", (2, 3)),
    (set[PLUS_ONE], "[1]", {2}),
    (PLUS_ONE | None, "1", 2),
    (list[PLUS_ONE] | int, "[1]", [2]),
    (Counted, '{"n": 1}', {"n": 2}),
    (Pair, "[1, 5]", (2, 5)),
    (Point, '{"n": 1}', Point(2)),
    (Anew, '{"n": 1}', Anew(n=1)),
    (list[Annotated[str, pydantic.AfterValidator(len)]], '["abc"]', [3]),
    (list[pydantic.Base64Bytes], '["YWFhYQ=="]', [b"aaaa"]),
    (list[pydantic.Json], '["[1]"]', [[1]]),
    (defaultdict[str, list[PLUS_ONE]], '{"a": [1]}', {"a": [2]}),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "text", "value"), ONCE, ids=[str(one[0])[:40] for one in ONCE])
def test_a_validator_within_a_type_changes_a_value_once(form, kind, text, value):
    bound = Annotated[kind, pydantic.AfterValidator(lambda value: value)]
    _, lm, adapter = scripted([text], form)
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(asked(bound))(question="q").v == value


def lookup(n: int) -> str:
    return {1: "one"}[n]


class Looked(pydantic.BaseModel):
    n: Annotated[int, pydantic.AfterValidator(lookup)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        (Annotated[int, pydantic.AfterValidator(lookup)], "2", "1"),
        (Looked, '{"n": 2}', '{"n": 1}'),
        (Annotated[Literal[1, 2], pydantic.AfterValidator(lookup)], "2", "1"),
    ],
)
def test_a_validator_that_fails_in_its_own_way_refuses_a_value(form, kind, wrong, right):
    _, lm, adapter = scripted([wrong, right], form)
    with dspy.context(lm=lm, adapter=adapter):
        value = dspy.Predict(asked(kind))(question="q").v
        assert value == Looked(n=1) if kind is Looked else value == "one"
    _, lm, adapter = scripted(itertools.repeat(wrong), form)
    with (
        dspy.context(lm=lm, adapter=adapter),
        pytest.raises(InvalidValueError, match=r"KeyError: 2"),
    ):
        dspy.Predict(asked(kind))(question="r")


def german(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text) + datetime.timedelta(days=1)


@pytest.mark.parametrize("form", FORMS)
def test_a_validator_before_a_type_gets_what_was_written(form):
    kind = Annotated[datetime.date, pydantic.BeforeValidator(german)]
    text = '"2024-01-01"' if form != "LlamaCppAdapter" else "2024-01-01"
    _, lm, adapter = scripted([text], form)
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(asked(kind))(question="q").v == datetime.date(2024, 1, 2)


def test_what_dspy_fills_in_is_left_alone():
    signature = asked(int, ge=3, default=1)
    assert parse_completion(signature, "v: 4") == {"v": 4}
    adapter = constrained(dspy.JSONAdapter())
    lm = adapter_of(fake_model("{}")).lm
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(signature)(question="q").v == 1


def test_an_error_names_field_value_and_constraint():
    field = asked(datetime.date, ge=datetime.date(2024, 5, 1)).output_fields["v"]
    with pytest.raises(Misfit, match=r"v=datetime.date\(2024, 4, 1\) .*2024-05-01"):
        constrained_value("v", datetime.date(2024, 4, 1), field)
    inner = Annotated[list[Annotated[int, pydantic.Field(ge=0)]], pydantic.Field(max_length=3)]
    with pytest.raises(AdapterParseError, match=r"1: Input should be greater .*, not -5"):
        parse_completion(asked(inner), "v: [3, -5]")
    with pytest.raises(Misfit) as caught:
        constrained_value("v", "x" * 5000, asked(str, max_length=3).output_fields["v"])
    assert len(str(caught.value)) < 400


def test_json_of_pydantics_is_bound_as_what_it_holds_and_read_once():
    kind = pydantic.Json[Annotated[list[int], pydantic.Field(max_length=3)]]
    signature = dspy.Signature({"q": (str, dspy.InputField()), "v": (kind, dspy.OutputField())})
    model = fake_model("v: [1, 2]")
    adapter = adapter_of(model)
    with dspy.context(lm=adapter.lm, adapter=adapter):
        assert dspy.Predict(signature)(q="?").v == [1, 2]
    [asked] = model.generator.requests
    assert '"["' in asked.constraint.gbnf


def short(text: str) -> str:
    if len(text) > 5:
        raise ValueError("too long")
    return text


class Sizes(pydantic.BaseModel):
    size: Annotated[int, pydantic.AfterValidator(odd)] | None = None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("signature", "wrong"),
    [
        (asked(Sizes), '{\n"size": 4}'),
        (asked(Sizes | None), '{\n"size": 4}'),
        (asked(list[Annotated[str, pydantic.AfterValidator(short)]]), '["Good, or not."]'),
    ],
)
def test_what_a_grammar_wrote_is_not_read_as_something_else(form, signature, wrong):
    _, lm, adapter = scripted(itertools.repeat(wrong), form)
    with dspy.context(lm=lm, adapter=adapter), pytest.raises(InvalidValueError):
        dspy.Predict(signature)(question="q")


class ReadOnly(pydantic.BaseModel):
    size: int = pydantic.Field(0, validation_alias="how much")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "signature",
    [
        asked(ReadOnly | list[int], union_mode="left_to_right"),
        asked(Annotated[ReadOnly, pydantic.BeforeValidator(lambda value: value)]),
    ],
)
def test_a_value_under_an_alias_that_is_only_read_is_kept(form, signature):
    _, lm, adapter = scripted(['{"how much": 3}'], form)
    with dspy.context(lm=lm, adapter=adapter):
        assert dspy.Predict(signature)(question="q").v == ReadOnly(**{"how much": 3})


@pytest.mark.parametrize("form", FORMS)
def test_a_field_beside_one_with_constraints_is_read_as_json(form):
    """Its text is read as a str, to which the other's constraints cannot be applied."""
    _, text = FORMS[form]
    written = {"v": '"two\\nlines"', "other": '"cf57432e-809e-4353-adbd-9d5c0d733868"'}
    if form == "JSONAdapter":
        answer = "{" + ", ".join(f'"{name}": {value}' for name, value in written.items()) + "}"
    else:
        first, second = (
            text.replace("v", name, 1 if form != "XMLAdapter" else 2).format(value)
            for name, value in written.items()
        )
        answer = f"{first.removesuffix('[[ ## completed ## ]]')}\n{second}"
    theirs, _ = FORMS[form]
    ours = adapter_of(fake_model(answer))
    signature = dspy.Signature({
        "question": (str, dspy.InputField()),
        "v": (Literal["two\nlines"], dspy.OutputField()),
        "other": (pydantic.UUID4, dspy.OutputField()),
    })  # fmt: skip
    with dspy.context(lm=ours.lm, adapter=constrained(theirs) if theirs else ours):
        assert dspy.Predict(signature)(question="q").v == "two\nlines"


@pytest.mark.parametrize("form", FORMS)
def test_parse_reports_each_error_as_one_of_parsing(form):
    theirs, text = FORMS[form]
    signature = asked(list[Annotated[str | int, pydantic.Field(ge=3)]])
    adapter = constrained(theirs) if theirs else adapter_of(fake_model("unused"))
    with pytest.raises(AdapterParseError):
        adapter.parse(signature, text.format('["x"]'))
