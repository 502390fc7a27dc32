"""Whatever a request holds, the engine answers it or raises one of lm15's errors."""

from __future__ import annotations

import asyncio

import pytest
from dspy import lm15
from dspy.lm15 import Config, FunctionTool, Message, Request
from fake_generator import fake_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapter.engine.async_engine import AsyncLlamaCppEngine
from adapter.engine.config import LLAMACPP_SETTINGS, LlamaCppConfig
from adapter.engine.engine import LlamaCppEngine

TOOLS_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}\n{% endfor %}<assistant>"
)

ENGINES = [
    LlamaCppEngine(model, LlamaCppConfig(model.name, **changes))
    for model, changes in (
        (fake_model('{"a": 1}'), {}),
        (fake_model("x" * 50, context_length=300), {"token_budget_limit": 10**12}),
        (fake_model('<tool_call>{"name": "f"', source=TOOLS_TEMPLATE), {"seed": 1}),
    )
]

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["\ud800", "a\0b", "{{ 1 / 0 }}", "<|im_end|>", "n" * 180, "\U0001f3d4", "\u2028", ""]
    ),
)
numbers = st.one_of(
    st.integers(),
    st.sampled_from([2**31, 2**32, 2**40, 2**63, 2**64, 10**400, -1, 0, -(2**63), True]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=3))
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(texts, numbers), inner, max_size=3),
        st.tuples(inner),
        st.frozensets(scalars, max_size=2),
    ),
    max_leaves=6,
)

KEYWORDS = [
    "type", "enum", "const", "properties", "required", "additionalProperties", "items",
    "prefixItems", "patternProperties", "propertyNames", "minItems", "maxItems", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "anyOf", "oneOf", "allOf", "not", "if", "then", "$ref", "$defs", "$id",
    "minProperties", "maxProperties", "uniqueItems", "contains", "formatMinimum", "formatMaximum",
    "x-digits", "x-unchecked", "additionalItems", "dependentRequired", "description", "title",
]  # fmt: skip
keyword_values = st.one_of(
    anything,
    st.sampled_from(["string", "integer", "number", "object", "array", "boolean", "null"]),
    st.sampled_from(["#", "#/$defs/a", "#/properties/a", "(", "^(a+)+$", "a{1,9999}", "date"]),
    st.lists(st.sampled_from(["a", "b", "integer", "null"]), max_size=3),
)
schemas = st.recursive(
    st.one_of(
        st.booleans(), st.dictionaries(st.sampled_from(KEYWORDS), keyword_values, max_size=3)
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(KEYWORDS),
        st.one_of(
            keyword_values,
            inner,
            st.lists(inner, max_size=3),
            st.dictionaries(st.one_of(texts, st.sampled_from(["a", "b"])), inner, max_size=3),
        ),
        max_size=4,
    ),
    max_leaves=5,
)
LLAMACPP = [*LLAMACPP_SETTINGS, "nonsense"]
metadata = st.one_of(
    anything,
    st.fixed_dictionaries(
        {"llamacpp": st.one_of(anything, st.dictionaries(st.sampled_from(LLAMACPP), scalars))}
    ),
)
extensions = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["metadata", "logit_bias", "best_of"]), anything, max_size=2),
    st.fixed_dictionaries({"metadata": metadata}),
    st.fixed_dictionaries({"logit_bias": st.dictionaries(st.one_of(texts, numbers), scalars)}),
)
formats = st.one_of(
    st.none(),
    st.just({"type": "json_object"}),
    st.builds(lambda schema: {"type": "json_schema", "schema": schema}, schemas),
    anything,
)
FIELDS = {
    "max_tokens": numbers,
    "temperature": numbers,
    "top_p": numbers,
    "top_k": numbers,
    "stop": st.one_of(texts, st.lists(texts, max_size=3).map(tuple)),
    "seed": numbers,
    "frequency_penalty": numbers,
    "presence_penalty": numbers,
    "response_format": formats,
    "reasoning": st.one_of(
        st.none(),
        st.builds(
            lambda *given: possible(lambda: lm15.Reasoning(*given)),
            st.sampled_from(["off", "low", "high", "max"]),
            st.integers(1, 2**40),
        ),
    ),
    "cache": st.sampled_from([None, lm15.CacheConfig(prefix="stable")]),
    "logprobs": numbers,
    "probabilities": st.sampled_from([None, "off", "if_available", "required"]),
    "extensions": extensions,
    "tool_choice": st.sampled_from(
        [None, *map(lm15.ToolChoice, ("auto", "required", "none"))]
    ),
    "user_id": texts,
}  # fmt: skip
configs = st.builds(
    lambda asked: possible(lambda: Config(**asked)),
    st.dictionaries(st.sampled_from([*FIELDS]), st.none(), max_size=4).flatmap(
        lambda chosen: st.fixed_dictionaries({name: FIELDS[name] for name in chosen})
    ),
)
objects = st.dictionaries(texts, anything, max_size=3)
messages = st.one_of(
    texts.map(Message.user),
    texts.map(Message.developer),
    st.builds(
        lambda text, value: possible(
            lambda: Message.user([lm15.TextPart(text), lm15.DataPart(value)])
        ),
        texts,
        objects,
    ),
    st.builds(
        lambda ident, name, value: possible(
            lambda: Message.assistant([lm15.ToolCallPart(ident, name, value)])
        ),
        texts, texts, objects,
    ),
    st.builds(lambda ident, text: possible(lambda: Message.tool(ident, text)), texts, texts),
    st.builds(
        lambda text: possible(
            lambda: Message.assistant([lm15.ThinkingPart(text), lm15.TextPart(text)])
        ),
        texts,
    ),
)  # fmt: skip
tools = st.builds(
    lambda name, told, parameters: possible(lambda: FunctionTool(name, told, parameters)),
    texts, st.one_of(st.none(), texts), st.one_of(objects, schemas),
)  # fmt: skip


