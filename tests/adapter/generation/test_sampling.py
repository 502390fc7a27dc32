from __future__ import annotations

import pytest

import pyllama
from adapter.generation.sampling import Constraint, Sampling, grammar_sampler, sampler_chain


def names(tiny, **settings):
    with sampler_chain(tiny.vocab, Sampling(**settings), seed=1) as chain:
        return list(chain.names)


def test_the_order_is_llama_cpps_own(tiny):
    everything = {
        "logit_bias": {1: 2.0},
        "repeat_penalty": 1.1,
        "dry_multiplier": 0.8,
        "top_n_sigma": 2.0,
        "typical_p": 0.9,
        "xtc_probability": 0.5,
    }
    assert names(tiny, **everything) == [
        "logit-bias", "penalties", "dry", "top-n-sigma", "top-k", "typical", "top-p", "min-p",
        "xtc", "temp-ext", "dist",
    ]  # fmt: skip


def test_what_is_off_is_left_out(tiny):
    assert names(tiny) == ["top-k", "top-p", "min-p", "temp-ext", "dist"]


@pytest.mark.parametrize(
    "setting", [{"repeat_penalty": 1.1}, {"frequency_penalty": 0.5}, {"presence_penalty": -0.5}]
)
def test_each_penalty_needs_the_sampler(tiny, setting):
    assert "penalties" in names(tiny, **setting)


def test_at_temperature_zero_the_likeliest_is_taken(tiny):
    assert names(tiny, temperature=0, repeat_penalty=1.1) == ["penalties", "greedy"]


@pytest.mark.parametrize(("version", "name"), [(1, "mirostat"), (2, "mirostat-v2")])
def test_mirostat_takes_the_place_of_the_others(tiny, version, name):
    assert names(tiny, mirostat=version, top_k=5) == ["temp-ext", name]


def test_adaptive_p_chooses_in_place_of_chance(tiny):
    chain = names(tiny, adaptive_target=0.0, min_p=0.01)
    assert chain == ["top-k", "top-p", "min-p", "temp-ext", "adaptive-p"]


@pytest.mark.parametrize(
    ("settings", "n_last"),
    [({}, 64), ({"repeat_last_n": 0}, 0), ({"dry_multiplier": 1, "dry_penalty_last_n": 99}, 99)],
)
def test_how_much_of_a_prompt_the_samplers_want_to_know(settings, n_last):
    assert Sampling(**settings).n_last == n_last


def test_a_grammar_continues_where_the_prompt_left_it(tiny):
    begun = tuple(tiny.vocab.tokenize("ab", add_special=False))
    with grammar_sampler(tiny.vocab, Constraint('root ::= "abc"', prefix=begun)) as sampler:
        allowed = {tiny.vocab.token_to_piece(token) for token in sampler.allowed_tokens()}
    assert allowed == {b"c"}


def test_a_lazy_grammar_waits_for_its_trigger(tiny):
    [trigger] = tiny.vocab.tokenize("x", add_special=False)
    constraint = Constraint('root ::= "x" "yes"', trigger_tokens=(trigger,))
    with grammar_sampler(tiny.vocab, constraint) as sampler:
        assert sampler.allows([trigger, trigger + 1]).all()
        sampler.accept(trigger)
        assert len(sampler.allowed_tokens()) < tiny.vocab.n_tokens / 2


def test_a_grammar_that_is_none_is_refused(tiny):
    with pytest.raises(pyllama.GrammarError):
        sampler_chain(tiny.vocab, Sampling(), 1, Constraint("root ="))


@pytest.mark.parametrize("kind", ["control", "unknown"])
def test_a_grammar_takes_no_token_that_leaves_no_text(tiny, context, kind):
    """Its name would fit a text, and be missing from the answer."""
    hidden = next(
        token
        for token in range(tiny.vocab.n_tokens)
        if kind in tiny.vocab.get_attr(token) and not tiny.vocab.is_eog(token)
    )
    name = tiny.vocab.token_to_piece(hidden).decode()
    wanted = Sampling(temperature=0, logit_bias={hidden: 100.0})
    context.decode(pyllama.Batch.from_tokens([5, 6, 7]))
    for gbnf in ("root ::= [^\\x00]*", f'root ::= "{name}" "a"'):
        for shown in (frozenset(), frozenset({hidden})):
            with sampler_chain(tiny.vocab, wanted, 1, Constraint(gbnf, shown=shown)) as chain:
                assert (chain.sample(context) == hidden) == bool(shown)
    lazy = Constraint("root ::= [^\\x00]*", trigger_patterns=("now",))
    with sampler_chain(tiny.vocab, wanted, 1, lazy) as chain:
        assert chain.sample(context) == hidden
        for token in tiny.vocab.tokenize("now", add_special=False):
            chain.accept(token)
        assert chain.sample(context) != hidden
