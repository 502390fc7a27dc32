"""JSON schemas: which texts their grammars let through, and what they leave to be checked."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import expression_fits, fits, schema_fits

from adapter.grammar.gbnf.rules import any_text, sequence
from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.merging import SchemaError

AB = {"a": {"type": "integer"}, "b": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "object", "properties": AB, "required": ["a"]},
         ['{"a": 1}', '{"a":1,"b":"x"}'], ["{}", '{"b":"x"}', '{"a":1,"b":2}', '{"a":1,}']),
        ({"type": "object", "properties": AB, "additionalProperties": {"type": "null"}},
         ["{}", '{"b":"","aa":null}', '{"c":null,"c":null}'],
         ['{"a":null}', '{"b":"","a":null}', '{"\\u0061":null}', '{"c":1}']),
        ({"type": "object", "properties": {"größe": {"const": "ключ"}}, "required": ["größe"]},
         ['{"größe": "ключ"}'], ['{"gr\\u00f6\\u00dfe": "ключ"}', '{"größe": "x"}']),
        ({"type": "object", "required": ["x"]}, ['{"x": [1]}'], ["{}"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
         ['{"k": 1}'], ["{}", '{"k": "1"}']),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "minItems": 1,
          "items": False}, ["[1]", "[1, null]"], ["[]", "[1,null,2]", "[null]"]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
         ["[true,false]", "[true, true, true]"], ["[true]", "[true,true,true,true]", "[1,2]"]),
        ({"type": "string", "minLength": 2, "maxLength": 3},
         ['"ab"', '"\\n\\"é"'], ['"a"', '"abcd"']),
        ({"type": "string"}, ['"\\u00e9"'], ['"\\ud800"', '"\\x"', '"\n"', "'a'"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2000-02-29"'],
         ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"', '"0000-01-01"']),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, ["0", "0.25", "0.999"],
         ["1", "1.0", "-0.1", "1e0"]),
        ({"enum": [1, "1", True, None]}, ["1", '"1"', "true", "null"], ["2", "false"]),
        ({"enum": [1, "a", 7], "type": "integer", "maximum": 5}, ["1"], ["7", '"a"']),
        ({"type": ["integer", "null"], "minimum": 3}, ["3", "null"], ["2"]),
        ({"allOf": [{"properties": AB}, {"required": ["b"], "type": "object"}]},
         ['{"b":"x"}', '{"a":1,"b":"x"}'], ["{}", '{"a":1}']),
        ({"type": "object", "properties": AB, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
         ['{"a":1}', '{"b":""}'], ["{}"]),
        ({"type": "object", "propertyNames": {"enum": ["x", "y"]}}, ['{"x":1}', "{}"], ['{"z":1}']),
        ({"type": "object", "patternProperties": {"^n\\d$": {"type": "integer"}}},
         ['{"n1": 2}'], ['{"n1": "2"}', '{"x": 2}']),
    ],
)  # fmt: skip
def test_a_schema_lets_through_what_it_describes(tiny, schema, good, bad):
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    for text in good:
        assert schema_fits(tiny, schema, text), text
    for text in bad:
        assert not schema_fits(tiny, schema, text), text


def test_recursion(tiny):
    node = {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["value", "next"],
    }
    schema = {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    deep = '{"value": 1, "next": ' * 30 + "null" + "}" * 30
    assert schema_fits(tiny, schema, deep)
    assert not schema_fits(tiny, schema, '{"value": 1, "next": {"value": 1}}')


def test_space_ends(tiny):
    schema = {"type": "array", "items": {"type": "integer"}}
    assert schema_fits(tiny, schema, "[\n    1,\n    2\n]")
    assert not schema_fits(tiny, schema, "[" + "\n" * 8 + "1]")
    assert not schema_fits(tiny, schema, "[" + " " * 80 + "1]")


def test_an_enum_of_very_many_values(tiny):
    values = [f"state {n}" for n in range(20_000)]
    assert schema_fits(tiny, {"enum": values}, '"state 19999"')
    assert schema_fits(tiny, {"enum": values}, '"state 7"')
    assert not schema_fits(tiny, {"enum": values}, '"state 20000"')
    assert not schema_fits(tiny, {"enum": values}, '"state "')


texts = st.text(st.sampled_from('ab"é\\\n🦙'), max_size=5)


@settings(deadline=None)
@given(st.lists(texts, max_size=8), st.lists(texts, max_size=4))
def test_any_text_is_any_of_the_texts(tiny, texts, others):
    written = sequence("<", any_text(texts))  # no grammar may describe the empty text alone
    for text in {*texts, *others}:
        assert expression_fits(tiny, written, f"<{text}") == (text in texts)


def test_texts_that_begin_with_each_other(tiny):
    texts = ["a" * length for length in range(300)]
    assert all(expression_fits(tiny, any_text(texts), text) for text in texts[::40])
    assert not expression_fits(tiny, any_text(texts), "a" * 300)


@pytest.mark.parametrize(
    ("schema", "unchecked"),
    [
        ({"type": "integer", "multipleOf": 123457}, "multipleOf"),
        ({"type": "number", "multipleOf": 0.123457}, "multipleOf"),
        ({"type": "string", "format": "date-time", "formatMinimum": "2024-01-01"}, "bounds"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "regex"}, "format regex"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern"),
        ({"type": "string", "pattern": "^(a{100}b?){9}$", "maxLength": 905}, "maxLength"),
        ({"not": {"type": "integer"}}, "not"),
        ({"type": "string", "if": {"pattern": "a"}, "then": {"minLength": 2}}, "if"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "oneOf"),
        (
            {"type": "object", "dependentRequired": {name: ["x"] for name in "abcde"}},
            "dependentRequired",
        ),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
    ],
)
def test_what_must_be_checked_after_is_reported(schema, unchecked):
    told = json_schema_grammar(json.dumps(schema)).unchecked
    assert any(what.startswith(unchecked) for what in told), told


def test_an_option_that_can_be_said_whole_is_preferred(tiny):
    schema = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?=1)\\d+$"}]}
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    assert schema_fits(tiny, schema, "1.5")
    assert not schema_fits(tiny, schema, '"-"')


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_what_one_place_drops_is_told_where_another_place_keeps_it(names):
    kept = {"type": "string", "pattern": "^(?=1)\\d+$"}
    either = {"anyOf": [{"type": "number"}, kept]}
    schema = {"properties": dict(zip(names, (either, kept), strict=True))}
    assert json_schema_grammar(json.dumps(schema)).unchecked
    schema["properties"] = {"a": either, "b": either}
    assert not json_schema_grammar(json.dumps(schema)).unchecked


def test_what_a_loop_of_references_leaves_out_is_told():
    item = {
        "type": "object",
        "properties": {"next": {"$ref": "#/$defs/b"}, "k": {"type": "integer"}},
    }
    schema = {
        "$defs": {
            "a": {**item, "minProperties": 1, "dependencies": {name: ["n"] for name in "klmop"}},
            "b": {"type": "array", "items": {"$ref": "#/$defs/a"}},
        },
        "properties": {
            "x": {"anyOf": [{"type": "object"}, {"$ref": "#/$defs/a"}]},
            "y": {"$ref": "#/$defs/b"},
        },
    }
    assert "dependencies" in json_schema_grammar(json.dumps(schema)).unchecked


def test_a_kind_of_object_stays_though_another_kind_can_be_said_whole(tiny):
    kinds = [
        {"properties": {"kind": {"const": one}, "of": of}, "required": ["kind", "of"]}
        for one, of in (("a", {"type": "string", "maxLength": 500_000}), ("b", {"type": "null"}))
    ]
    for schema in ({"oneOf": kinds}, {"anyOf": kinds}):
        assert json_schema_grammar(json.dumps(schema)).unchecked == ("maxLength",)
        assert schema_fits(tiny, schema, '{"kind": "a", "of": "x"}')
        assert schema_fits(tiny, schema, '{"kind": "b", "of": null}')


def test_unions_within_unions_stay_where_each_is_told_in_part(tiny):
    told = {
        "anyOf": [{"type": "string", "maxLength": 500_000}, {"type": "array", "contains": True}]
    }
    for other in ({"$ref": "#/$defs/a"}, {"type": "null"}):
        schema = {"anyOf": [{"oneOf": [told, other]}, other], "$defs": {"a": told}}
        assert json_schema_grammar(json.dumps(schema)).unchecked
        assert schema_fits(tiny, schema, '"a"')


@pytest.mark.parametrize("other", ["null", "boolean", "object", "integer"])
def test_an_option_of_a_type_of_its_own_stays_though_a_part_of_it_is_told(tiny, other):
    schema = {"anyOf": [{"type": "string", "maxLength": 500_000}, {"type": other}]}
    for one in (schema, {"properties": {"k": schema}}, {"type": "array", "items": schema}):
        assert json_schema_grammar(json.dumps(one)).unchecked == ("maxLength",)
    assert schema_fits(tiny, schema, '"a"')
    either = {
        "anyOf": [{"type": "string", "maxLength": 500_000}, {"type": "string", "format": "date"}]
    }
    assert json_schema_grammar(json.dumps(either)).unchecked == ()


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#"}, "no text can ever fit"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "no text"),
        ({"allOf": [{"type": "integer"}, {"type": "string"}]}, "no text"),
        ({"enum": []}, "no text"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no text"),
        ({"$ref": "https://example.com/a"}, "does not refer into the same schema"),
        ({"$ref": "#/$defs/missing"}, "refers to nothing"),
        ({"$dynamicRef": "#a"}, "dynamic references"),
        ({"properties": {"a": {"$id": "b", "$ref": "#/x"}}}, "\\$id of their own"),
        ({"type": "animal"}, "none of object"),
        ({"type": 3}, "type has an invalid value"),
        ({"anyOf": []}, "must not be empty"),
        ({"properties": 3}, "properties has an invalid value"),
        ({"properties": {"a": 3}}, "a schema is an object"),
        ({"type": "string", "minLength": -1}, "minLength has an invalid value"),
        ({"type": "string", "minLength": 5000}, "minLength of 5000"),
        ({"type": "integer", "minimum": 10**100}, "more than 100 digits"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}], "minimum": 1}, "combinations|too deep"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_grammar_is_refused(schema, message):
    with pytest.raises(SchemaError, match=message):
        json_schema_grammar(json.dumps(schema))


def test_a_schema_is_converted_once():
    schema = json.dumps({"type": "integer", "minimum": 77})
    assert json_schema_grammar(schema) is json_schema_grammar(schema)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.text('abé"\\/{\n', max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('aé"', min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
schemas = st.recursive(
    st.sampled_from([
        {"type": "integer"}, {"type": "string"}, {"type": "null"}, {"minimum": 0}, True, {},
        {"type": "string", "maxLength": 2}, {"enum": ["a", 1, None, [True]]}, {"type": "number"},
        {"type": ["string", "integer"], "minimum": 1, "minLength": 1}, False,
    ]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"allOf": some}),
        inner.map(lambda one: {"type": "array", "items": one, "maxItems": 3}),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"prefixItems": some}),
        st.tuples(st.dictionaries(st.sampled_from(["a", "é", 'a"']), inner, max_size=2),
                  st.lists(st.sampled_from(["a", "é", "c"]), max_size=2, unique=True), inner).map(
            lambda parts: {"properties": parts[0], "required": parts[1],
                           "additionalProperties": parts[2]}
        ),
    ),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(schemas, st.lists(values, min_size=1, max_size=5))
def test_whatever_is_let_through_is_valid(tiny, schema, instances):
    try:
        grammar = json_schema_grammar(json.dumps(schema))
    except SchemaError:
        return
    valid = jsonschema.Draft202012Validator(schema)
    for instance in instances:
        if fits(tiny, grammar.gbnf, json.dumps(instance, ensure_ascii=False)):
            assert grammar.unchecked or valid.is_valid(instance), (schema, instance)


@pytest.mark.parametrize(
    ("items", "good", "bad"),
    [
        ({"enum": ["a", "b", 1]}, ['["a", "b"]', '[1, "a", "b"]'], ['["a"]', '["a", "a"]']),
        ({"type": "boolean"}, ["[true, false]"], ["[true]", "[true, true]"]),
        ({"type": "integer", "minimum": 1, "maximum": 3}, ["[3, 1]"], ["[1, 1]", "[1, 4]"]),
        ({"anyOf": [{"const": 1}, {"const": 2}, {"type": "null"}]}, ["[null, 1]"], ["[1, 1]"]),
    ],
)
def test_few_items_come_once_each(tiny, items, good, bad):
    schema = {"type": "array", "items": items, "uniqueItems": True, "minItems": 2}
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    assert all(schema_fits(tiny, schema, text) for text in good)
    assert not any(schema_fits(tiny, schema, text) for text in bad)


def test_few_keys_come_once_each(tiny):
    schema = {
        "propertyNames": {"enum": ["a", "b", "c"]},
        "additionalProperties": {"type": "null"},
        "minProperties": 2,
    }
    assert not json_schema_grammar(json.dumps(schema)).unchecked
    assert schema_fits(tiny, schema, '{"c": null, "a": null}')
    for text in ('{"a": null}', '{"a": null, "a": null}', '{"a": null, "d": null}'):
        assert not schema_fits(tiny, schema, text)


def test_many_items_that_differ_are_reported_and_cost_little():
    values = {"enum": [f"value {number}" for number in range(300)]}
    schema = {"type": "array", "items": values, "uniqueItems": True, "maxItems": 3}
    grammar = json_schema_grammar(json.dumps(schema))
    assert grammar.unchecked == ("uniqueItems",)
    assert grammar.gbnf.count("::=") < 50


def test_references_by_name_and_by_the_address_of_the_schema(tiny):
    named = {"$id": "https://example.com/s.json", "$defs": {
        "a": {"$anchor": "first", "type": "integer"}, "b": {"id": "#second", "type": "string"},
        "c": {"$id": "https://example.com/c.json", "type": "null"}}}  # fmt: skip
    for reference, good, bad in [
        ("#first", "1", '"x"'),
        ("#second", '"x"', "1"),
        ("https://example.com/s.json#/$defs/a", "1", '"x"'),
        ("https://example.com/s.json#first", "1", '"x"'),
        ("#/$defs/c", "null", "1"),
    ]:
        schema = {**named, "$ref": reference}
        assert schema_fits(tiny, schema, good)
        assert not schema_fits(tiny, schema, bad)
    for reference in ("#third", "https://example.com/other.json#first", 5):
        with pytest.raises(SchemaError, match="does not refer into the same schema"):
            json_schema_grammar(json.dumps({**named, "$ref": reference}))
