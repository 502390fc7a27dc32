"""Trying an expression's grammar on texts."""

from __future__ import annotations

import json

from grammars import matches

import pyllama
from adapter.grammar.gbnf.rules import Concatenation, OneOf, Repeat, Rule, Rules, Text
from adapter.grammar.schema.json_schema import json_schema_grammar


def fits(model, gbnf, text):
    """Whether a grammar takes a text, as a whole."""
    return matches(model.vocab, pyllama.Grammar(gbnf), text)


def expression_fits(model, expression, text, rules=None):
    """Whether an expression takes a text, as a whole."""
    # Behind a character, for a grammar of the empty text alone is refused.
    gbnf = (rules or Rules()).gbnf(Concatenation((Text("x"), expression)))
    return gbnf is not None and fits(model, gbnf, "x" + text)


def schema_fits(model, schema, text):
    """Whether a schema's grammar takes a JSON text."""
    return fits(model, json_schema_grammar(json.dumps(schema)).gbnf, text)


def random_text(rules, expression, random):
    """A text that an expression takes, drawn at random; LookupError where there is none."""
    if isinstance(expression, Rule):
        return random_text(rules, rules._rules[expression.name], random)
    if isinstance(expression, Text):
        return expression.text
    if isinstance(expression, OneOf):
        low, high = random.choice(expression.characters.ranges[:4])
        return chr(random.randint(low, min(high, low + 40)))
    if isinstance(expression, Concatenation):
        return "".join(random_text(rules, part, random) for part in expression.parts)
    if isinstance(expression, Repeat):
        most = expression.least + 4
        most = most if expression.most is None else min(most, expression.most)
        count = random.randint(expression.least, most)
        return "".join(random_text(rules, expression.part, random) for _ in range(count))
    options = random.sample(expression.options, len(expression.options))
    drawn = (_text_or_none(rules, option, random) for option in options)
    text = next((text for text in drawn if text is not None), None)
    if text is None:
        raise LookupError("nothing fits")
    return text


def _text_or_none(rules, expression, random):
    try:
        return random_text(rules, expression, random)
    except LookupError:
        return None
