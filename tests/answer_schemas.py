"""Random JSON schemas, as a response_format has them: nested, recursive, keys of any script."""

from __future__ import annotations

from typing import Any

from answer_types import KEYS, WORDS
from hypothesis import strategies as st

Schema = dict[str, Any]

TREE: Schema = {
    "type": "object",
    "properties": {
        "größe": {"type": "integer", "minimum": 0, "maximum": 50},
        "ветви": {"type": "array", "items": {"$ref": "#/$defs/Tree"}, "maxItems": 2},
    },
    "required": ["größe"],
    "additionalProperties": False,
}
CHAIN: Schema = {
    "properties": {
        "id": {"type": "string", "pattern": "^[A-F]{2}[0-9]*$"},
        "next": {"anyOf": [{"$ref": "#/$defs/Chain"}, {"type": "null"}]},
    },
    "type": "object",
    "required": ["id", "next"],
}


def _bounded(low: float, span: float, exclusive: bool) -> Schema:
    names = ("exclusiveMinimum", "exclusiveMaximum") if exclusive else ("minimum", "maximum")
    return dict(zip(names, (low, low + span), strict=True))


integers = st.tuples(st.integers(-2000, 2000), st.integers(2, 3000), st.booleans()).map(
    lambda given: {"type": "integer", **_bounded(*given)}
)
numbers = st.tuples(st.floats(-50, 50), st.floats(0.01, 50), st.booleans()).map(
    lambda given: {"type": "number", **_bounded(*given)}
)
texts = st.sampled_from([
    {"type": "string", "maxLength": 10},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^(foo|bär)-[0-9]{1,3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
])  # fmt: skip
choices = st.one_of(
    st.lists(
        st.sampled_from([*WORDS, 0, 1, -3, 2.5, True, None, {"ключ": []}, ["a", 1]]),
        min_size=1,
        max_size=5,
    ).map(lambda values: {"enum": values}),
    st.just({"enum": [f"member {n}" for n in range(300)]}),
    st.sampled_from([*WORDS, 7, False]).map(lambda value: {"const": value}),
)
recursive = st.sampled_from([{"$ref": "#/$defs/Tree"}, {"$ref": "#/$defs/Chain"}])
leaves = st.one_of(
    integers,
    numbers,
    texts,
    choices,
    recursive,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}]),
)


@st.composite
def objects(draw: Any, inner: Any) -> Schema:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    made: Schema = {"type": "object", "properties": {key: draw(inner) for key in keys}}
    made["required"] = draw(st.lists(st.sampled_from(keys), unique=True))
    others = draw(st.sampled_from([None, False, {"type": "integer", "minimum": 0, "maximum": 9}]))
    if others is not None:
        made["additionalProperties"] = others
    if others:
        made["maxProperties"] = len(keys) + 1
    return made


def nested(inner: Any) -> Any:
    """One level more."""
    return st.one_of(
        objects(inner),
        inner.map(lambda item: {"type": "array", "items": item, "maxItems": 3}),
        inner.map(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        inner.map(lambda item: {"anyOf": [item, {"type": "null"}]}),
        st.tuples(inner, inner).map(
            lambda items: {
                "type": "array",
                "prefixItems": list(items),
                "minItems": 2,
                "maxItems": 2,
            }
        ),
    )


@st.composite
def schemas(draw: Any, depth: int = 4) -> Schema:
    """A schema nested up to a depth, whose top is an object, as models are asked for."""
    kinds: Any = leaves
    for _ in range(depth - 1):
        kinds = st.one_of(leaves, nested(kinds))
    return {**draw(objects(kinds)), "$defs": {"Tree": TREE, "Chain": CHAIN}}
