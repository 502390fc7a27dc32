"""JSON objects whose keys come in any order."""

from __future__ import annotations

import itertools
import json
import string

import pytest
from texts import fits

import pyllama
from adapter.grammar.gbnf.automata import automaton_of, without
from adapter.grammar.gbnf.patterns import pattern_expression
from adapter.grammar.gbnf.rules import any_text, one_of
from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.merging import SchemaError


def grammar(schema):
    return json_schema_grammar(json.dumps(schema), any_order=True).gbnf


def taken(model, schema, *texts):
    gbnf = grammar(schema)
    return [text for text in texts if fits(model, gbnf, text)]


@pytest.mark.parametrize("required", [[], ["a"], ["b", "d"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("closed", [True, False])
def test_every_order_of_every_set_of_keys_is_taken_where_it_is_valid(tiny, required, closed):
    schema = {"type": "object", "properties": {key: {"type": "integer"} for key in "abcd"}}
    schema |= {"required": required, "additionalProperties": not closed}
    gbnf = grammar(schema)
    pool = "abcd" if closed else "abcde"
    for n_keys in range(len(pool) + 1):
        for keys in itertools.permutations(pool, n_keys):
            text = json.dumps(dict.fromkeys(keys, 1))
            assert fits(tiny, gbnf, text) == (set(required) <= set(keys)), text


def test_the_schema_s_order_is_the_default_for_required_keys(tiny):
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    gbnf = json_schema_grammar(json.dumps(schema)).gbnf
    assert fits(tiny, gbnf, '{"a": 1, "b": 2}')
    assert not fits(tiny, gbnf, '{"b": 2, "a": 1}')


def test_a_schema_says_itself_that_its_keys_may_come_in_any_order(tiny):
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "x-key-order": "any"}
    assert fits(tiny, json_schema_grammar(json.dumps(schema)).gbnf, '{"b": 2, "a": 1}')
    schema["x-key-order"] = "schema"
    assert not fits(tiny, grammar(schema), '{"b": 2, "a": 1}')


def test_one_object_of_a_schema_may_have_an_order_of_its_own(tiny):
    part = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    schema = {"type": "object", "properties": {"p": {**part, "x-key-order": "any"}, "q": part}}
    schema["required"] = ["p", "q"]
    gbnf = json_schema_grammar(json.dumps(schema)).gbnf
    assert fits(tiny, gbnf, '{"p": {"b": 1, "a": 1}, "q": {"a": 1, "b": 1}}')
    assert not fits(tiny, gbnf, '{"p": {"b": 1, "a": 1}, "q": {"b": 1, "a": 1}}')
    assert not fits(tiny, gbnf, '{"q": {"a": 1, "b": 1}, "p": {"a": 1, "b": 1}}')


def test_an_order_that_there_is_not_is_refused():
    with pytest.raises(SchemaError, match="x-key-order has an invalid value: 1"):
        json_schema_grammar('{"x-key-order": 1}')


def test_a_declared_key_keeps_to_its_schema_wherever_it_stands(tiny):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    good = '{"x": [], "a": 1, "y": {}}'
    bad = ['{"x": [], "a": "1"}', '{"x": 1}', '{"\\u0061": "1", "a": 1}', '{"x": 1, }', "{}"]
    assert taken(tiny, schema, good, *bad) == [good]


def test_few_keys_come_once_each(tiny):
    schema = {"type": "object", "properties": {"a": {}, "b": {}}}
    assert taken(tiny, schema, '{"a": 1, "a": 1}', '{"a": 1, "b": 1}') == ['{"a": 1, "b": 1}']


def test_many_required_keys_come_all_and_others_among_them(tiny):
    names = string.ascii_lowercase[:12]
    schema = {
        "type": "object",
        "properties": {key: {"type": "integer"} for key in [*names, *"xyz"]},
    }
    schema |= {"required": [*names], "additionalProperties": False}
    orders = [names, "x" + names[4::-1] + "z" + names[9:4:-1] + names[:9:-1] + "y"]
    texts = [json.dumps(dict.fromkeys(order, 1)) for order in orders]
    assert taken(tiny, schema, *texts, json.dumps(dict.fromkeys(names[:-1], 1))) == texts


def test_keys_that_begin_alike_are_told_apart(tiny):
    names = ["a", "ab", "abc", 'ab"c', "ac", "bcd", "bce"]
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    schema["properties"] = {name: {"const": index} for index, name in enumerate(names)}
    good = [json.dumps({name: index}) for index, name in enumerate(names)]
    bad = [json.dumps({name: 9}) for name in names] + ['{"abcd": 2}', '{"": 0}', '{"b": 0}']
    assert taken(tiny, schema, *good, *bad) == good


def test_an_object_that_is_not_empty_has_a_member(tiny):
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1}
    good = ['{"b": 1, "a": 1}', '{"c": 1}']
    assert taken(tiny, schema, "{}", *good) == good
    many = {**schema, "properties": {key: {} for key in string.ascii_lowercase}}
    assert taken(tiny, many, "{}", *good, '{"c": 1, "a": 2}') == [*good, '{"c": 1, "a": 2}']


def test_keys_are_counted_where_there_is_a_maximum(tiny):
    schema = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}
    assert taken(tiny, schema, '{"a": 1, "b": 1, "c": 1}', '{"a": 1, "b": 1}') == [
        '{"a": 1, "b": 1}'
    ]


