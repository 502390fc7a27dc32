"""JSON objects whose keys come nearly in the schema's order, and what else they may have."""

from __future__ import annotations

import itertools
import json
import random
import string

import pytest
from texts import fits

from adapter.grammar.schema.json_schema import json_schema_grammar


def grammar(schema):
    return json_schema_grammar(json.dumps(schema)).gbnf


def taken(model, schema, *texts):
    gbnf = grammar(schema)
    return [text for text in texts if fits(model, gbnf, text)]


def closed(names, required=(), **others):
    schema = {"type": "object", "properties": {key: {"type": "integer"} for key in names}}
    return schema | {"required": [*required], "additionalProperties": False, **others}


def of_keys(keys):
    return "{" + ", ".join(f'"{key}": 1' for key in keys) + "}"


@pytest.mark.parametrize("required", ["", "a", "bd", "db", "abd", "dcba"])
def test_keys_of_small_objects_come_in_any_order_that_does_not_turn_required_ones_round(
    tiny, required
):
    gbnf = grammar(closed("abcd", required))
    for n_keys in range(5):
        for keys in itertools.permutations("abcd", n_keys):
            is_complete = set(required) <= set(keys)
            ours = [key for key in keys if key in required]
            in_order = ours == sorted(ours) or [*required] != sorted(required)
            assert fits(tiny, gbnf, of_keys(keys)) == (is_complete and in_order), keys


@pytest.mark.parametrize("n_keys", [2, 5, 9, 14])
@pytest.mark.parametrize("others", [False, True])
def test_no_declared_key_comes_twice(tiny, n_keys, others):
    names = string.ascii_lowercase[:n_keys]
    gbnf = grammar(closed(names, names[1:n_keys:4]) | {"additionalProperties": others})
    chance = random.Random(n_keys)
    for _ in range(60):
        keys = [*names]
        twice = chance.choice(keys)
        keys.insert(chance.randrange(n_keys + 1), twice)
        assert not fits(tiny, gbnf, of_keys(keys)), keys


@pytest.mark.parametrize("n_keys", [3, 7, 12, 20, 60])
def test_the_schema_s_order_is_always_taken(tiny, n_keys):
    names = [f"k{n}" for n in range(n_keys)]
    chance = random.Random(n_keys)
    required = chance.sample(names, n_keys // 3)
    for listed in (required, sorted(required, key=names.index)):
        gbnf = grammar(closed(names, listed))
        for _ in range(20):
            keys = [key for key in names if key in required or chance.random() < 0.5]
            assert fits(tiny, gbnf, of_keys(keys)), keys


def test_one_key_comes_ahead_of_many(tiny):
    names = string.ascii_lowercase[:14]
    gbnf = grammar(closed(names))
    assert fits(tiny, gbnf, of_keys("nabcdefghijklm"))
    assert fits(tiny, gbnf, of_keys("bacedgfih"))


def test_a_required_key_that_was_passed_over_still_comes(tiny):
    names = string.ascii_lowercase[:14]
    gbnf = grammar(closed(names, "na"))  # in another order than the schema's, so they are free
    for keys in ("na", "nab", "an"):
        assert fits(tiny, gbnf, of_keys(keys)), keys
    for keys in ("n", "nb", "nba"):
        assert not fits(tiny, gbnf, of_keys(keys)), keys


@pytest.mark.parametrize("n_keys", [1, 4, 40])
@pytest.mark.parametrize("others", [{}, {"additionalProperties": False}])
def test_required_keys_alone_keep_the_schema_s_order(n_keys, others):
    names = [f"k{n}" for n in range(n_keys)]
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in names}}
    schema |= {"required": names, **others}
    assert grammar(schema) == grammar({**schema, "x-key-order": "schema"})


def test_a_schema_that_says_its_order_keeps_it(tiny):
    part = closed("ab")
    whole = closed("", properties={"p": {**part, "x-key-order": "schema"}, "q": part})
    texts = ['{"p": {"b": 1, "a": 1}}', '{"q": {"b": 1, "a": 1}}']
    assert taken(tiny, whole, *texts) == texts[1:]
    assert taken(tiny, {**whole, "x-key-order": "schema"}, *texts) == []


def test_a_large_schema_keeps_its_order():
    names = [f"k{n}" for n in range(101)]
    part = closed("ab")
    schema = {"properties": {"p": part, "q": closed(names)}}
    assert grammar(schema) == grammar({**schema, "x-key-order": "schema"})


@pytest.mark.parametrize("required", ["", "c"])
@pytest.mark.parametrize("others", [False, {"type": "integer"}])
@pytest.mark.parametrize("bounds", [(2, None), (0, 2), (2, 2), (1, 3), (4, None), (0, 0), (5, 5)])
def test_members_are_counted(tiny, required, others, bounds):
    least, most = bounds
    schema = closed("abcd", required, minProperties=least) | {"additionalProperties": others}
    if most is not None:
        schema["maxProperties"] = most
    pool = "abcd" if others is False else "abcdx"
    sets = [keys for n in range(6) for keys in itertools.combinations(pool, n)]
    expected = [
        keys
        for keys in sets
        if set(required) <= set(keys) and least <= len(keys) <= (9 if most is None else most)
    ]
    if not expected:
        with pytest.raises(ValueError, match="no text can ever fit it"):
            grammar(schema)
        return
    assert json_schema_grammar(json.dumps(schema)).unchecked == ()
    gbnf = grammar(schema)
    assert [keys for keys in sets if fits(tiny, gbnf, of_keys(keys))] == expected


