"""Whatever answer is drawn from a grammar, its adapter reads, and pydantic takes the values."""

from __future__ import annotations

import random

import dspy
import pydantic
import pytest
from answer_types import BOUND_KINDS, signatures
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, Phase, given, settings
from texts import random_text

from adapter import LlamaCppAdapter, constrained
from adapter.field_values import Misfit, constrained_values
from adapter.grammar.annotation_schema import annotated
from adapter.grammar.answer_grammar import CHAT, FIELD_LINES, JSON, XML, Field
from adapter.grammar.rules import Rules
from adapter.parsing import parse_completion

DRAWN = 6
FORMS = {
    FIELD_LINES: LlamaCppAdapter(),
    CHAT: constrained(dspy.ChatAdapter()),
    JSON: constrained(dspy.JSONAdapter()),
    XML: constrained(dspy.XMLAdapter()),
}


def drawn_answers(signature, form):
    """What of its types the grammar leaves out, and some answers that it takes."""
    fields = signature.output_fields.items()
    rules = Rules()
    whole, values = form.write(
        rules, tuple(Field(name, one.annotation, tuple(one.metadata)) for name, one in fields)
    )
    assert rules.gbnf(whole)
    unchecked = {name: found.unchecked for name, found in values}
    texts = (random_text(rules, whole, random.Random(number)) for number in range(DRAWN))
    return unchecked, texts


def read(signature, form, text):
    if form is FIELD_LINES:
        return parse_completion(signature, text, is_bound=True)
    return constrained_values(signature.output_fields, FORMS[form].parse(signature, text))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(FORMS[form]).__name__)
@pytest.mark.parametrize("kind", BOUND_KINDS, ids=lambda kind: str(kind)[-60:])
def test_every_answer_is_of_its_types(kind, form):
    outputs = {"value": (kind, dspy.OutputField()), "word": (str, dspy.OutputField())}
    signature = dspy.Signature({"question": (str, dspy.InputField()), **outputs})
    unchecked, texts = drawn_answers(signature, form)
    assert not any(unchecked.values())
    field = signature.output_fields["value"]
    takes = pydantic.TypeAdapter(annotated(field.annotation, tuple(field.metadata)))
    for text in texts:
        value = read(signature, form, text)["value"]
        if "Json" not in str(kind):  # which is read already
            takes.validate_python(value)


@settings(
    deadline=None,
    max_examples=15,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(signatures(depth=3))
def test_every_answer_of_any_signature_is_read_or_was_told(signature):
    for form in FORMS:
        try:
            unchecked, texts = drawn_answers(signature, form)
            drawn = [text for _, text in zip(range(3), texts, strict=False)]
        except RecursionError:
            continue  # of a type that goes on in itself
        for text in drawn:
            try:
                values = read(signature, form, text)
            except (AdapterParseError, Misfit):
                assert any(unchecked.values()), text
                continue
            for name, field in signature.output_fields.items():
                constrained_values({name: field}, values)
