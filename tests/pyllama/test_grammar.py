"""Grammars: what is read, what is refused, and what they let follow."""

from __future__ import annotations

import re

import numpy as np
import pytest
import synthetic
from decoding import run_python
from grammars import BYTES, allowed_one_by_one, matches
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllama
from pyllama import Grammar, GrammarError, GrammarSampler
from pyllama._native._binding import ffi, lib
from pyllama.grammar import _tokens_of

no_deadline = settings(deadline=None, max_examples=200)


# What is read


@pytest.mark.parametrize(
    ("gbnf", "regex"),
    [
        ('root ::= "abc"', "abc"),
        ('root ::= "a" | "b" |', "a|b|"),
        ('root ::= "a"* "b"+ "c"?', "a*b+c?"),
        ('root ::= "ab"{2}', "(ab){2}"),
        ('root ::= ("a" | "b"){1,3}', "[ab]{1,3}"),
        ('root ::= "a"{2,}', "a{2,}"),
        ('root ::= "b" "a"{0}', "b"),
        ("root ::= [a-c] [^a-c] [xyz-]", "[a-c][^a-c][xyz-]"),
        ('root ::= [\\x41-\\u0043] "\\t\\n\\\\\\"" [\\]]', '[A-C]\t\n\\\\"[\\]]'),
        ("root ::= . .", ".."),
        ('root ::= x y # comment\nx ::= "a"\n\n# more\ny ::= (\n "b"\n | "c" ) "d"', "a[bc]d"),
        ('root ::= "a" |\n  "b"', "a|b"),
        ('root ::= "é" [à-ü]', "é[à-ü]"),
        ('a-1 ::= "x"\r\nroot ::= a-1 a-1', "xx"),
        ('root ::= "(" root? ")"', r"\(\)|\(\(\)\)|\(\(\(\)\)\)"),
        ("root ::= ([a]*)*", "a*"),
        ('root ::= [] "a"', "a"),
        ('# (\nroot ::= "(" {2}# ((\n', r"\(\("),
        ('root ::= "a"\nroot ::= "b"', "b"),
    ],
)
def test_gbnf_means_what_a_regular_expression_does(tiny, gbnf, regex):
    texts = ["", *"abcdxyzABC-é()", "ab", "abc", "abab", "ba", "bb", "aab", "aabbc", "bc", "abd"]
    texts += [
        "acd",
        "axy",
        "ad-",
        "bdz",
        "aé-",
        "éé",
        "éà",
        "ééé",
        "xx",
        "xxx",
        "()",
        "(())",
        "(()",
    ]
    texts += ["((()))", 'A\t\n\\"]', 'D\t\n\\"]', "aa", "aaa", "aaaa", "bbb"]
    compiled = re.compile(regex)
    for text in texts:
        assert matches(tiny.vocab, gbnf, text) == bool(compiled.fullmatch(text)), text


def test_tokens_by_number_and_by_text(tiny):
    with GrammarSampler(tiny.vocab, "root ::= <|im_start|> <[7]> !<[8]>") as sampler:
        assert sampler.allowed_tokens().tolist() == [3]
        sampler.accept(3)
        assert sampler.allowed_tokens().tolist() == [7]
        sampler.accept(7)
        allowed = sampler.allowed_tokens().tolist()
        assert 8 not in allowed
        assert {7, 9} < set(allowed)


def test_tokens_by_text_need_no_vocabulary_yet(tiny):
    grammar = Grammar('root ::= "é" !<[5]> (<|im_start|>* !<((> "a"){2} # <')
    with pytest.raises(GrammarError, match=r"invalid token '<\(\(>'"):
        GrammarSampler(tiny.vocab, grammar)
    with pytest.raises(GrammarError, match="line 1, column 25: expecting newline"):
        Grammar("root ::= <a> !<b> (<c>) )")


def test_another_root(tiny):
    grammar = Grammar('a ::= "x"\nb ::= a a', root="b")
    assert matches(tiny.vocab, grammar, "xx")
    assert not matches(tiny.vocab, grammar, "x")


def test_a_grammar_is_a_value():
    one, same = Grammar('root ::= "a"'), Grammar('root ::= "a"')
    assert one == same
    assert hash(one) == hash(same)
    assert one != Grammar('root ::= "b"')
    assert "1 rules, from 'root'" in repr(one)
    with pytest.raises(AttributeError):
        one.gbnf = "x"


# What is refused