def possible(make):
    """What lm15 itself lets through: a request that it refuses never reaches the engine."""
    try:
        return make()
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError, lm15.LM15Error):
        return None


@st.composite
def requests(draw):
    parts = {
        "messages": tuple(filter(None, draw(st.lists(messages, min_size=1, max_size=3)))),
        "system": draw(st.one_of(st.none(), texts)),
        "tools": tuple(filter(None, draw(st.lists(tools, max_size=2)))),
        "config": draw(configs) or Config(),
    }
    return lambda model: possible(lambda: Request(model=model, **parts))


def run_async(engine, request):
    async def main():
        twin = AsyncLlamaCppEngine(engine)
        try:
            response = await twin.complete(request)
            return response, [event async for event in twin.stream(request)]
        finally:
            await twin.aclose()

    return asyncio.run(main())


WAYS = (
    lambda engine, request: engine.complete(request),
    lambda engine, request: list(engine.stream(request)),
    run_async,
)


def refusal(way, engine, request):
    """What the engine says against a request; "" where it answers."""
    try:
        way(engine, request)
    except lm15.LM15Error as error:
        return str(error) or type(error).__name__
    return ""


def asked(*messages, **config):
    """A request that once left the engine with an exception of its own."""

    def make(model):
        said = messages or (Message.user("Hi"),)
        return Request(model=model, messages=said, config=Config(**config))

    return make


def deep(count):
    value = {}
    for _ in range(count):
        value = {"a": value}
    return value


@settings(
    deadline=None,
    max_examples=600,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@example(asked(top_k=2**40))
@example(asked(max_tokens=2**70))
@example(asked(seed=2**64))
@example(asked(logprobs=10**400))
@example(asked(extensions={"metadata": {"llamacpp": {"min_p": 10**400}}}))
@example(asked(extensions={"metadata": {"n": 10**5000}}))
@example(asked(extensions={"metadata": {"llamacpp": {"dry_sequence_breakers": ["\ud800"]}}}))
@example(asked(extensions={"logit_bias": {"1" * 5000: 1}}))
@example(asked(response_format={"type": "json_schema", "schema": deep(600)}))
@example(asked(response_format={"type": "json_schema", "schema": {"properties": {"n" * 180: {}}}}))
@example(asked(stop=("\ud800",)))
@example(asked(Message.user("\ud800")))
@given(requests())
def test_what_leaves_the_engine_is_an_answer_or_an_lm15_error(make):
    for engine in ENGINES:
        request = make(engine.model)
        if request is None:
            return
        for way in WAYS:
            before = engine.budget.used
            message = refusal(way, engine, request)
            assert "the engine failed" not in message
            computed = "the model called" in message or "own format" in message
            assert not message or computed or engine.budget.used == before


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**64, True, "x", [1]])
@pytest.mark.parametrize(
    "name",
    sorted({*LLAMACPP} - {"grammar", "nonsense", "complete_answers", "end_repetitions"}),
)
def test_numbers_beyond_any_range_are_refused_by_name(name, value):
    request = asked(extensions={"metadata": {"llamacpp": {name: value}}})(ENGINES[0].model)
    with pytest.raises(lm15.InvalidRequestError, match=name):
        ENGINES[0].complete(request)
