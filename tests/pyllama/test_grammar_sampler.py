"""Grammars at work: what may follow what was accepted, and what is forced."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic
from decoding import run_python
from grammars import BYTES, allowed_one_by_one, feed, grammars, no_deadline
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama import Grammar, GrammarError, GrammarSampler


def places(sampler, gbnf, choices):
    """Accept one of the allowed tokens for each choice; yields what is allowed before each."""
    for choice in [*choices, 0]:
        allowed = sampler.allowed_tokens()
        yield allowed
        if not len(allowed):
            return
        try:
            sampler.accept(int(allowed[choice % len(allowed)]))
        except pyllama.NativeError:
            # It takes a token for one that is to follow, and then for its characters.
            assert "<[" in gbnf
            return


# State


def test_it_follows_what_is_accepted(tiny):
    a, b, c = (BYTES[ord(letter)] for letter in "abc")
    with GrammarSampler(tiny.vocab, 'root ::= "a" ("b" | "c")*') as sampler:
        assert sampler.allowed_tokens().tolist() == [a]
        assert not sampler.complete
        sampler.accept(a)
        assert sampler.complete
        assert sampler.allows([a, b, c, tiny.vocab.eos]).tolist() == [False, True, True, True]
        copy = sampler.clone()
        sampler.accept(tiny.vocab.eos)
        copy.accept(b)
        sampler.reset()
        assert sampler.allowed_tokens().tolist() == [a]
        assert copy.complete
        assert copy.grammar is sampler.grammar


def test_a_refused_token_changes_nothing(tiny):
    a, b = BYTES[ord("a")], BYTES[ord("b")]
    with GrammarSampler(tiny.vocab, 'root ::= "a" "b"') as sampler:
        sampler.accept(a)
        for token in (a, tiny.vocab.eos, tiny.vocab.bos):
            with pytest.raises(GrammarError, match=f"accepting token {token}: .* does not let"):
                sampler.accept(token)
            assert sampler.allowed_tokens().tolist() == [b]
        sampler.accept(b)
        assert sampler.complete


def test_a_token_of_several_characters_and_one_of_a_part(tiny):
    hello = tiny.vocab.tokenize("hello", add_special=False)
    assert len(hello) == 1
    with GrammarSampler(tiny.vocab, 'root ::= "hello" [é]') as sampler:
        sampler.accept(hello[0])
        first, second = (BYTES[byte] for byte in "é".encode())
        assert sampler.allowed_tokens().tolist() == [first]
        sampler.accept(first)
        assert sampler.allowed_tokens().tolist() == [second]
        assert not sampler.complete
        sampler.accept(second)
        assert sampler.complete


@pytest.mark.parametrize(
    ("tokens", "error"),
    [([-1], ValueError), ([10**6], ValueError), (["a"], TypeError), ([1.5], TypeError)],
)
def test_tokens_are_checked(tiny, tokens, error):
    with GrammarSampler(tiny.vocab, 'root ::= "a"') as sampler:
        with pytest.raises(error, match="token"):
            sampler.allows(tokens)
        with pytest.raises(error, match="token"):
            sampler.accept(tokens[0])
        assert sampler.allows([]).tolist() == []


@pytest.mark.parametrize("vocab", [None, 3, "vocab"])
def test_what_is_no_vocabulary(vocab):
    with pytest.raises(TypeError, match="vocab"):
        GrammarSampler(vocab, 'root ::= "a"')


def test_allowed_tokens_agree_with_asking_each(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "hel" [a-m]* | "he" [é] | "he" root') as sampler:
        feed(sampler, tiny.vocab, "he")
        allowed = sampler.allowed_tokens()
        np.testing.assert_array_equal(allowed, allowed_one_by_one(sampler))
        assert len(allowed) > 2


@no_deadline
@given(grammars, st.lists(st.integers(0, 2**16), max_size=6))
def test_the_tree_of_all_tokens_allows_what_llama_cpp_does(tiny, gbnf, choices):
    try:
        grammar = Grammar(gbnf)
    except GrammarError:
        return
    with GrammarSampler(tiny.vocab, grammar) as sampler:
        for allowed in places(sampler, gbnf, choices):
            np.testing.assert_array_equal(allowed, allowed_one_by_one(sampler))
            np.testing.assert_array_equal(allowed, sampler.allowed_tokens())


@pytest.mark.model
@pytest.mark.parametrize(
    ("gbnf", "text"),
    [
        ('root ::= ([^"\\\\] | "\\\\" ["n])*', 'a "quoted'),
        ('root ::= "{" ("\\"" [a-zé价🦙]{1,9} "\\":" [0-9]+ ","?)+ "}"', '{"né价":12,"🦙":'),
        ("root ::= [^\\n]{0,400} [\\n] .*", "It is 🦙 so.\nYes"),
        (
            "root ::= " + " | ".join(f'"country number {n}"' for n in range(200)),
            "country number 17",
        ),
        # More states than are kept.
        ("root ::= " + " ".join(f"[^{chr(97 + n % 26)}]{{0,90}}" for n in range(26)), "Hello"),
    ],
)
def test_the_tree_of_a_real_vocabulary(smollm2, gbnf, text):
    with GrammarSampler(smollm2.vocab, gbnf) as sampler:
        for token in smollm2.vocab.tokenize(text, add_special=False):
            if not sampler.allows([token])[0]:
                break
            sampler.accept(token)
            np.testing.assert_array_equal(sampler.allowed_tokens(), allowed_one_by_one(sampler))


def test_tokens_that_are_no_text(write_tiny_model):
    """Bytes that llama.cpp takes for no character, and for the null character."""
    odd = [b"a\x80", b"\xc0\x80", b"b\xc0\x80c", b"\xf0\x9f", b"a\xe4\xbb", b"\xffa", b"a\0b"]
    spellings = synthetic._byte_spellings()
    spelt = tuple("".join(spellings[byte] for byte in token) for token in odd)
    path = write_tiny_model(extra_tokens=spelt)
    with pyllama.Model(path, vocab_only=True) as model:
        assert [model.vocab.token_to_piece(t) for t in range(model.vocab.n_tokens)][
            -len(odd) :
        ] == odd
        for gbnf in ("root ::= .*", "root ::= [^b]*", 'root ::= "b"?', "root ::= [a-b价🦙]+"):
            with GrammarSampler(model.vocab, gbnf) as sampler:
                np.testing.assert_array_equal(sampler.allowed_tokens(), allowed_one_by_one(sampler))


# Forced text


@pytest.mark.parametrize(
    ("gbnf", "forced"),
    [
        ('root ::= "ab" [c] [d-d] "é価🦙\\n" [xy]', "abcdé価🦙\n"),
        ('root ::= "a" | "b"', ""),
        ('root ::= "abc" | "abd" | x\nx ::= "a" "bb"', "ab"),
        ('root ::= "ab" | "ab" "c"', "ab"),
        ('root ::= ("a")*', ""),
        ('root ::= "a" ("b" "c"?)+', "ab"),
        ('root ::= "a" root', "a" * 1024),
        ("root ::= [ab]", ""),
        ("root ::= .", ""),
        ("root ::= [^a]", ""),
        ('root ::= "" | "a"', ""),
        ("root ::= <[7]>", ""),
        ('root ::= "a" <[7]> "b"', "a"),
    ],
)
def test_text_that_is_forced(tiny, gbnf, forced):
    with GrammarSampler(tiny.vocab, gbnf) as sampler:
        before = sampler.allowed_tokens().tolist()
        assert sampler.forced_text() == forced
        assert sampler.forced_text() == forced
        assert sampler.allowed_tokens().tolist() == before


def test_text_is_forced_from_where_the_grammar_is(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "aéb" [cd] "e"') as sampler:
        rests = []
        for byte in "aébce".encode():
            sampler.accept(BYTES[byte])
            rests.append(sampler.forced_text())
        assert rests == ["éb", "", "b", "", "e", ""]


def test_nothing_is_forced_before_the_trigger(tiny):
    with GrammarSampler(tiny.vocab, 'root ::= "<ab"', trigger_patterns=["<"]) as sampler:
        assert sampler.forced_text() == ""
        sampler.accept(BYTES[ord("<")])
        assert sampler.forced_text() == "ab"


@no_deadline
@given(grammars, st.lists(st.integers(0, 2**16), max_size=4))
def test_every_allowed_token_agrees_with_what_is_forced(tiny, gbnf, choices):
    try:
        grammar = Grammar(gbnf)
    except GrammarError:
        return
    with GrammarSampler(tiny.vocab, grammar) as sampler:
        for allowed in places(sampler, gbnf, choices):
            forced = sampler.forced_text().encode()
            for piece in map(tiny.vocab.token_to_piece, allowed if forced else ()):
                assert piece.startswith(forced) or forced.startswith(piece)


# Lazy grammars


TOOL = 'root ::= "<tool>" [0-9]+ "."'


def allowed_bytes(sampler, vocab):
    return b"".join(sorted(map(vocab.token_to_piece, sampler.allowed_tokens())))


def test_a_lazy_grammar_waits_for_its_pattern(tiny):
    with GrammarSampler(tiny.vocab, TOOL, trigger_patterns=["<tool>"]) as sampler:
        for text in ("anything ", "at all <to"):
            feed(sampler, tiny.vocab, text)
            assert len(sampler.allowed_tokens()) == tiny.vocab.n_tokens
            assert sampler.complete
        copy = sampler.clone()
        feed(sampler, tiny.vocab, "ol>")
        assert allowed_bytes(sampler, tiny.vocab) == b"0123456789"
        assert not sampler.complete
        feed(copy, tiny.vocab, "ol>5")
        sampler.reset()
        assert sampler.complete


def test_a_lazy_grammar_waits_for_its_token(tiny):
    grammar = "root ::= <|im_start|> [0-9]"
    with GrammarSampler(tiny.vocab, grammar, trigger_tokens=[3]) as sampler:
        feed(sampler, tiny.vocab, "anything")
        sampler.accept(3)
        assert allowed_bytes(sampler, tiny.vocab) == b"0123456789"


def test_the_grammar_begins_with_the_first_group(tiny):
    pattern = r"call:\s*(<tool>)"
    with GrammarSampler(tiny.vocab, TOOL, trigger_patterns=[pattern]) as sampler:
        feed(sampler, tiny.vocab, "so: call:  <tool>7")
        assert allowed_bytes(sampler, tiny.vocab) == b".0123456789"


def test_a_trigger_that_the_grammar_does_not_begin_with(tiny):
    sampler = GrammarSampler(tiny.vocab, TOOL, trigger_patterns=["now"])
    with sampler, pytest.raises(pyllama.NativeError, match="grammar stack"):
        feed(sampler, tiny.vocab, "now")


DEEP = """
    import resource, sys, threading
    # A thread of little stack, which libstdc++ would overflow at some hundred characters.
    threading.stack_size(256 * 1024)
    import pyllama

    model = pyllama.Model(sys.argv[1], vocab_only=True)
    sampler = pyllama.GrammarSampler(
        model.vocab,
        'root ::= "<tool>" [0-9]+',
        trigger_patterns=["^" + "(?:" * 10 + "[a-z]" + ")" * 10 + "*(<tool>)"],
    )

    def work():
        for token in model.vocab.tokenize("hello" * 300 + "<tool>", add_special=False):
            sampler.accept(token)
        print(len(sampler.allowed_tokens()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def test_patterns_are_searched_in_long_texts(tiny_model_path):
    assert run_python(DEEP, tiny_model_path) == "10\n"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"trigger_patterns": "abc"}, TypeError),
        ({"trigger_patterns": 3}, TypeError),
        ({"trigger_patterns": [3]}, TypeError),
        ({"trigger_patterns": [""]}, GrammarError),
        ({"trigger_patterns": ["a\0b"]}, GrammarError),
        ({"trigger_patterns": ["("]}, GrammarError),
        ({"trigger_patterns": ["[a"]}, GrammarError),
        ({"trigger_patterns": ["a{1000}{1000}"]}, GrammarError),
        ({"trigger_patterns": ["x" * 1025]}, GrammarError),
        ({"trigger_patterns": ["(" * 60 + ")" * 60]}, GrammarError),
        ({"trigger_tokens": 3}, TypeError),
        ({"trigger_tokens": ["a"]}, TypeError),
        ({"trigger_tokens": [-1]}, ValueError),
        ({"trigger_tokens": [10**6]}, ValueError),
    ],
)
def test_triggers_are_checked(tiny, options, error, capfd):
    with pytest.raises(error, match="trigger"):
        GrammarSampler(tiny.vocab, TOOL, **options)
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_with_an_endless_token(write_tiny_model):
    path = write_tiny_model(extra_tokens=("a" * 2**20,))
    with (
        pyllama.Model(path, vocab_only=True) as model,
        pytest.raises(GrammarError, match="token of 1048576 bytes"),
    ):
        GrammarSampler(model.vocab, "root ::= [a]*")


def test_a_long_token(write_tiny_model):
    path = write_tiny_model(extra_tokens=("a" * 1024,))
    with pyllama.Model(path, vocab_only=True) as model:
        token = model.vocab.n_tokens - 1
        assert GrammarSampler(model.vocab, "root ::= [a]*").allows([token]).all()
        assert GrammarSampler(model.vocab, 'root ::= "a"{1024}').allows([token]).all()
        assert not GrammarSampler(model.vocab, 'root ::= "a"{1023}').allows([token]).any()