@pytest.mark.parametrize(
    ("gbnf", "message"),
    [
        ("", "holds no rule"),
        (" \n# nothing\n", "holds no rule"),
        ("root", "line 1, column 5: expecting ::="),
        (' # a\nroot = "a"', "line 2, column 6: expecting ::="),
        ('root ::= "a', "in the rule at line 1, column 1: unexpected end of input"),
        ('a ::= "é" # [\n\nroot ::= "é" [ü', "in the rule at line 3, column 1: unexpected end"),
        ("root ::= [a-", "unexpected end of input"),
        ("root ::= [a\\", "unknown escape"),
        ('root ::= ("a"', "line 1, column 14: expecting '\\)'"),
        ('root ::= "é" ("a" ]', "line 1, column 19: expecting '\\)'"),
        ('root ::= "a"\n\nb ::= "b" )', "line 3, column 11: expecting newline or end"),
        ('root ::= "a"\n  | "b"', "line 2, column 3: expecting name"),
        ('root ::= "\\q at "', "line 1, column 11: unknown escape"),
        ('root ::= "\\', "line 1, column 11: unknown escape"),
        ('root ::= "\\u12"', "line 1, column 13: expecting 4 hex chars"),
        ("root ::= *", "line 1, column 11: expecting preceding item"),
        ('root ::= "a" | +', "expecting preceding item"),
        ('root ::= "a"{', "line 1, column 14: expecting an int"),
        ('root ::= "a"{1', "expecting ','"),
        ('root ::= "a"{,3}', "expecting an int"),
        ('root ::= "a"{3,1}', "line 1, column 13: the repetition ends at fewer"),
        ('root ::= ("a"{3 # {\n , # 9\n 1})', "line 1, column 14: the repetition ends at fewer"),
        ('root ::= "a"{2001}', "in the rule at line 1, column 1: .* exceeds sane defaults"),
        ('root ::= "a"{99999999999999999999}', "a number is too large"),
        ('root ::= "a"{2,99999999999999999999}', "a number is too large"),
        ('root ::= ("a"{1000}){3,1000} b', "'b' is used, but not defined"),
        ('root ::= ("a"? "b"?){1000}', "exceeds sane defaults"),
        ("root ::= a", "'a' is used, but not defined"),
        ('a ::= "a"', "no rule 'root'"),
        ('rot ::= root{0} "a"', "'root' is used, but not defined"),
        ("root ::= <", "line 1, column 10: the token is not closed"),
        ("root ::= <[>", "expecting integer"),
        ("root ::= <[5>", "line 1, column 13: expecting ']'"),
        ("root ::= <[4294967296]>", "line 1, column 12: parsed token id is too big"),
        ("root ::= !a", "line 1, column 11: expecting '<'"),
        ("root ::= root", "'root' is left-recursive"),
        ('root ::= ("" | "a")+ "b"', "is left-recursive"),
        ('root ::= root "a" | "b"', "'root' is left-recursive"),
        ('root ::= a\na ::= b "x"\nb ::= a | "y"', "is left-recursive"),
        ('root ::= e root "x"\ne ::= "" | "y"', "is left-recursive"),
        ('root ::= e root "x"\ne ::= f\nf ::= "y"?', "'root' is left-recursive: .* may be empty"),
        ("root ::= " + "(" * 201 + '"a"' + ")" * 201, "nest deeper than 200"),
        ("root ::= " + "(" * 10**6, "nest deeper than 200"),
        ("root ::= " + '"a"{0,2000} ' * 200, "takes more than 64 MiB"),
        ('root ::= "' + "a" * 10_000 + '" {2000}', "line 1, column 10013: .* more than 64 MiB"),
        ("root ::= ([" + "a" * 10_000 + "] # [\n{2000})", "takes more than 64 MiB"),
        ("a" * 10**6 + " ::= " + "()" * 100, "takes more than 64 MiB"),
        ('root ::= x{0,1000}\nx ::= ("a"?){0,1000}', "more than 50000 ways"),
        (
            "\n".join(f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(60)) + '\na60 ::= "x"',
            "too many combinations",
        ),
        (
            "\n".join(f"a{i} ::= a{i + 1}" for i in range(9000)) + '\na9000 ::= "x"',
            "a chain of more than 4000 rules",
        ),
        ('root ::= "a\0b"', "null character"),
        ('root ::= "\ud800"', "no Unicode"),
        ('root ::= "' + "a" * 2**22 + '"', "longer than"),
    ],
)
def test_a_grammar_that_cannot_be_used(gbnf, message, capfd):
    with pytest.raises(GrammarError, match=message):
        Grammar(gbnf, root="a0" if gbnf.startswith("a0") else "root")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("gbnf", "root"), [(None, "root"), (b"a", "root"), ('root ::= "a"', 3)])