def test_keys_that_are_given_twice_do_not_make_up_for_missing_ones(tiny):
    schema = closed("abc", minProperties=3) | {"additionalProperties": {"type": "integer"}}
    texts = [of_keys("axy"), of_keys("axx"), of_keys("xxx"), of_keys("abx"), of_keys("abxx")]
    assert taken(tiny, schema, *texts) == texts[3:]


def test_an_answer_may_name_its_schema_once_behind_all_else(tiny):
    schema = {"$schema": "urn:draft", "$id": "urn:own", **closed("ab", "b")}
    del schema["additionalProperties"]
    good = [
        '{"b": 1, "a": 1, "$schema": "urn:draft"}',
        '{"b": 1, "$schema": "urn:own"}',
        '{"b": 1}',
    ]
    bad = [
        '{"b": 1, "$schema": "urn:other"}',
        '{"$schema": "urn:draft"}',
        '{"$schema": "urn:draft", "b": 1}',
        '{"b": 1, "$schema": "urn:draft", "$schema": "urn:draft"}',
        '{"a": 1, "$schema": "urn:draft", "b": 1}',
    ]
    assert taken(tiny, schema, *good, *bad) == good


def test_a_key_that_names_the_schema_is_any_other_key_where_these_are_mentioned(tiny):
    schema = {"$schema": "urn:draft", **closed("a", "a")} | {"additionalProperties": True}
    texts = ['{"a": 1, "$schema": "urn:other", "b": 1}', '{"$schema": "urn:draft", "a": 1}']
    assert taken(tiny, schema, *texts) == texts[:1]


@pytest.mark.parametrize(
    "others",
    [
        {"additionalProperties": False},
        {"additionalProperties": {"type": "integer"}},
        {"propertyNames": {"maxLength": 5}},
        {"patternProperties": {"^.s": {"type": "integer"}}},
        {"properties": {"$schema": {"type": "integer"}, "a": {"type": "integer"}}},
        {"$schema": None},
        {"maxProperties": 1},
        {"x-key-order": "schema"},
    ],
)
def test_an_answer_names_no_schema_where_it_would_not_be_valid_or_has_none(tiny, others):
    schema = {"$schema": "urn:draft", **closed("a")}
    del schema["additionalProperties"]
    schema |= others
    texts = ['{"a": 1}', '{"a": 1, "$schema": "urn:draft"}']
    assert taken(tiny, schema, *texts) == texts[:1]


def test_only_the_whole_answer_names_its_schema(tiny):
    part = {"$schema": "urn:part", "type": "object", "properties": {"a": {"type": "integer"}}}
    schema = {"$schema": "urn:draft", "properties": {"p": part}}
    texts = ['{"p": {"a": 1}}', '{"p": {"a": 1, "$schema": "urn:draft"}}']
    assert taken(tiny, schema, *texts) == texts[:1]


def test_keys_of_patterns_come_behind_declared_ones_though_nothing_else_is_mentioned(tiny):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "patternProperties": {"^x-": {"type": "string"}},
    }
    good = ['{"a": 1, "x-b": "s"}', '{"x-b": "s"}', "{}"]
    bad = ['{"a": 1, "b": "s"}', '{"a": 1, "x-b": 1}', '{"a": 1, "x-b": "s", "b": 1}']
    assert taken(tiny, schema, *good, *bad) == good
    schema["additionalProperties"] = False
    assert taken(tiny, schema, *good, *bad) == good


def test_other_keys_than_those_of_one_pattern_are_taken_where_the_schema_allows_them(tiny):
    schema = {"type": "object", "patternProperties": {"^x": {"type": "integer"}}}
    texts = ['{"x": 1}', '{"y": 1}', '{"x": "s"}']
    assert taken(tiny, schema, *texts) == texts[:1]
    assert taken(tiny, {**schema, "additionalProperties": True}, *texts) == texts[:2]


def test_keys_fit_the_patterns_of_their_names_and_of_their_values(tiny):
    schema = {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]+$"},
        "patternProperties": {".": {"type": "integer"}},
    }
    texts = ['{"12": 1}', '{"x": 1}', '{"12": "s"}']
    assert taken(tiny, schema, *texts) == texts[:1]
    bounded = {**schema, "minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    assert taken(tiny, bounded, *texts) == texts[:1]


def test_keys_of_included_schemas_come_where_the_text_includes_them(tiny):
    base = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    own = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}
    for included in ({"$ref": "#/definitions/base"}, {"allOf": [{"$ref": "#/definitions/base"}]}):
        before = {**included, **own, "definitions": {"base": base}, "x-key-order": "schema"}
        behind = {**own, **included, "definitions": {"base": base}, "x-key-order": "schema"}
        assert taken(tiny, before, of_keys("ab"), of_keys("ba")) == [of_keys("ab")]
        assert taken(tiny, behind, of_keys("ab"), of_keys("ba")) == [of_keys("ba")]
    parts = [{"allOf": [base]}, own]
    schema = {"allOf": parts, "x-key-order": "schema"}
    assert taken(tiny, schema, of_keys("ab"), of_keys("ba")) == [of_keys("ab")]


@pytest.mark.parametrize("part", [{"properties": {}}, {"required": []}, {"items": True}])
def test_keywords_that_say_nothing_ask_for_no_type(tiny, part):
    assert taken(tiny, {"properties": {"a": part}, "required": ["a"]}, '{"a": "s"}', '{"a": []}')


def test_members_of_counted_keys_may_be_counted(tiny):
    schema = {
        "type": "object",
        "propertyNames": {"maxLength": 256},
        "additionalProperties": {"type": "integer"},
        "maxProperties": 50,
    }
    assert taken(tiny, schema, '{"a": 1, "b": 2}')
