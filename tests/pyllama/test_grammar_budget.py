"""Grammars whose text is completed within a number of tokens."""

from __future__ import annotations

import pytest
from decoding import PROMPT
from grammars import BYTES

from pyllama import Batch, GrammarSampler, Sampler, SamplerChain

TEXT = 'root ::= "a: " [^\\n]* "\\nb: " ("yes" | "perhaps") "\\n"'
LIST = 'root ::= "[" (item ("," item)*)? "]"\nitem ::= "\\"" [a-z ]{2,9} "\\""'
NESTED = 'root ::= "{" (root ("," root){0,3})? "}" | "[" [0-9]{3} "]"'
# Characters of two bytes and of four, which the vocabulary spells byte by byte.
WIDE = 'root ::= [à-ü\\U00010000-\\U0010FFFF]{1,9} "é"'


def shortest(model, gbnf):
    with GrammarSampler(model.vocab, gbnf) as sampler:
        return sampler.fewest_tokens


@pytest.mark.parametrize(
    ("gbnf", "n_tokens"),
    [
        ('root ::= "xyz"', 3),
        ('root ::= "xyz" | "q"', 1),
        ('root ::= "a"*', 0),
        ('root ::= "é"', 2),
        ('root ::= "hello"', 1),  # one of the vocabulary's own
        ("root ::= [^a]{7}", 7),
        ("root ::= [0-9]{2,2000}", 2),
        ('root ::= "(" root ")" | "x"', 1),
        ('root ::= a b "c"\na ::= b | "xx"\nb ::= "y"?', 1),
        (NESTED, 2),
        (LIST, 2),
        ("root ::= <[7]>", None),
        ("root ::= " + "[a-z]{1500} " * 12, None),
    ],
)
def test_the_fewest_tokens(tiny, gbnf, n_tokens):
    assert shortest(tiny, gbnf) == n_tokens


def test_they_are_counted_from_where_it_is(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "a" ("bcd" | "e") "é"') as sampler:
        found = [sampler.fewest_tokens]
        for byte in "aeé".encode():
            sampler.accept(BYTES[byte])
            found.append(sampler.fewest_tokens)
        assert found == [4, 3, 2, 1, 0]


def test_a_lazy_grammar_that_waits_needs_none(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "xyz"', trigger_patterns=["x"]) as sampler:
        assert sampler.fewest_tokens is None
        sampler.accept(BYTES[ord("x")])
        assert sampler.fewest_tokens == 2


def test_whether_it_may_end(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "a" "b"?') as sampler:
        endings = [sampler.ending]
        for letter in b"ab":
            sampler.accept(BYTES[letter])
            endings.append(sampler.ending)
        assert endings == ["goes on", "may end", "ends"]


def test_what_still_fits(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "a"* "b"') as sampler:
        a = BYTES[ord("a")]
        assert sampler.fits([a] * 100)
        sampler.complete_within(4)
        assert sampler.fits([a] * 3)
        assert not sampler.fits([a] * 4)
        sampler.accept(a)
        assert sampler.fits([a] * 2)
        assert not sampler.fits([a] * 3)
        assert not sampler.fits([BYTES[ord("c")]])
        assert not sampler.fits([tiny.vocab.eos])
        with pytest.raises(ValueError, match="tokens must be between"):
            sampler.fits([tiny.vocab.n_tokens])
        sampler.complete_within(None)
        assert sampler.fits([a] * 100)


@pytest.mark.parametrize("n_tokens", [0, -1, 2**31, "3", 1.5, True])
def test_bounds_are_numbers(tiny, n_tokens):
    with (
        GrammarSampler(tiny.vocab, TEXT) as sampler,
        pytest.raises((TypeError, ValueError), match="n_tokens"),
    ):
        sampler.complete_within(n_tokens)


def completed(context, gbnf, n_tokens, seed, temperature=1.5, likely=""):
    """The tokens that a chain samples of so many, and where that leaves its grammar."""
    biases = {BYTES[byte]: 50.0 for byte in likely.encode()}
    grammar = GrammarSampler(context.model.vocab, gbnf)
    grammar.complete_within(n_tokens)
    last = [Sampler.dist(seed)] if temperature else [Sampler.greedy()]
    first = Sampler.logit_bias(context.model.vocab, biases)
    with SamplerChain([first, Sampler.temp(temperature or 1.0), *last], grammar=grammar) as chain:
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        written = []
        while len(written) < n_tokens:
            token = chain.sample(context)
            if context.model.vocab.is_eog(token):
                break
            written.append(token)
            context.decode(Batch.from_tokens([token], pos=len(PROMPT) + len(written) - 1))
        return written, grammar.ending, grammar.shortened()


def text_of(context, tokens):
    return b"".join(map(context.model.vocab.token_to_piece, tokens)).decode()


@pytest.mark.parametrize("gbnf", [TEXT, LIST, NESTED, WIDE], ids=["text", "list", "nested", "wide"])
def test_every_budget_that_holds_the_shortest_text_holds_one(context, gbnf):
    fewest = shortest(context.model, gbnf)
    for more in (0, 1, 2, 3, 5, 9, 20):
        for seed in (1, 2):
            tokens, ending, _ = completed(context, gbnf, max(1, fewest + more), seed)
            assert ending != "goes on", (more, tokens)
            with GrammarSampler(context.model.vocab, gbnf) as check:
                for token in tokens:
                    check.accept(token)
                assert check.ending != "goes on"


def test_where_a_text_was_shortened_is_reported(context):
    gbnf = 'root ::= first "\\n" second "\\n"\nfirst ::= [a-z ]*\nsecond ::= [a-z ]*'
    tokens, _, places = completed(context, gbnf, 30, 1)
    first, second, _ = text_of(context, tokens).split("\n")
    assert len(first) > 3
    assert any("first" in place for place in places)
    assert not second or any("second" in place for place in places)
    assert completed(context, 'root ::= "ab" | "ac"', 30, 1)[2] == []


def test_with_too_few_nothing_is_ruled_out(context):
    tokens, ending, _ = completed(context, TEXT, 3, 1)
    assert text_of(context, tokens).startswith("a:")
    assert ending == "goes on"


def test_far_from_the_end_nothing_changes(context):
    bounded, free = (
        completed(context, 'root ::= [a-z]{9} ("x" | "yz")', n, 5)[0] for n in (200, 2000)
    )
    assert bounded == free


def test_a_copy_has_the_same_bounds(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "a"* "b"') as sampler:
        sampler.complete_within(3)
        sampler.accept(BYTES[ord("a")])
        copy = sampler.clone()
        assert copy.fits([BYTES[ord("a")]])
        assert not copy.fits([BYTES[ord("a")]] * 2)
        sampler.reset()
        assert sampler.fits([BYTES[ord("a")]] * 2)


CALL = """root ::= "s" | "c(" space text (", " space text)* "; " space text ")"
space ::= [ ]{0,20}
text ::= [a-z]*"""


@pytest.mark.parametrize("n_tokens", [12, 30, 60])
def test_what_is_longer_at_the_least_may_be_chosen_where_it_fits(context, n_tokens):
    """Another way may have more values than the shortest, which have less room then."""
    tokens, ending, _ = completed(context, CALL, n_tokens, 1, temperature=0, likely="c")
    text = text_of(context, tokens)
    assert ending != "goes on"
    assert text.startswith("c(")
    first, last = text[2:-1].split("; ")
    assert n_tokens < 20 or (len(first) > 3 and len(last) > 3)