def test_keys_of_patterns_stand_among_declared_ones(tiny):
    schema = {
        "type": "object",
        "properties": {"xa": {"type": "null"}},
        "patternProperties": {"^x": {"type": ["null", "integer"]}, "y$": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    good = ['{"xb": null}', '{"by": 1, "xa": null}', '{"xy": 1, "z": "s", "x": 1}']
    bad = [
        '{"xy": null}',
        '{"xa": 1}',
        '{"b": 1}',
        '{"by": "s"}',
        '{"xb": "s"}',
        '{"\\u0078": "s"}',
    ]
    assert taken(tiny, schema, *good, *bad) == good
    schema["additionalProperties"] = False
    assert taken(tiny, schema, *good, *bad) == good[:2]


def test_objects_within_each_other_have_any_order_too(tiny):
    part = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
    schema = {"type": "object", "properties": {"p": {"type": "array", "items": part}, "q": {}}}
    good = '{"q": 1, "p": [{"b": 1, "a": 2}, {"a": 1, "b": 2}]}'
    assert taken(tiny, schema, good, '{"q": 1, "p": [{"b": 1}]}') == [good]


def test_a_hundred_keys_make_a_grammar_of_reasonable_size():
    schema = {"type": "object", "properties": {f"key{n}": {} for n in range(100)}}
    schema["required"] = [f"key{n}" for n in range(0, 100, 2)]
    pyllama.Grammar(grammar(schema))
    assert len(grammar(schema)) < 150_000


def test_texts_of_one_automaton_and_not_of_another():
    ours = automaton_of(pattern_expression("^[ab]*$", one_of))
    theirs = automaton_of(any_text(["", "ab", "b"]))
    left = without(ours, theirs)
    texts = ["".join(letters) for n in range(4) for letters in itertools.product("abc", repeat=n)]
    assert [text for text in texts if left.takes(text)] == [
        text for text in texts if ours.takes(text) and not theirs.takes(text)
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["a"],
        ["", "a", "ab", "abc"],
        ["name", "rename", "first_name", "firstname"],
        ["x" * 70, "x" * 71, "y" * 66],
        ['a"b', "a", "e\u00e9"],
    ],
)
def test_other_keys_are_all_but_the_declared_ones(tiny, names):
    schema = {"type": "object", "additionalProperties": {"type": "null"}}
    schema["properties"] = {name: {"type": "integer"} for name in names}
    gbnf = grammar(schema)
    tried = {*names, "z"}
    for name in names:
        half = len(name) // 2
        tried |= {name[:-1], name + "a", name[:half], name[:half] + "-" + name[half + 1 :]}
    for key in tried:
        text = json.dumps({key: None}, ensure_ascii=False)
        assert fits(tiny, gbnf, text) == (key not in names and '"' not in key), key
