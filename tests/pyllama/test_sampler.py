"""Samplers by themselves: which candidates they leave, and how they live."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import pyllama
from pyllama import Candidates, Sampler, SamplerChain

NAN, INF = float("nan"), float("inf")


# The cases of llama.cpp's own tests/test-sampling.cpp, and numpy's word on others


def candidates_of(probabilities):
    return Candidates(np.log(np.asarray(probabilities, dtype=np.float64)))


def probabilities(logits):
    odds = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits))
    return odds / odds.sum()


def spread(candidates):
    """What dist makes of them."""
    return Sampler.dist(0).apply(candidates).p


@pytest.mark.parametrize(
    ("sampler", "given", "expected"),
    [
        (lambda: Sampler.temp(1.0), [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (lambda: Sampler.temp(0.0), [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 1.0]),
        (lambda: Sampler.temp_ext(1.0, 0.0), [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (lambda: Sampler.temp_ext(0.0, 0.0), [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 1.0]),
        (lambda: Sampler.top_k(1), [0.1, 0.2, 0.3, 0.4], [1.0]),
        (lambda: Sampler.top_k(3), [0.1, 0.2, 0.3, 0.4], [0.44444, 0.33333, 0.22222]),
        (lambda: Sampler.top_k(4), [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
        (lambda: Sampler.top_k(0), [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (lambda: Sampler.top_p(0.0), [0.1, 0.2, 0.3, 0.4], [1.0]),
        (lambda: Sampler.top_p(0.7), [0.1, 0.2, 0.3, 0.4], [0.571429, 0.428571]),
        (lambda: Sampler.top_p(0.8), [0.1, 0.2, 0.3, 0.4], [0.44444, 0.33333, 0.22222]),
        (lambda: Sampler.min_p(0.0), [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (lambda: Sampler.min_p(0.26), [0.1, 0.2, 0.3, 0.4], [0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9]),
        (lambda: Sampler.min_p(0.51), [0.1, 0.2, 0.3, 0.4], [0.3 / 0.7, 0.4 / 0.7]),
        (lambda: Sampler.min_p(1.0), [0.1, 0.2, 0.3, 0.4], [1.0]),
        (lambda: Sampler.xtc(0.99, 0.09, 0), [0.4, 0.3, 0.2, 0.1], [1.0]),
        (lambda: Sampler.xtc(0.99, 0.19, 0), [0.4, 0.3, 0.2, 0.1], [0.2 / 0.3, 0.1 / 0.3]),
        (lambda: Sampler.xtc(0.99, 0.29, 0), [0.4, 0.3, 0.2, 0.1], [0.5, 0.2 / 0.6, 0.1 / 0.6]),
        (lambda: Sampler.xtc(0.99, 0.39, 0), [0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]),
        (lambda: Sampler.xtc(0.99, 0.09, 0, min_keep=2), [0.4, 0.6], [0.6, 0.4]),
        (lambda: Sampler.typical(0.5), [0.97, 0.01, 0.01, 0.01], [1.0]),
        (lambda: Sampler.typical(0.5), [0.4, 0.2, 0.2, 0.2], [1 / 3, 1 / 3, 1 / 3]),
        (lambda: Sampler.top_n_sigma(1.0), [0.1, 0.2, 0.3, 0.4], [0, 0, 0.428571, 0.571429]),
        (lambda: Sampler.top_n_sigma(0.0), [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (lambda: Sampler.top_n_sigma(3.0), [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_upstreams_cases(sampler, given, expected):
    np.testing.assert_allclose(
        spread(sampler().apply(candidates_of(given))), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("last", "expected", "penalties"),
    [
        ([0], [0, 0.25, 0.25, 0.25, 0.25], {"repeat": 50.0}),
        ([0, 1, 2], [0, 0, 0, 0.5, 0.5], {"repeat": 50.0}),
        ([0, 1, 2, 0, 0], [0, 0, 0, 0.5, 0.5], {"repeat": 50.0}),
        ([0], [0.000011, *[0.249997] * 4], {"freq": 5.0, "present": 5.0}),
        ([0, 1, 2], [*[0.000023] * 3, *[0.499966] * 2], {"freq": 5.0, "present": 5.0}),
        ([0, 1, 2, 0, 0], [0, *[0.000023] * 2, *[0.499977] * 2], {"freq": 5.0, "present": 5.0}),
    ],
)
def test_upstreams_cases_of_penalties(tiny, last, expected, penalties):
    sampler = Sampler.penalties(tiny.vocab, last_n=len(last), **penalties)
    for token in last:
        sampler.accept(token)
    found = spread(sampler.apply(candidates_of([0.2] * 5)))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("n", "last", "expected", "dry"),
    [
        (4, [0, 1], [0.25] * 4, {"allowed_length": 2, "last_n": 4}),
        (4, [0, 1, 2, 0, 1], [0.296923, 0.296923, 0.109232, 0.296923], {"last_n": 5}),
        (
            5,
            [0, 1, 2, 0, 1],
            [0.241818, 0.241818, 0.032727, 0.241818, 0.241818],
            {"multiplier": 2.0, "last_n": 5},
        ),
        (5, [0, 1, 2, 3, 4, 0, 1], [0.2] * 5, {"allowed_length": 4, "last_n": 7}),
    ],
)
def test_upstreams_cases_of_dry(tiny, n, last, expected, dry):
    options = {"multiplier": 1.0, "base": 1.1, "breakers": ()} | dry
    sampler = Sampler.dry(tiny.vocab, **options)
    for token in last:
        sampler.accept(token)
    found = spread(sampler.apply(candidates_of([1 / n] * n)))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_no_repetition_spans_a_breaker(tiny):
    """As in upstream's case of a breaker, but told by its text."""
    words = tiny.vocab.tokenize("abxyab", add_special=False)
    even = Candidates(np.zeros(tiny.vocab.n_tokens))

    def penalized(breakers):
        sampler = Sampler.dry(tiny.vocab, multiplier=1.0, breakers=breakers)
        for token in words:
            sampler.accept(token)
        return np.flatnonzero(sampler.apply(even).logit < 0).tolist()

    assert penalized(["q"]) == [words[2]]
    assert penalized(["b"]) == []


