"""Trying an expression's grammar on texts."""

from __future__ import annotations

import json

from grammars import matches

import pyllama
from adapter.grammar.json_schema import json_schema_grammar
from adapter.grammar.rules import Rules


def fits(model, gbnf, text):
    """Whether a grammar takes a text, as a whole."""
    return matches(model.vocab, pyllama.Grammar(gbnf), text)


def expression_fits(model, expression, text, rules=None):
    """Whether an expression takes a text, as a whole."""
    gbnf = (rules or Rules()).gbnf(expression)
    return gbnf is not None and fits(model, gbnf, text)


def schema_fits(model, schema, text):
    """Whether a schema's grammar takes a JSON text."""
    return fits(model, json_schema_grammar(json.dumps(schema)).gbnf, text)