def test_a_grammar_of_another_type(gbnf, root):
    with pytest.raises(TypeError, match="must be a str"):
        Grammar(gbnf, root)


def test_grammar_errors_are_value_errors():
    with pytest.raises(ValueError, match="no rule"):
        Grammar("")


def test_a_token_that_the_vocabulary_lacks(tiny):
    grammar = Grammar("root ::= <|im_end|> <nope>")
    with pytest.raises(GrammarError, match="column 1: invalid token '<nope>'"):
        GrammarSampler(tiny.vocab, grammar)


items = st.sampled_from([
    '"x"', '"ab"', '"é价"', "[a-z]", "[à-ü🦙]", '[^"\\\\]', "[^à-ü ]", ".",
    '""', "[]", "<[3]>", "!<[4]>", "a", "b", "root",
])  # fmt: skip
repeats = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "{0}"])
sequences = st.lists(st.tuples(items, repeats).map("".join), max_size=3).map(" ".join)
alternatives = st.lists(sequences, min_size=1, max_size=3).map(" | ".join)
groups = st.tuples(alternatives, repeats, sequences).map(lambda p: f"({p[0]}){p[1]} {p[2]}")
rules = st.one_of(alternatives, groups)
grammars = st.tuples(rules, rules, rules).map(
    lambda bodies: "".join(
        f"{n} ::= {b}\n" for n, b in zip(("root", "a", "b"), bodies, strict=True)
    )
)
noise = st.text('"[](){}|*+?\\<>!:=- \n#^.ax09é', max_size=2)


@no_deadline
@given(grammars)
def test_what_is_read_llama_cpp_matches(tiny, gbnf):
    try:
        grammar = Grammar(gbnf)
    except GrammarError:
        # Left-recursive; or misspelt, as an empty rule that takes in the next one's name.
        return
    with GrammarSampler(tiny.vocab, grammar) as sampler:
        allowed = sampler.allowed_tokens()
        for token in allowed[:3]:
            with sampler.clone() as copy:
                try:
                    copy.accept(int(token))
                except pyllama.NativeError:
                    # It takes a token for one that is to follow, and then for its characters.
                    assert "<[" in gbnf


@no_deadline
@given(grammars, noise, st.integers(0, 200))
def test_what_is_misspelt_llama_cpp_refuses(tiny, gbnf, text, position):
    gbnf = gbnf[:position] + text + gbnf[position:]
    try:
        GrammarSampler(tiny.vocab, gbnf).close()
    except GrammarError as error:
        if not any(ours in str(error) for ours in ("ends at fewer", "may be empty", "not def")):
            tokens = _tokens_of(tiny.vocab)
            pointer = lib.guarded_sampler_init_grammar(
                tiny.vocab._pointer, tokens.pointer, gbnf.encode(), b"root", [], 0, [], 0, 0
            )
            assert pointer == ffi.NULL


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
        for choice in [*choices, 0]:
            allowed = sampler.allowed_tokens()
            np.testing.assert_array_equal(allowed, allowed_one_by_one(sampler))
            np.testing.assert_array_equal(allowed, sampler.allowed_tokens())
            if not len(allowed):
                break
            try:
                sampler.accept(int(allowed[choice % len(allowed)]))
            except pyllama.NativeError:
                assert "<[" in gbnf  # see above
                break


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
        for gbnf in ("root ::= .*", "root ::= [^b]*", 'root ::= ""', "root ::= [a-b价🦙]+"):
            with GrammarSampler(model.vocab, gbnf) as sampler:
                np.testing.assert_array_equal(sampler.allowed_tokens(), allowed_one_by_one(sampler))


# Lazy grammars


TOOL = 'root ::= "<tool>" [0-9]+ "."'


def feed(sampler, vocab, text):
    for token in vocab.tokenize(text, add_special=False):
        sampler.accept(token)


def allowed_bytes(sampler, vocab):
    return b"".join(sorted(map(vocab.token_to_piece, sampler.allowed_tokens())))


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
        ('root ::= ""', ""),
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
        for choice in [*choices, 0]:
            forced = sampler.forced_text().encode()
            allowed = sampler.allowed_tokens()
            for piece in map(tiny.vocab.token_to_piece, allowed if forced else ()):
                assert piece.startswith(forced) or forced.startswith(piece)
            if not len(allowed):
                break
            try:
                sampler.accept(int(allowed[choice % len(allowed)]))
            except pyllama.NativeError:
                assert "<[" in gbnf  # see above
                break


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
