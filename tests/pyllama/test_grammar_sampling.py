"""Sampling under a grammar: what comes out follows it, chosen as llama.cpp's own tools choose."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from decoding import PROMPT
from grammars import allowed_one_by_one
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllama
from pyllama import Batch, Candidates, Context, Grammar, GrammarSampler, Sampler, SamplerChain

# What the texts of test_grammar's kind look like, and their grammar.
ITEMS = re.compile(rb"(item [0-9]{1,2}(: [a-f]+)?\n){1,3}")
ITEMS_GBNF = r'root ::= ("item " [0-9]{1,2} (": " [a-f]+)? "\n"){1,3}'


def random_chain(seed, grammar=None, **options):
    return SamplerChain(
        [Sampler.top_k(100), Sampler.top_p(0.98), Sampler.temp(1.3), Sampler.dist(seed)],
        grammar=grammar,
        **options,
    )


def generate(context, chain, limit=200):
    """Sample until the text ends, and return its tokens."""
    vocab = context.model.vocab
    context.memory.clear()
    context.decode(Batch.from_tokens(PROMPT))
    tokens = []
    while len(tokens) < limit:
        token = chain.sample(context)
        if vocab.is_eog(token):
            break
        tokens.append(token)
        context.decode_token(token, len(PROMPT) + len(tokens) - 1)
    return tokens


def sample_as_llama_cpp_does(context, chain, grammar):
    """common_sampler_sample, from its description: choose, check, and choose anew if refused."""
    token = chain.apply(Candidates(context.logits())).token
    resampled = not grammar.allows([token])[0]
    if resampled:
        logits = np.full(context.model.vocab.n_tokens, -np.inf)
        allowed = allowed_one_by_one(grammar)
        logits[allowed] = context.logits()[allowed]
        token = chain.apply(Candidates(logits)).token
    grammar.accept(token)
    chain.accept(token)
    return token, resampled


@pytest.mark.parametrize("seed", range(8))
def test_what_is_sampled_follows_the_grammar(tiny, context, seed):
    grammar = GrammarSampler(tiny.vocab, ITEMS_GBNF)
    with random_chain(seed, grammar) as chain:
        tokens = generate(context, chain)
        text = b"".join(map(tiny.vocab.token_to_piece, tokens))
        if len(tokens) < 200:
            assert ITEMS.fullmatch(text)
        assert chain.perf().n_resampled > 0
        chain.reset()
        assert generate(context, chain) == tokens


@pytest.mark.parametrize("seed", range(4))
def test_it_is_chosen_as_llama_cpp_does(tiny, context, seed):
    with (
        random_chain(seed, GrammarSampler(tiny.vocab, ITEMS_GBNF)) as chain,
        random_chain(seed) as plain,
        GrammarSampler(tiny.vocab, ITEMS_GBNF) as grammar,
    ):
        tokens = generate(context, chain, limit=40)
        context.memory.clear()
        context.decode(Batch.from_tokens(PROMPT))
        n_resampled = 0
        for position, token in enumerate(tokens, len(PROMPT)):
            expected, resampled = sample_as_llama_cpp_does(context, plain, grammar)
            assert token == expected
            n_resampled += resampled
            context.decode_token(token, position)
        # The end of the text may have been sampled anew as well.
        assert chain.perf().n_resampled - n_resampled in (0, 1)
        assert chain.perf().n_sample - len(tokens) in (0, 1)


GRAMMARS = [
    ITEMS_GBNF,
    r'root ::= "{" ("\"" [a-zé价]{1,4} "\":" [0-9]+ ","?){1,3} "}"',
    r"root ::= [^a-z\n]{3,20} [\n] ([b-y ]+ | [à-ü]*)",
    'root ::= "yes, " ("of course" | "of late" | [0-9]{2}) "." root?',
]
LETTERS = range(102, 128)


def narrowing(vocab, seed):
    """Ways from many candidates to one, by what they begin with."""
    make = Sampler
    ends = {
        "greedy": [make.greedy()],
        "dist": [make.temp(1.5), make.dist(seed)],
        "mirostat": [make.temp(0.9), make.mirostat(vocab, seed)],
        "mirostat_v2": [make.temp(0.9), make.mirostat_v2(seed)],
        "adaptive_p": [make.min_p(0.01), make.adaptive_p(seed, target=0.5)],
    }
    cuts = {
        "": [],
        "top_k": [make.top_k(5)],
        "top_n_sigma": [make.top_n_sigma(1.5), make.top_k(40)],
        "typical": [make.top_k(40), make.typical(0.7), make.top_p(0.95), make.min_p(0.05)],
        "xtc": [make.top_k(20), make.xtc(0.5, 0.02, seed)],
    }
    return cuts, ends


def reweighting(vocab):
    make = Sampler
    return {
        "": [],
        "bias": [make.logit_bias(vocab, dict.fromkeys(LETTERS[::3], 5.0) | {130: -np.inf})],
        "penalties": [make.penalties(vocab, last_n=32, repeat=1.4, freq=0.3, present=0.2)],
        "dry": [make.dry(vocab, multiplier=0.8, breakers=["\n"])],
    }


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from(GRAMMARS),
    st.sampled_from(["", "bias", "penalties", "dry"]),
    st.sampled_from(["", "top_k", "top_n_sigma", "typical", "xtc"]),
    st.sampled_from(["greedy", "dist", "mirostat", "mirostat_v2", "adaptive_p"]),
    st.integers(0, 2**31),
)
def test_every_chain_chooses_as_llama_cpp_does(tiny, gbnf, weights, cut, end, seed):
    def steps():
        cuts, ends = narrowing(tiny.vocab, seed)
        return [*reweighting(tiny.vocab)[weights], *cuts[cut], *ends[end]]

    with (
        Context(tiny, n_ctx=64, n_threads=1) as context,
        SamplerChain(steps(), grammar=GrammarSampler(tiny.vocab, gbnf)) as chain,
        SamplerChain(steps()) as plain,
        GrammarSampler(tiny.vocab, gbnf) as grammar,
    ):
        context.decode(Batch.from_tokens(PROMPT))
        for position in range(len(PROMPT), len(PROMPT) + 24):
            expected, _ = sample_as_llama_cpp_does(context, plain, grammar)
            assert chain.sample(context) == expected
            if tiny.vocab.is_eog(expected):
                break
            context.decode_token(expected, position)


def test_what_the_grammar_allows_anyway_is_not_sampled_anew(tiny, ready):
    # Only tokens of one printable character.
    others = {token: -np.inf for token in range(tiny.vocab.n_tokens) if not 38 <= token <= 131}
    steps = [lambda: Sampler.logit_bias(tiny.vocab, others), lambda: Sampler.dist(1)]
    grammar = GrammarSampler(tiny.vocab, "root ::= [!-~]*")
    with (
        SamplerChain([make() for make in steps], grammar=grammar) as chain,
        SamplerChain([make() for make in steps]) as plain,
    ):
        for _ in range(50):
            assert chain.sample(ready) == plain.sample(ready)
        assert chain.perf() == pyllama.SamplerPerf(0.0, 50, 0)


def test_greedy_is_the_same_with_the_grammar_first(tiny, context):
    after = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(tiny.vocab, ITEMS_GBNF))
    first = SamplerChain([GrammarSampler(tiny.vocab, ITEMS_GBNF), Sampler.greedy()])
    assert generate(context, after, 60) == generate(context, first, 60)
    assert after.perf().n_resampled > 0
    assert first.perf().n_resampled == 0


def test_a_grammar_as_first_sampler(tiny, context):
    first = GrammarSampler(tiny.vocab, ITEMS_GBNF)
    chain = SamplerChain([first, Sampler.temp(1.3), Sampler.dist(3)])
    tokens = generate(context, chain, 60)
    text = b"".join(map(tiny.vocab.token_to_piece, tokens))
    assert ITEMS.fullmatch(text) or len(tokens) == 60


def test_a_grammar_that_is_complete_ends_the_text(tiny, ready):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "a"')
    with SamplerChain([Sampler.greedy()], grammar=grammar) as chain:
        assert not grammar.complete
        assert tiny.vocab.token_to_piece(chain.sample(ready)) == b"a"
        assert grammar.complete
        assert chain.grammar is grammar
        for _ in range(3):
            assert tiny.vocab.is_eog(chain.sample(ready))


def test_a_grammar_that_no_token_follows(tiny, ready):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "a" <[100000]>')
    with SamplerChain([Sampler.greedy()], grammar=grammar) as chain:
        chain.sample(ready)
        for _ in range(3):
            with pytest.raises(pyllama.SamplingError, match="no token of the vocabulary"):
                chain.sample(ready)
        assert chain.perf().n_sample == 1


def test_samplers_that_rule_out_what_the_grammar_demands(tiny, ready):
    letter = tiny.vocab.tokenize("a", add_special=False)[0]
    never = Sampler.logit_bias(tiny.vocab, {letter: -np.inf})
    grammar = GrammarSampler(tiny.vocab, 'root ::= "a"')
    with SamplerChain([never, Sampler.greedy()], grammar=grammar) as chain:
        with pytest.raises(pyllama.SamplingError, match="left no candidate"):
            chain.sample(ready)
        chain.remove(0)
        assert chain.sample(ready) == letter


def test_python_cannot_get_past_a_grammar(tiny, ready):
    stubborn = Sampler.python(lambda candidates: Candidates([1.0], ids=[7]))  # noqa: ARG005
    for place in ("beside", "within"):
        grammar = GrammarSampler(tiny.vocab, 'root ::= "a"')
        steps = [stubborn.clone(), Sampler.greedy()]
        chain = (
            SamplerChain(steps, grammar=grammar)
            if place == "beside"
            else SamplerChain([grammar, *steps])
        )
        with chain:
            for _ in range(2):
                with pytest.raises(pyllama.GrammarError, match="does not let"):
                    chain.sample(ready)
            assert len(grammar.allowed_tokens()) == 1


def test_prompts_are_accepted_without_the_grammar(tiny, ready):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "a"')
    penalties = Sampler.penalties(tiny.vocab, present=1e6)
    best = int(ready.logits().argmax())
    with SamplerChain([penalties, Sampler.greedy()], grammar=grammar) as chain:
        before = grammar.allowed_tokens().tolist()
        with pytest.raises(pyllama.GrammarError, match="does not let"):
            chain.accept(best)
        assert chain.apply(Candidates(ready.logits())).token == best
        chain.accept(best, accept_grammar=False)
        assert chain.apply(Candidates(ready.logits())).token != best
        assert grammar.allowed_tokens().tolist() == before
        chain.accept(before[0])
        assert grammar.complete


def test_a_clone_has_a_grammar_of_its_own(tiny, ready):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "ab" "c"')
    with SamplerChain([Sampler.greedy()], grammar=grammar) as chain:
        chain.sample(ready)
        with chain.clone() as copy:
            assert copy.grammar is not grammar
            assert [tiny.vocab.token_to_piece(copy.sample(ready)) for _ in "bc"] == [b"b", b"c"]
            assert tiny.vocab.token_to_piece(chain.sample(ready)) == b"b"
            copy.copy_state(chain)
            assert tiny.vocab.token_to_piece(copy.sample(ready)) == b"c"


def test_a_lazy_grammar_beside_a_chain(tiny, ready):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "<" [0-9]', trigger_patterns=["<"])
    best = int(ready.logits().argmax())
    with SamplerChain([Sampler.greedy()], grammar=grammar) as chain:
        assert [chain.sample(ready) for _ in range(3)] == [best] * 3
        chain.accept(tiny.vocab.tokenize("<", add_special=False)[0])
        assert tiny.vocab.token_to_piece(chain.sample(ready)).isdigit()
        assert chain.perf().n_resampled == 1


@pytest.mark.parametrize("wrong", ["root ::= [a]", 3, Sampler, Grammar('root ::= "a"')])
def test_what_is_no_grammar(wrong):
    with pytest.raises(TypeError, match="grammar must be"):
        SamplerChain([Sampler.greedy()], grammar=wrong)


def test_a_grammar_belongs_to_one_chain(tiny):
    grammar = GrammarSampler(tiny.vocab, 'root ::= "a"')
    with pytest.raises(ValueError, match="belongs to a chain"):
        SamplerChain([grammar, Sampler.greedy()], grammar=grammar)
    chain = SamplerChain([Sampler.greedy()], grammar=grammar)
    with chain, pytest.raises(ValueError, match="belongs to a chain"):
        SamplerChain([Sampler.greedy()], grammar=grammar)
    assert grammar.closed


def test_a_grammar_of_another_vocabulary(tiny, tiny_model_path, ready):
    with pyllama.Model(tiny_model_path, vocab_only=True) as other:
        grammar = GrammarSampler(other.vocab, 'root ::= "a"')
        with pytest.raises(ValueError, match="another model's vocabulary"):
            SamplerChain([Sampler.penalties(tiny.vocab), Sampler.greedy()], grammar=grammar)
        chain = SamplerChain([Sampler.greedy()], grammar=grammar)
        with chain, pytest.raises(ValueError, match="context must be of the model"):
            chain.sample(ready)


# The real model


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
}


@pytest.mark.model
def test_the_real_model_writes_json(smollm2):
    vocab = smollm2.vocab
    grammar = Grammar.from_json_schema(SCHEMA)
    prompt = vocab.tokenize("A person in JSON:\n")
    resampled = 0
    with Context(smollm2, n_ctx=256, n_threads=1) as context:

        def write(chain):
            context.memory.clear()
            context.decode(Batch.from_tokens(prompt))
            tokens = []
            for pos in range(len(prompt), 200):
                token = chain.sample(context)
                if vocab.is_eog(token):
                    return vocab.detokenize(tokens)
                tokens.append(token)
                context.decode_token(token, pos)
            raise AssertionError(f"no end: {vocab.detokenize(tokens)}")

        for seed in range(3):
            with SamplerChain(
                [Sampler.top_k(40), Sampler.temp(0.8), Sampler.dist(seed)],
                grammar=GrammarSampler(vocab, grammar),
            ) as chain:
                person = json.loads(write(chain))
                assert set(person) == {"name", "age", "tags"}
                assert len(person["name"]) <= 20
                assert 0 <= person["age"] <= 150
                assert set(person["tags"]) <= set("abc")
                assert len(person["tags"]) <= 3
                perf = chain.perf()
                assert perf.n_resampled < perf.n_sample
                resampled += perf.n_resampled
        assert resampled > 0

        after = SamplerChain([Sampler.greedy()], grammar=GrammarSampler(vocab, grammar))
        first = SamplerChain([GrammarSampler(vocab, grammar), Sampler.greedy()])
        assert write(after) == write(first)