random_logits = np.random.default_rng(3).normal(0, 3, 300)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 1.0])
def test_typical_keeps_what_is_as_surprising_as_expected(p):
    shares = probabilities(random_logits)
    surprise = -np.log(shares)
    order = np.argsort(np.abs(surprise - (shares * surprise).sum()), kind="stable")
    size = len(order) if p == 1.0 else int(np.searchsorted(np.cumsum(shares[order]), p)) + 1
    kept = Sampler.typical(p).apply(Candidates(random_logits))
    assert set(kept.id.tolist()) == set(order[:size].tolist())


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_temperature_grows_with_entropy(exponent):
    shares = probabilities(random_logits)
    entropy = -(shares * np.log(shares)).sum() / np.log(len(shares))
    temperature = 0.5 + 1.0 * entropy**exponent
    found = Sampler.temp_ext(1.0, 0.5, exponent).apply(Candidates(random_logits))
    order = np.argsort(-random_logits)
    assert found.id.tolist() == order.tolist()
    np.testing.assert_allclose(found.logit, random_logits[order] / temperature, rtol=1e-4)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0])
def test_top_n_sigma_rules_out_by_standard_deviations(n):
    found = Sampler.top_n_sigma(n).apply(Candidates(random_logits)).logit
    kept = random_logits >= random_logits.max() - n * random_logits.std()
    assert np.isneginf(found).tolist() == (~kept).tolist()


def test_biases_are_added(tiny):
    biases = {3: 2.5, 7: -1.0, 299 % tiny.vocab.n_tokens: 0.0, 5: -INF}
    logits = random_logits[: tiny.vocab.n_tokens]
    expected = logits.astype(np.float32)
    for token, bias in biases.items():
        expected[token] += np.float32(bias)
    given = Candidates(logits)
    for candidates in (given, given.keep(np.arange(len(given))[::-1])):
        found = Sampler.logit_bias(tiny.vocab, biases).apply(candidates)
        np.testing.assert_array_equal(found.logit, expected[found.id])
    none = Sampler.logit_bias(tiny.vocab, {}).apply(given)
    np.testing.assert_array_equal(none.logit, given.logit)


