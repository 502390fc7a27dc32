"""Texts that are ended because their line repeats itself."""

from __future__ import annotations

import pytest
from decoding import PROMPT
from grammars import BYTES

from pyllama import Batch, GrammarSampler, Sampler, SamplerChain

TWO = 'root ::= "a: " first "\\nb: " second "\\n"\nfirst ::= [^\\n]*\nsecond ::= [^\\n]*'
LINES = 'root ::= "a: " line ("\\n" line)* "\\nb: " [0-9] "\\n"\nline ::= [^\\nb] [^\\n]*'
LAST = 'root ::= "a: " [^\\n]* "\\n"?'
JSON = 'root ::= "[" text ("," text)* "]\\n"\ntext ::= "\\"" [^"\\\\\\n]* "\\""'
CODE = (
    'root ::= "```\\n" line ("\\n" line)* "\\n```\\nb: " [0-9]'
    "\nline ::= [^`\\n] [^\\n]*"  # lines that do not begin with a fence
)
FLOWING = 'root ::= first "." second "\\n"\nfirst ::= [^.]*\nsecond ::= [^.]*'


def chain_of(context, gbnf, likely, n_tokens=5000, *, end_repetitions=True):
    grammar = GrammarSampler(context.model.vocab, gbnf)
    grammar.complete_within(n_tokens, end_repetitions=end_repetitions)
    bias = Sampler.logit_bias(context.model.vocab, {BYTES[ord(likely)]: 100.0})
    return SamplerChain([bias, Sampler.greedy()], grammar=grammar)


def next_of(context, gbnf, text, likely="x", **options):
    """The character that comes after a text where the model wants to go on with another."""
    with chain_of(context, gbnf, likely, **options) as chain:
        for byte in text.encode():
            chain.accept(BYTES[byte])
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        token = chain.sample(context)
        if context.model.vocab.is_eog(token):
            return "end"
        return context.model.vocab.token_to_piece(token).decode()


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("x" * 63, False),
        ("x" * 64, True),
        ("y" + "x" * 63, False),
        ("abcx" * 15 + "abc", False),
        ("abcx" * 16, True),
        ("cx" + "abcx" * 16, True),  # what came before does not matter
        ("one more time, x" * 8, True),
        ("one more time, x" * 7, False),
        ("one more time, x" * 7 + "one more time. x", False),
        ("".join(f"word number {n}, " for n in range(90)) + "x", False),
        (("b" * 63 + "x") * 8, True),
        (("b" * 64 + "x") * 20, False),  # longer than what is looked for
    ],
)
def test_a_line_is_ended_after_eight_equal_spans(context, text, ended):
    assert next_of(context, TWO, "a: " + text) == ("\n" if ended else "x")


def test_only_where_it_is_asked_for(context):
    assert next_of(context, TWO, "a: " + "x" * 200, end_repetitions=False) == "x"


def test_the_last_text_ends_the_answer_there(context):
    assert next_of(context, LAST, "a: " + "x" * 64) in ("\n", "end")


@pytest.mark.parametrize(
    ("gbnf", "text"),
    [
        (LINES, "a: " + "x\n" * 100),
        (LINES, "a: " + "| 0 | 0 | 0 |\n" * 40),
        (JSON, '["' + "x" * 200),
        (JSON, '["x","x"' + ',"x"' * 60 + ',"'),
        (CODE, "```\n" + "x" * 200),
        (CODE, "```\n0x" + ", 0x" * 60),
        (FLOWING, "x" * 200),
    ],
    ids=["lines", "table", "string", "strings", "code", "numbers in code", "no end of its own"],
)
def test_what_may_be_meant_goes_on(context, gbnf, text):
    assert next_of(context, gbnf, text) == "x"


def test_a_text_of_several_lines_is_ended_whole(context):
    with chain_of(context, LINES, "x") as chain:
        for byte in ("a: some words\nand more" + "x" * 64).encode():
            chain.accept(BYTES[byte])
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        assert chain.sample(context) == BYTES[ord("\n")]
        assert chain.sample(context) == BYTES[ord("b")]  # where x would go on with the text


@pytest.mark.parametrize("n_tokens", [150, 5000])
def test_each_text_is_ended_for_itself(context, n_tokens):
    vocab = context.model.vocab
    with chain_of(context, TWO, "x", n_tokens) as chain:
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        text = b""
        while not text.endswith(b"\n") or text.count(b"\n") < 2:
            text += vocab.token_to_piece(chain.sample(context))
        assert text.decode() == "a: " + "x" * 64 + "\nb: " + "x" * 64 + "\n"
        assert [place & {"first", "second"} for place in chain.grammar.repeated()] == [
            {"first"},
            {"second"},
        ]
        assert chain.grammar.shortened() == []


def test_a_copy_knows_what_was_written(context):
    with chain_of(context, TWO, "x") as chain:
        for byte in ("a: " + "x" * 64).encode():
            chain.accept(BYTES[byte])
        with chain.clone() as copied:
            context.memory.clear()
            context.decode(Batch.from_tokens(PROMPT))
            assert copied.sample(context) == chain.sample(context) == BYTES[ord("\n")]


def test_a_reset_forgets_it(context):
    with chain_of(context, TWO, "x") as chain:
        for byte in ("a: " + "x" * 64).encode():
            chain.accept(BYTES[byte])
        chain.reset()
        for byte in b"a: x":
            chain.accept(BYTES[byte])
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        assert chain.sample(context) == BYTES[ord("x")]
