"""Grammars: what is read, what is refused, and what they let follow."""

from __future__ import annotations

import re

import pytest
from grammars import grammars, matches, no_deadline
from hypothesis import given
from hypothesis import strategies as st

import pyllama
from pyllama import Grammar, GrammarError, GrammarSampler
from pyllama._native._binding import ffi, lib
from pyllama.grammar import _tokens_of

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
        ("root ::= ", "'root' describes the empty text alone"),
        ('root ::= ""', "'root' describes the empty text alone"),
        ("root ::= []", "'root' describes the empty text alone"),
        ('root ::= a a | ""\na ::= ', "'root' describes the empty text alone"),
        ("root ::= [z-a]", "'root' has the range U.007A-U.0061, which ends before it begins"),
        ('root ::= "x" b\nb ::= [0-9é-a]', "'b' has the range U\\+00E9-U\\+0061"),
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
        ours = ("ends at fewer", "may be empty", "not def", "empty text alone", "ends before it")
        if not any(one in str(error) for one in ours):
            with tiny.vocab._open() as vocab, _tokens_of(tiny.vocab, vocab) as tokens:
                made = lib.guarded_sampler_init_grammar(
                    vocab, tokens, gbnf.encode(), b"root", [], 0, [], 0, ffi.NULL, 0, 0
                )
            assert made == ffi.NULL