def test_xtc_does_so_as_often_as_asked():
    sampler = Sampler.xtc(0.3, 0.1, seed=4)
    given = candidates_of([0.4, 0.3, 0.2, 0.1])
    dropped = sum(len(sampler.apply(given)) < 4 for _ in range(2000))
    assert abs(dropped / 2000 - 0.3) < 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda vocab: Sampler.mirostat(vocab, 1, tau=3.0),
        lambda _: Sampler.mirostat_v2(1, tau=3.0),
    ],
)
def test_mirostat_holds_the_surprise(tiny, make):
    """Of a flat distribution of 8 bits, and of one that falls off, it makes one of 3 bits."""
    falling = -1.2 * np.log(np.arange(1, 257))
    shares = probabilities(falling)
    sampler = make(tiny.vocab)
    surprises = []
    for _ in range(600):
        chosen = sampler.apply(Candidates(falling))
        surprises.append(-np.log2(chosen.p[chosen.selected]))
        sampler.accept(chosen.token)
    assert np.mean(surprises[100:]) == pytest.approx(3.0, abs=0.2)
    assert -(shares * np.log2(shares)).sum() > 4


def test_adaptive_p_keeps_near_its_target():
    falling = -0.5 * np.arange(6)
    shares = probabilities(falling)
    sampler = Sampler.adaptive_p(5, target=0.2)
    chosen = []
    for _ in range(600):
        chosen.append(sampler.apply(Candidates(falling)).token)
        sampler.accept(chosen[-1])
    assert (shares**2).sum() > 0.25
    assert np.mean(shares[chosen]) == pytest.approx(0.2, abs=0.03)


def test_infill_joins_what_begins_alike(tiny):
    """The case that llama.h describes."""
    vocab = tiny.vocab
    hell, hello, dummy = (
        vocab.tokenize(text, add_special=False)[0] for text in ("hell", "hello", "z")
    )
    given = Candidates(np.log([0.5, 0.3, 0.2]), ids=[hell, hello, dummy])
    assert [vocab.token_to_piece(token) for token in (hell, hello)] == [b"hell", b"hello"]
    kept = Sampler.infill(vocab).apply(given)
    assert kept.id.tolist() == [hell]
    likely_end = Candidates(np.log([0.5, 0.5]), ids=[hell, vocab.eos])
    assert Sampler.infill(vocab).apply(likely_end).id.tolist() == [vocab.eos]


def test_apply_leaves_what_it_is_given_alone(ready):
    given = Candidates(ready.logits())
    before = given.logit.copy()
    for sampler in (Sampler.temp(0.5), Sampler.top_k(3), Sampler.dist(1)):
        sampler.apply(given)
    np.testing.assert_array_equal(given.logit, before)
    assert given.selected is None


def test_apply_agrees_with_sampling(ready):
    chain = SamplerChain([Sampler.top_k(20), Sampler.top_p(0.9), Sampler.dist(8)])
    copy = chain.clone()
    drawn = [chain.sample(ready) for _ in range(20)]
    given = Candidates(ready.logits())
    assert [copy.apply(given).token for _ in range(20)] == drawn


MAKE = {
    "greedy": lambda _: Sampler.greedy(),
    "dist": lambda _: Sampler.dist(1),
    "mirostat": lambda vocab: Sampler.mirostat(vocab, 1),
    "mirostat-v2": lambda _: Sampler.mirostat_v2(1),
    "adaptive-p": lambda _: Sampler.adaptive_p(1, target=0.3),
    "top-k": lambda _: Sampler.top_k(3),
    "top-p": lambda _: Sampler.top_p(0.5),
    "min-p": lambda _: Sampler.min_p(0.5),
    "typical": lambda _: Sampler.typical(0.5),
    "top-n-sigma": lambda _: Sampler.top_n_sigma(1.0),
    "xtc": lambda _: Sampler.xtc(0.5, 0.1, 1),
    "infill": lambda vocab: Sampler.infill(vocab),
    "temp": lambda _: Sampler.temp(0.5),
    "temp-ext": lambda _: Sampler.temp_ext(1.0, 0.5),
    "penalties": lambda vocab: Sampler.penalties(vocab, repeat=1.1),
    "dry": lambda vocab: Sampler.dry(vocab, multiplier=1.0),
    "logit-bias": lambda vocab: Sampler.logit_bias(vocab, {1: 1.0}),
    "grammar": lambda vocab: pyllama.GrammarSampler(vocab, "root ::= [a-z]*"),
    "reasoning-budget": lambda vocab: pyllama.ReasoningBudgetSampler(
        vocab, start=[105], ends=[[106]], forced=[106], budget=2
    ),
    "python": lambda _: Sampler.python(pyllama.PythonSampler()),
}


