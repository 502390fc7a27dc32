"""Chains: which token they choose from a context, what they own, and what they refuse."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from decoding import PROMPT

import pyllama
from pyllama import Batch, Context, Sampler, SamplerChain


def draw(context, samplers, count):
    """Sample so many tokens from one and the same output."""
    with SamplerChain(samplers) as chain:
        return [chain.sample(context) for _ in range(count)]


def generate(context, chain, count):
    """Decode so many tokens, each sampled from the one before."""
    context.memory.clear()
    context.decode(Batch.from_tokens(PROMPT))
    tokens = []
    for pos in range(len(PROMPT), len(PROMPT) + count):
        tokens.append(chain.sample(context))
        context.decode_token(tokens[-1], pos)
    return tokens


def most_likely(context, count):
    """The most likely tokens, best first."""
    return np.argsort(-context.logits())[:count].tolist()


def test_greedy_takes_the_most_likely(ready):
    assert draw(ready, [Sampler.greedy()], 3) == most_likely(ready, 1) * 3


def test_greedy_by_index(context):
    context.decode(Batch.from_tokens(PROMPT, outputs="all"))
    with SamplerChain([Sampler.greedy()]) as chain:
        for index in range(len(PROMPT)):
            assert chain.sample(context, index) == context.logits(index).argmax()
        assert chain.sample(context, -2) == context.logits(-2).argmax()


def whole_list(vocab, biases):
    """Greedy in the ordinary way: a step that does nothing hides what is known of the others."""
    return [Sampler.logit_bias(vocab, biases), Sampler.top_k(0), Sampler.greedy()]


@pytest.mark.parametrize(
    "bias_of",
    [
        lambda _: {},
        lambda best: {best[0]: -float("inf")},
        lambda best: dict.fromkeys(best[:3], -100.0),
        lambda best: {best[0]: -1e-3},
        lambda best: {best[4]: -1.0},
        lambda best: {best[0]: 0.0, best[1]: -0.0},
        lambda best: {best[5]: 100.0},
        lambda best: {best[0]: -100.0, best[5]: 100.0},
    ],
)
def test_greedy_looks_past_what_was_lowered(ready, tiny, bias_of):
    biases = bias_of(most_likely(ready, 10))
    expected = draw(ready, whole_list(tiny.vocab, biases), 2)
    assert draw(ready, [Sampler.logit_bias(tiny.vocab, biases), Sampler.greedy()], 2) == expected


def test_greedy_takes_the_first_of_equals(tiny, write_tiny_model):
    equal = np.zeros((tiny.vocab.n_tokens, 64), np.float32)
    equal[[70, 200]], equal[[80, 210]] = 1e12, -1e12  # one pair is the highest, whatever the sign
    path = write_tiny_model(deltas={"output.weight": equal})
    with pyllama.Model(path) as model, Context(model, n_ctx=64) as context:
        context.decode(Batch.from_tokens(PROMPT))
        assert sorted(most_likely(context, 2)) in ([70, 200], [80, 210])
        first = draw(context, [Sampler.greedy()], 1)
        assert first == draw(context, whole_list(model.vocab, {}), 1)
        assert first in ([70], [80])


def test_a_greedy_chain_that_changes(ready, tiny):
    """What is known of its members goes with them: into copies, and away."""
    best, second = most_likely(ready, 2)
    chain = SamplerChain([Sampler.logit_bias(tiny.vocab, {best: -100.0}), Sampler.greedy()])
    copy = chain.clone()
    chain.remove(0)
    assert (chain.sample(ready), copy.sample(ready)) == (best, second)
    chain.remove()
    chain.add(Sampler.logit_bias(tiny.vocab, {best: -100.0, second: 100.0}))
    chain.add(Sampler.greedy())
    assert chain.sample(ready) == second
    chain.remove(0)
    assert chain.sample(ready) == best
    for each in (chain, copy):
        each.close()


@pytest.mark.parametrize(
    "narrowing",
    [
        lambda: Sampler.top_k(1),
        lambda: Sampler.temp(0),
        lambda: Sampler.temp(-1),
        lambda: Sampler.top_p(0.0),
        lambda: Sampler.min_p(1.0),
    ],
)
def test_one_candidate_left_is_greedy(ready, narrowing):
    assert set(draw(ready, [narrowing(), Sampler.dist(3)], 5)) == set(most_likely(ready, 1))


def test_generating_with_top_k_one_equals_greedy(context):
    with (
        SamplerChain([Sampler.greedy()]) as greedy,
        SamplerChain([Sampler.top_k(1), Sampler.temp(2.0), Sampler.dist(99)]) as narrow,
    ):
        assert generate(context, greedy, 30) == generate(context, narrow, 30)


def test_the_same_seed_gives_the_same_tokens(ready):
    def drawn(seed):
        return draw(ready, [Sampler.temp(1.5), Sampler.dist(seed)], 40)

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert len(set(drawn(7))) > 5


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_the_whole_range_of_seeds(ready, seed):
    samplers = [lambda: Sampler.temp(1.5), lambda: Sampler.dist(seed)]
    first, again = (draw(ready, [make() for make in samplers], 20) for _ in range(2))
    assert first == again


def test_reset_starts_the_random_numbers_anew(ready):
    with SamplerChain([Sampler.temp(1.5), Sampler.dist(5)]) as chain:
        first = [chain.sample(ready) for _ in range(20)]
        chain.reset()
        assert [chain.sample(ready) for _ in range(20)] == first


def test_draws_follow_the_probabilities(ready):
    logits = ready.logits().astype(np.float64)
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    tokens = draw(ready, [Sampler.dist(1)], 4000)
    found = np.bincount(tokens, minlength=len(expected)) / len(tokens)
    # 0.03 is more than four standard deviations of the largest possible one.
    assert np.abs(found - expected).max() < 0.03


def test_top_k_keeps_the_most_likely(ready):
    tokens = draw(ready, [Sampler.top_k(4), Sampler.temp(100.0), Sampler.dist(1)], 200)
    assert set(tokens) == set(most_likely(ready, 4))


def test_top_k_of_zero_keeps_all(ready):
    tokens = draw(ready, [Sampler.top_k(0), Sampler.temp(100.0), Sampler.dist(1)], 200)
    assert len(set(tokens)) > 50


def test_top_p_keeps_the_smallest_set_that_reaches_p(ready):
    logits = np.sort(ready.logits().astype(np.float64))[::-1]
    mass = np.cumsum(np.exp(logits - logits[0]))
    mass /= mass[-1]
    size = int(np.searchsorted(mass, 0.5)) + 1
    tokens = draw(ready, [Sampler.top_p(0.5), Sampler.temp(50.0), Sampler.dist(1)], 3000)
    assert set(tokens) == set(most_likely(ready, size))


def test_min_keep_holds_candidates_back(ready):
    for narrow in (Sampler.top_p(0.0, min_keep=3), Sampler.min_p(1.0, min_keep=3)):
        tokens = draw(ready, [narrow, Sampler.temp(50.0), Sampler.dist(1)], 200)
        assert set(tokens) == set(most_likely(ready, 3))


def test_min_p_keeps_tokens_by_their_share_of_the_best(ready):
    logits = ready.logits()
    kept = set(np.flatnonzero(logits >= logits.max() + np.log(0.5)).tolist())
    tokens = draw(ready, [Sampler.min_p(0.5), Sampler.temp(50.0), Sampler.dist(1)], 500)
    assert set(tokens) == kept


def test_a_low_temperature_sharpens(ready):
    def distinct(temperature):
        return len(set(draw(ready, [Sampler.temp(temperature), Sampler.dist(1)], 200)))

    assert distinct(0.05) < distinct(1.0) < distinct(20.0)


@pytest.mark.parametrize(
    "penalty", [{"repeat": 1e6}, {"freq": 1e6}, {"present": 1e6}, {"present": 1e6, "last_n": 300}]
)
def test_penalized_tokens_do_not_come_again(tiny, ready, penalty):
    ready_logits = ready.logits()
    samplers = [Sampler.penalties(tiny.vocab, **penalty), Sampler.greedy()]
    tokens = draw(ready, samplers, 20)
    # Dividing by a penalty leaves a positive logit above the negative ones.
    positive = int((ready_logits > 0).sum())
    assert positive > 20
    assert tokens == most_likely(ready, 20) or "repeat" in penalty
    assert len(set(tokens)) == 20 or "repeat" in penalty
    assert tokens != draw(ready, [Sampler.greedy()], 20)


def test_penalties_are_off_by_default_and_with_last_n_zero(tiny, ready):
    greedy = draw(ready, [Sampler.greedy()], 5)
    assert draw(ready, [Sampler.penalties(tiny.vocab), Sampler.greedy()], 5) == greedy
    off = Sampler.penalties(tiny.vocab, last_n=0, present=1e6)
    assert draw(ready, [off, Sampler.greedy()], 5) == greedy


def test_penalties_forget_what_is_older_than_last_n(tiny, ready):
    penalties = Sampler.penalties(tiny.vocab, last_n=2, present=1e6)
    best = most_likely(ready, 3)
    assert draw(ready, [penalties, Sampler.greedy()], 7) == [*best, *best, best[0]]


def test_accept_counts_like_a_sampled_token(tiny, ready):
    first, second = most_likely(ready, 2)
    with SamplerChain([Sampler.penalties(tiny.vocab, present=1e6), Sampler.greedy()]) as chain:
        chain.accept(first)
        assert chain.sample(ready) == second
        chain.reset()
        assert chain.sample(ready) == first


# What is refused


def test_nothing_follows_one_that_selects():
    for wrong in (
        [Sampler.greedy(), Sampler.top_k(3)],
        [Sampler.greedy(), Sampler.greedy()],
        [Sampler.dist(1), Sampler.temp(1.0), Sampler.greedy()],
    ):
        with pytest.raises(ValueError, match="end with one that selects"):
            SamplerChain(wrong)


@pytest.mark.parametrize("step", [None, "greedy", 3, Sampler, Sampler.greedy])
def test_a_chain_holds_samplers(step):
    with pytest.raises(TypeError, match="Sampler objects"):
        SamplerChain([step])


@pytest.mark.parametrize("samplers", [None, 3])
def test_a_chain_is_made_from_several(samplers):
    with pytest.raises(TypeError):
        SamplerChain(samplers)


def test_a_sampler_belongs_to_one_chain(ready):
    sampler = Sampler.greedy()
    with SamplerChain([sampler]) as chain:
        with pytest.raises(ValueError, match="belongs to a chain already"):
            SamplerChain([sampler])
        assert "in a chain" in repr(sampler)
        assert chain.sample(ready) == most_likely(ready, 1)[0]


def test_a_sampler_twice_in_one_chain(ready):
    narrow = Sampler.top_k(3)
    with pytest.raises(ValueError, match="belongs to a chain already"):
        SamplerChain([narrow, narrow, Sampler.greedy()])
    # Whatever was built before the error is freed.
    gc.collect()


def test_a_refused_chain_leaves_its_samplers_usable(ready):
    sampler = Sampler.greedy()
    with pytest.raises(ValueError, match="selects"):
        SamplerChain([sampler, Sampler.top_k(2)])
    with SamplerChain([sampler]) as chain:
        assert chain.sample(ready) == most_likely(ready, 1)[0]


def test_names_in_order(tiny):
    with SamplerChain([Sampler.top_k(3), Sampler.temp(0.5), Sampler.dist(1)]) as chain:
        assert chain.names == ("top-k", "temp", "dist")
        assert "top-k → temp → dist" in repr(chain)


def test_sampling_without_an_output(context):
    with SamplerChain([Sampler.greedy()]) as chain:
        with pytest.raises(IndexError, match="output"):
            chain.sample(context)
        context.decode(Batch.from_tokens(PROMPT))
        for index in (0, 3, 5, -2, 10**6, -(10**6)):
            with pytest.raises(IndexError, match="output"):
                chain.sample(context, index)
        assert chain.sample(context, 4) == chain.sample(context, -1)


@pytest.mark.parametrize("other", [None, 3, "context", object(), Context])
def test_sampling_from_something_that_is_no_context(other):
    with SamplerChain([Sampler.greedy()]) as chain, pytest.raises(TypeError, match="context"):
        chain.sample(other)


@pytest.mark.parametrize(("index", "error"), [(2**31, ValueError), (0.0, TypeError)])
def test_the_index_is_checked(ready, index, error):
    with SamplerChain([Sampler.greedy()]) as chain, pytest.raises(error, match="index"):
        chain.sample(ready, index)


@pytest.mark.parametrize(
    ("token", "error"), [(-1, ValueError), (2**31, ValueError), ("a", TypeError)]
)
def test_an_accepted_token_is_checked(token, error):
    with SamplerChain([Sampler.greedy()]) as chain, pytest.raises(error, match="token"):
        chain.accept(token)


@pytest.mark.parametrize("token", [10**6, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_not_accepted(tiny, ready, token):
    with SamplerChain([Sampler.penalties(tiny.vocab, present=1.0), Sampler.greedy()]) as chain:
        with pytest.raises(ValueError, match="token must be"):
            chain.accept(token)
        assert 0 <= chain.sample(ready) < tiny.vocab.n_tokens


def test_a_large_window_of_penalties(tiny, ready):
    sampler = Sampler.penalties(tiny.vocab, last_n=10**6, present=1.0)
    assert draw(ready, [sampler, Sampler.greedy()], 1) == most_likely(ready, 1)


def test_min_keep_larger_than_the_vocabulary(ready):
    for narrow in (Sampler.top_p(0.1, min_keep=2**31 - 1), Sampler.min_p(0.9, min_keep=10**6)):
        assert len(draw(ready, [narrow, Sampler.dist(1)], 3)) == 3
    assert len(draw(ready, [Sampler.top_k(2**31 - 1), Sampler.dist(1)], 3)) == 3


# Closing


def test_use_after_close(ready):
    chain = SamplerChain([Sampler.greedy()])
    chain.close()
    chain.close()
    assert chain.closed
    for use in (lambda: chain.sample(ready), lambda: chain.accept(1), chain.reset):
        with pytest.raises(pyllama.ClosedError, match="closed"):
            use()


def test_a_chain_outlives_context_and_model(tiny_model_path):
    model = pyllama.Model(tiny_model_path)
    chain = SamplerChain([Sampler.penalties(model.vocab, repeat=1.1), Sampler.greedy()])
    with Context(model, n_ctx=256) as context:
        context.decode(Batch.from_tokens(PROMPT))
        chain.sample(context)
    model.close()
    chain.accept(3)
    chain.reset()
    chain.close()
