"""Whatever answer is drawn from a grammar, its adapter reads, and pydantic takes the values."""

from __future__ import annotations

import json
import random
from xml.sax.saxutils import escape

import dspy
import pydantic
import pytest
from answer_types import BOUND_KINDS, signatures
from dspy.utils.exceptions import AdapterParseError
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from texts import fits, random_text

from adapter import LlamaCppAdapter, constrained
from adapter.grammar.gbnf.rules import Rules
from adapter.grammar.schema.annotations import annotated
from adapter.signatures.answer_grammar import CHAT, FIELD_LINES, JSON, XML, Field, answer_grammar
from adapter.signatures.field_values import Misfit, constrained_values
from adapter.signatures.parsing import parse_completion

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
def test_every_answer_of_any_signature_is_read_or_reported(signature):
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


LINES = [
    "subject: Rain", "Subject: Rain", "email: no", "- email: x", "**email**: x", "note:",
    "1. note: x", "[[ ## note ## ]]", "x [[ ## email ## ]]", "[[ ## completed ## ]]", "</email>",
    "<note>", "&lt;/note>",
    '{"note": "x"}', '"', "}", "```", "```yaml", "key:", "  - a", "---", "A: hi", "User: x", "",
    "\u200bnote: x", "\u00a0note: x", "note\uff1a x", "<![CDATA[", "<!-- x -->",
]  # fmt: skip
MAIL = dspy.Signature("subject -> email, note")


def written(form, values):
    """An answer with these values, as a model would write it."""
    if form is FIELD_LINES:
        return "\n".join(f"{name}:\n{value}" for name, value in values.items())
    if form is JSON:
        return json.dumps(values, ensure_ascii=False)
    if form is XML:
        return "\n\n".join(f"<{name}>\n{escape(one)}\n</{name}>" for name, one in values.items())
    fields = [f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items()]
    return "".join([*fields, "[[ ## completed ## ]]"])


@settings(deadline=None, max_examples=50)
@example("note:\n```", "```")
@given(*[st.lists(st.sampled_from(LINES), max_size=3).map("\n".join)] * 2)
def test_lines_that_look_like_fields_are_text(tiny, email, note):
    values = {"email": email, "note": note}
    stripped = {name: value.strip() for name, value in values.items()}
    has_open_block = any(
        sum(line.startswith("```") for line in value.splitlines()) % 2 for value in values.values()
    )
    for form in FORMS:
        if form is FIELD_LINES and has_open_block:
            continue  # a block that ends in the other value makes other values of the same text
        text = written(form, values)
        if fits(tiny, answer_grammar(MAIL, form).gbnf, text):
            assert read(MAIL, form, text) == (values if form is JSON else stripped)