@pytest.mark.parametrize("name", MAKE)
def test_every_sampler_lives_alone(tiny, name):
    given = Candidates(np.linspace(1, 3, 6), ids=[2, 105, 106, 107, 108, 109])
    with MAKE[name](tiny.vocab) as sampler:
        assert sampler.name == name
        assert name in repr(sampler)
        with sampler.clone() as copy:
            assert (copy.name, copy.selects, type(copy)) == (name, sampler.selects, type(sampler))
            if name == "python":
                return
            first, second = sampler.apply(given), copy.apply(given)
            assert first.id.tolist() == second.id.tolist()
            assert first.token == second.token
            assert (first.token is not None) == sampler.selects
            third = sampler.clone()
        for each in (sampler, third):
            each.accept(106)
            each.reset()
        assert sampler.apply(given).id.tolist() == first.id.tolist()
    for use in (sampler.clone, sampler.reset, lambda: sampler.apply(given)):
        with pytest.raises(pyllama.ClosedError):
            use()


def test_adaptive_p_is_copied_in_the_middle_of_a_token(tiny):
    """A copy knows the choice, but not its candidates: llama.cpp would read past their end."""
    sampler = Sampler.adaptive_p(1, target=0.3)
    chosen = sampler.apply(Candidates(random_logits))
    for _ in range(20):
        sampler.clone().accept(chosen.token)
    chain = SamplerChain([sampler])
    chain.apply(Candidates(random_logits))
    chain.clone().accept(chosen.token)
    other = chain.clone()
    other.copy_state(chain)
    other.accept(chosen.token)


def test_seeds_are_reported(tiny):
    assert Sampler.dist(7).seed == 7
    assert Sampler.mirostat(tiny.vocab, 8).seed == 8
    assert Sampler.mirostat_v2(9).seed == 9
    assert Sampler.greedy().seed is None


def test_logits_that_overflow_are_no_choice(ready):
    for last in (Sampler.greedy(), Sampler.dist(1)):
        chain = SamplerChain([Sampler.temp(1e-44), last])
        with chain, pytest.raises(pyllama.SamplingError):
            chain.sample(ready)


def test_when_no_candidate_is_left(tiny, ready):
    nothing = dict.fromkeys(range(tiny.vocab.n_tokens), -INF)
    for last in (Sampler.greedy(), Sampler.dist(1), Sampler.mirostat_v2(1)):
        chain = SamplerChain([Sampler.logit_bias(tiny.vocab, nothing), last])
        with chain, pytest.raises(pyllama.SamplingError):
            chain.sample(ready)


def test_candidates_outside_the_vocabulary(tiny):
    given = Candidates([1.0], ids=[10**6])
    for name in ("infill", "grammar", "logit-bias"):
        with pytest.raises(ValueError, match="tokens of"):
            MAKE[name](tiny.vocab).apply(given)


def test_only_candidates_can_be_applied(tiny):
    for wrong in (None, [1.0], np.zeros(3), "a"):
        with pytest.raises(TypeError, match="candidates"):
            Sampler.greedy().apply(wrong)


# Closing


def test_samplers_that_never_joined_a_chain_are_freed():
    sampler = Sampler.top_k(3)
    release = sampler._handle._finalizer
    del sampler
    gc.collect()
    assert not release.alive


@pytest.mark.parametrize("name", ["infill", "grammar"])
def test_closing_a_model_closes_what_reads_its_vocabulary(tiny_model_path, name):
    model = pyllama.Model(tiny_model_path, vocab_only=True)
    alone, within = MAKE[name](model.vocab), MAKE[name](model.vocab)
    chain = SamplerChain([within, Sampler.greedy()])
    copies = [alone.clone(), chain.clone()]
    model.close()
    for thing in (alone, within, chain, *copies):
        assert thing.closed
    with pytest.raises(pyllama.ClosedError):
        MAKE[name](model.vocab)


@pytest.mark.parametrize("name", ["infill", "grammar"])
def test_a_sampler_keeps_the_model_that_it_reads(tiny_model_path, name):
    model = pyllama.Model(tiny_model_path, vocab_only=True)
    release = model._handle._finalizer
    sampler = MAKE[name](model.vocab)
    del model
    gc.collect()
    given = Candidates([1.0, 2.0], ids=[105, 106])
    before = sampler.apply(given).id.tolist()
    chain = SamplerChain([sampler])
    del sampler
    gc.collect()
    assert release.alive
    assert chain.apply(given).id.tolist() == before
    chain.close()
    del chain
    gc.collect()
    assert not release.alive
