"""Bounds of which few values, or only long ones, are left."""

from __future__ import annotations

import datetime
import json
import random
from typing import Annotated

import pydantic
import pytest
from texts import random_text

import pyllama
from adapter.grammar.gbnf.rules import Rules
from adapter.grammar.schema.annotations import annotation_schema
from adapter.grammar.schema.json_schema import SchemaText, json_schema_grammar
from adapter.grammar.schema.json_text import JsonText
from adapter.grammar.schema.merging import SchemaError

UTC = datetime.timezone.utc
BIG = 10**20


def second(microsecond: int, zone: datetime.timezone | None = None) -> datetime.datetime:
    return datetime.datetime(2024, 2, 29, 23, 59, 59, microsecond, zone)


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


CASES = [
    (datetime.timedelta, {"gt": seconds(0), "lt": seconds(5e-6)}),
    (datetime.timedelta, {"ge": seconds(1.25), "le": seconds(1.25)}),
    (datetime.timedelta, {"gt": seconds(-5), "lt": seconds(-2)}),
    (datetime.timedelta, {"ge": seconds(-1.5), "le": seconds(-1.25)}),
    (datetime.timedelta, {"lt": seconds(-86_400)}),
    (datetime.time, {"gt": datetime.time(1), "lt": datetime.time(1, 0, 0, 3)}),
    (datetime.time, {"ge": datetime.time(1, 0, 0, 99_999), "le": datetime.time(1, 0, 0, 100_001)}),
    (datetime.time, {"ge": datetime.time(23, 59, 59, 5)}),
    (datetime.datetime, {"gt": second(0), "lt": second(1_000)}),
    (datetime.datetime, {"ge": second(123_456, UTC), "le": second(123_457, UTC)}),
    (int, {"ge": BIG}),
    (int, {"le": -BIG}),
    (int, {"gt": BIG, "lt": BIG + 3}),
    (int, {"ge": 10**99}),
    (int, {"ge": BIG, "multiple_of": 7}),
    (float, {"ge": 1e20}),
    (float, {"gt": 1e20, "lt": 1.00001e20}),
    (float, {"lt": -1e30}),
    (float, {"ge": 10**20 + 1}),
    (float, {"gt": 10**17 + 1, "lt": 10**17 + 100}),
]


@pytest.mark.parametrize(("kind", "bounds"), CASES)
def test_values_are_written_wherever_there_are_some(kind, bounds):
    annotation = Annotated[kind, pydantic.Field(**bounds)]
    rules = Rules()
    text = SchemaText(JsonText(rules), annotation_schema(annotation))
    root = text.root()
    pyllama.Grammar(rules.gbnf(root))  # llama.cpp's parser takes it
    assert not text.unchecked
    validator = pydantic.TypeAdapter(annotation)
    chance = random.Random(5)
    for _ in range(60):
        validator.validate_json(random_text(rules, root, chance))


def test_wide_bounds_are_no_reason_to_write_long_numbers():
    plain = {"type": "integer"}
    wide = {**plain, "minimum": -(10**90), "maximum": 10**90}
    grammars = [json_schema_grammar(json.dumps(one)).gbnf for one in (plain, wide)]
    assert grammars[0] == grammars[1]


def test_longer_numbers_are_refused():
    with pytest.raises(SchemaError, match="more than 100 digits"):
        json_schema_grammar(json.dumps({"type": "integer", "minimum": 10**100}))


@pytest.mark.parametrize(
    ("bounds", "length", "n_keys"),
    [
        ({"ge": 0, "le": 20, "multiple_of": 5}, {"min_length": 2}, range(2, 6)),
        ({"ge": 1, "le": 3}, {"min_length": 3}, range(3, 4)),
        ({"ge": -6, "le": 6, "multiple_of": 4}, {"max_length": 2}, range(3)),
    ],
)
def test_whole_keys_that_are_few_come_once_each(bounds, length, n_keys):
    key = Annotated[int, pydantic.Field(**bounds)]
    annotation = Annotated[dict[key, bool], pydantic.Field(**length)]  # type: ignore[valid-type]
    rules = Rules()
    text = SchemaText(JsonText(rules), annotation_schema(annotation))
    root = text.root()
    assert not text.unchecked
    chance = random.Random(5)
    for _ in range(60):
        pairs = json.loads(random_text(rules, root, chance), object_pairs_hook=list)
        assert len({key for key, _ in pairs}) == len(pairs)
        assert len(pairs) in n_keys
        pydantic.TypeAdapter(annotation).validate_json(json.dumps(dict(pairs)))


def test_keys_of_an_enum_of_numbers_are_none_of_json():
    schema = {"type": "object", "propertyNames": {"enum": [1, 2]}, "maxProperties": 1}
    assert '"1' not in json_schema_grammar(json.dumps(schema)).gbnf
