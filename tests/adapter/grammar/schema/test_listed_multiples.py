"""Multiples between two bounds, where they are few enough to be listed."""

from __future__ import annotations

import json

import pytest
from texts import schema_fits


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"minimum": -1, "maximum": 1, "multipleOf": 0.5}, [-1, -0.5, 0, 0.5, 1], [0.25, 1.5]),
        ({"exclusiveMinimum": 0, "maximum": 9, "multipleOf": 3}, [3, 6, 9], [0, 12, 4]),
        ({"minimum": 0, "exclusiveMaximum": 0.3, "multipleOf": 0.1}, [0, 0.1, 0.2], [0.3, 0.15]),
        ({"minimum": 100, "maximum": 1000, "multipleOf": 100}, [100, 1000], [10, 1, 110]),
        ({"minimum": 1e17, "maximum": 1e17 + 64, "multipleOf": 32}, [10**17], [10**17 + 1]),
    ],
)
def test_numbers_that_are_multiples_between_bounds(tiny, schema, good, bad):
    schema = {"type": "number", **schema}
    assert [one for one in good if not schema_fits(tiny, schema, json.dumps(one))] == []
    assert [one for one in bad if schema_fits(tiny, schema, json.dumps(one))] == []
