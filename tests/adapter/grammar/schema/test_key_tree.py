"""Objects of many keys that may be left out."""

from __future__ import annotations

import json
import random

import pytest
from texts import schema_fits

from adapter.grammar.schema.key_tree import MAX_MEMBERS

STEMS = ["name", "nam", "n", "name_of_", "x", 'quo"te', "größe", "価", ""]
KEYS = [f"{stem}{number or ''}" for number in range(6) for stem in STEMS]
DEEP = ["k" * length for length in range(1, 60)]


def object_of(keys, chosen):
    return json.dumps({key: keys.index(key) for key in chosen}, ensure_ascii=False)


def schema_of(keys, required, **others):
    properties = {key: {"const": number} for number, key in enumerate(keys)}
    return {"type": "object", "properties": properties, "required": required, **others}


@pytest.mark.parametrize("keys", [KEYS, DEEP, KEYS[::-1], DEEP[::-1]])
@pytest.mark.parametrize("n_required", [0, 2])
def test_any_of_many_keys_may_be_left_out(tiny, keys, n_required):
    required = keys[10::20][:n_required]
    schema = schema_of(keys, required, additionalProperties=False)
    draw = random.Random(1)
    for count in (0, 1, 1, 2, 5, 20, len(keys)):
        chosen = {*draw.sample(keys, count), *required}
        ordered = [key for key in keys if key in chosen]
        assert schema_fits(tiny, schema, object_of(keys, ordered)), ordered
        assert not schema_fits(tiny, schema, object_of([*keys, "other"], [*ordered, "other"]))
        if len(ordered) > 1:
            assert not schema_fits(tiny, schema, object_of(keys, ordered[::-1]))
            assert not schema_fits(tiny, schema, object_of(keys, [*ordered[1:], ordered[0]]))
        if required:
            left_out = [key for key in ordered if key != required[0]]
            assert not schema_fits(tiny, schema, object_of(keys, left_out))


def test_there_may_be_other_keys_behind_many(tiny):
    schema = schema_of(KEYS, [], additionalProperties={"const": 0})
    assert schema_fits(tiny, schema, '{"name3": 27, "other": 0, "name_of_9": 0}')
    assert schema_fits(tiny, schema, '{"other": 0}')
    assert not schema_fits(tiny, schema, '{"other": 0, "name3": 27}')
    assert not schema_fits(tiny, schema, '{"name3": 0}')


def test_more_keys_than_a_tree_has(tiny):
    keys = [f"k{number}" for number in range(2 * MAX_MEMBERS + 20)]
    schema = schema_of(keys, [], additionalProperties=False)
    for chosen in (keys[:1], keys[-1:], keys[::150], keys[MAX_MEMBERS - 2 : MAX_MEMBERS + 30 : 3]):
        assert schema_fits(tiny, schema, object_of(keys, chosen))
    assert not schema_fits(tiny, schema, object_of(keys, ["k600", "k599"]))
