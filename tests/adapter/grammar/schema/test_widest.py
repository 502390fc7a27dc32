"""Combinations of multiples: those that others include are not written out."""

from __future__ import annotations

import json

from texts import fits

from adapter.grammar.schema.json_schema import json_schema_grammar
from adapter.grammar.schema.widest import widest


def combined(*unions):
    return {
        "type": "integer",
        "allOf": [{"anyOf": [{"multipleOf": one} for one in union]} for union in unions],
    }


def test_multiples_of_multiples_are_left_out():
    of_three, of_nine = ({"type": ["integer"], "multipleOf": one} for one in (3, 9))
    assert widest([of_nine, of_three]) == [of_three]
    for more in ({"minimum": 1}, {"type": ["number"]}, {"maximum": 9}):
        narrow = {**of_three, **more}
        assert widest([of_nine, narrow]) == [of_nine, narrow]
    assert widest([{**of_nine, "minimum": 1}, of_three]) == [of_three]
    assert widest([of_nine, {"type": ["string"]}, of_three]) == [{"type": ["string"]}, of_three]


def test_a_grammar_of_combinations_takes_what_the_schema_does(tiny):
    schema = combined((3, 5, 7), (2, 3, 9), (1, 4))
    gbnf = json_schema_grammar(json.dumps(schema)).gbnf
    assert len(gbnf) < 25_000
    for number in (0, 3, 6, 9, 10, 12, 14, 15, 18, 20, 21, 25, 28, 35, 49, 70, 99, -6, -25):
        valid = any(number % one == 0 for one in (3, 5, 7))
        valid &= any(number % one == 0 for one in (2, 3, 9))
        assert fits(tiny, gbnf, str(number)) == valid, number


def test_many_large_automata_are_not_all_made():
    """What is too much for one grammar is reported, and soon."""
    primes = [101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 97, 89, 83, 79, 73]
    steps = {f"k{prime}": {"type": "number", "multipleOf": prime} for prime in primes}
    schema = {"type": "object", "properties": steps}
    made = json_schema_grammar(json.dumps(schema))
    assert made.unchecked == ("multipleOf",)
    assert len(made.gbnf) < 2_500_000
