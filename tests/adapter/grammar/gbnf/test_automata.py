"""Products of automata: a text fits one that fits both of its parts."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_patterns import patterns
from texts import expression_fits

from adapter.grammar.gbnf.automata import (
    TooLarge,
    automaton_of,
    both,
    characters_only,
    explored,
    lengths,
)
from adapter.grammar.gbnf.characters import Characters
from adapter.grammar.gbnf.digits import multiple_integer, multiples, so_many_digits, special_number
from adapter.grammar.gbnf.numbers import integer
from adapter.grammar.gbnf.parsed_patterns import UnsupportedPattern
from adapter.grammar.gbnf.patterns import pattern_expression
from adapter.grammar.gbnf.rules import Rules, any_text, one_of, sequence

thorough = settings(deadline=None, max_examples=200)
texts = st.text("ab1._ ", max_size=6)


@thorough
@given(patterns, patterns, st.integers(0, 3), st.integers(0, 4), st.lists(texts, max_size=6))
def test_a_product_takes_what_both_take(tiny, one, other, least, more, tried):
    try:
        parts = [automaton_of(pattern_expression(f"^(?:{p})$", one_of)) for p in (one, other)]
    except UnsupportedPattern:
        return
    made = both(both(*parts), lengths(least, least + more))
    rules = Rules()
    expression = made.expression(rules, characters_only)
    for text in tried:
        expected = all(part.takes(text) for part in parts) and least <= len(text) <= least + more
        assert made.takes(text) == expected
        assert expression_fits(tiny, expression, text, rules) == expected
        if expected:
            assert re.fullmatch(one, text)
            assert re.fullmatch(other, text)


@thorough
@given(patterns, texts)
def test_an_automaton_takes_what_its_expression_does(tiny, pattern, text):
    try:
        expression = pattern_expression(pattern, one_of)
    except UnsupportedPattern:
        return
    assert automaton_of(expression).takes(text) == expression_fits(tiny, expression, text)


steps = st.one_of(
    st.integers(1, 60).map(Decimal),
    st.tuples(st.integers(1, 60), st.integers(-3, 1)).map(lambda p: Decimal(p[0]).scaleb(p[1])),
)


@thorough
@given(steps, st.lists(st.integers(-4000, 4000), max_size=6), st.decimals(-30, 30, places=3))
def test_multiples(step, wholes, other):
    automaton = multiples(step)
    near = [Decimal(n) * step for n in range(-3, 4)]
    for one in {*map(Decimal, wholes), *near, other}:
        text = f"{one.normalize():f}"
        assert automaton.takes(text) == ((Fraction(one) / Fraction(step)).denominator == 1), text
    assert not automaton.takes("")
    assert not automaton.takes("-")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.none() | st.integers(-900, 900), st.none() | st.integers(-900, 900))
def test_whole_multiples_between_bounds(tiny, step, low, high):
    if low is not None and high is not None:
        low, high = sorted((low, high))
    rules = Rules()
    expression = multiple_integer(rules, low, high, Decimal(step))
    some = {one * step for one in (-3, 0, 1, 2)} | {low or 0, high or 0, 7, -20}
    for one in some:
        inside = (low is None or one >= low) and (high is None or one <= high)
        expected = inside and one % step == 0
        assert expression_fits(tiny, expression, str(one), rules) == expected, one


@thorough
@given(st.none() | st.integers(1, 6), st.none() | st.integers(0, 4), st.decimals(-99, 99, places=3))
def test_so_many_digits(total, places, value):
    import pydantic

    kind = pydantic.condecimal(max_digits=total, decimal_places=places)
    text = f"{value.normalize():f}"
    try:
        pydantic.TypeAdapter(kind).validate_python(Decimal(text))
        fits = True
    except pydantic.ValidationError:
        fits = False
    assert so_many_digits(total, places).takes(text) == fits, text


def test_special_numbers_keep_their_bounds(tiny):
    rules = Rules()
    expression = special_number(
        rules, (Decimal("0.1"), Decimal(3)), (False, True), step=Decimal("0.1"), total=None,
        places=1,
    )  # fmt: skip
    for text, expected in {"0.1": 1, "2.9": 1, "2": 1, "3": 0, "0": 0, "0.15": 0, "1e0": 0}.items():
        assert expression_fits(tiny, expression, text, rules) == expected, text


def test_what_would_be_too_large_is_reported():
    with pytest.raises(TooLarge):
        multiples(Decimal(99991))
    with pytest.raises(TooLarge):
        lengths(0, 10**6)
    with pytest.raises(TooLarge):
        multiple_integer(Rules(), 0, None, Decimal(99991))
    with pytest.raises(TooLarge):
        automaton_of(pattern_expression("^(a{900}b?){900}$", one_of))


def test_large_ones_are_made_in_bounded_time():
    begun = time.process_time()
    made = both(automaton_of(pattern_expression("^.*foo.*$", one_of)), lengths(10, 300))
    with pytest.raises(TooLarge):
        both(automaton_of(integer(None, None)), multiples(Decimal(1009))).expression(
            Rules(), characters_only
        )
    assert made.expression(Rules(), characters_only)
    assert time.process_time() - begun < 10  # a loop without an end, and no measure of speed


def test_one_text_has_one_rule():
    rules = Rules()
    made = automaton_of(sequence("abc", any_text(["de", "df"])))
    gbnf = rules.gbnf(made.expression(rules, characters_only))
    assert gbnf.count("\n") == 2


def test_many_words_that_may_stand_anywhere_take_few_states():
    """Once one of them was found, nothing that follows matters."""
    words = [f"{first}{second}word" for first in "ABCDE" for second in "abcd"]
    made = automaton_of(pattern_expression("|".join(words), one_of))
    assert len(made.steps) < 200
    assert made.takes("xAaword")
    assert made.takes("Dbword, Ecword")
    assert not made.takes("Daworx")


def test_too_many_steps_are_not_followed_though_the_states_are_few():
    with pytest.raises(TooLarge, match="more than 60000 steps"):
        explored(
            0,
            lambda state: [(Characters.of((n, n)), n % 500) for n in range(state, state + 500)],
            lambda state: state == 0,
        )


@pytest.mark.parametrize("step", [1, 4, 10, 12, 25, 33, 75, 120, 132, 250, 1320])
def test_multiples_are_all_taken_and_nothing_else(step):
    made = multiples(Decimal(step))
    for number in [*range(1500), *range(0, 40 * step, step), 10**9, 10**9 + 1]:
        assert made.takes(str(number)) == (number % step == 0)
        assert made.takes(f"-{number}") == (number % step == 0)
    assert len(made.steps) <= step + 3
